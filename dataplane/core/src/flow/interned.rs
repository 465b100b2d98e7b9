//! Values that many flows have in common, each kept once and named by two bytes: there are few ways out and few senders, and millions of
//! flows.

use std::hash::Hash;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// Names a value of an [`Interned`]; the default names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Id(u16);

/// Values by name.
#[derive(Debug)]
pub struct Interned<T> {
    items: Vec<T>,
    /// What was asked for last, which is often asked for again.
    recent: Option<(T, Id)>,
    ids: HashMap<T, Id, FixedState>,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { items: Vec::new(), recent: None, ids: HashMap::default() }
    }
}

impl<T: Copy + Eq + Hash> Interned<T> {
    /// Returns the name of `value`. When all names are taken that is none, and whoever asks for it goes without.
    pub fn id(&mut self, value: T) -> Id {
        if let Some((_, id)) = self.recent.filter(|(recent, _)| *recent == value) {
            return id;
        }
        let id = self.find(value);
        self.recent = Some((value, id));
        id
    }

    fn find(&mut self, value: T) -> Id {
        if let Some(id) = self.ids.get(&value) {
            return *id;
        }
        let Ok(number) = u16::try_from(self.items.len() + 1) else { return Id::default() };
        self.items.push(value);
        self.ids.insert(value, Id(number));
        Id(number)
    }

    /// Returns what `id` names.
    #[inline(always)]
    pub fn get(&self, id: Id) -> Option<&T> {
        self.items.get(usize::from(id.0).wrapping_sub(1))
    }

    /// Forgets every value; names given before mean nothing any more.
    pub fn clear(&mut self) {
        self.items.clear();
        self.recent = None;
        self.ids.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_a_name_and_too_many_have_none() {
        let mut values = Interned::default();
        let first = values.id(7u32);
        assert_eq!(values.id(7), first);
        assert_ne!(values.id(8), first);
        assert_eq!(values.get(first), Some(&7));
        assert_eq!(values.get(Id::default()), None);
        for value in 0..70_000 {
            let id = values.id(value);
            assert_eq!(values.get(id).copied(), (id != Id::default()).then_some(value));
        }
        assert_eq!(values.id(69_999), Id::default());
        values.clear();
        assert_eq!(values.get(first), None);
    }
}
