//! Which objects carry which labels, as sets of object numbers.
//!
//! ```text
//!   label key ─▶ value ─▶ { objects }        a selector is set algebra over these: `a == 'b' && !has(c)` is one
//!             └▶ present ▶ { objects }        intersection and one difference, however many objects there are
//! ```
//!
//! An object is known by its labels' numbers only; pods of one deployment share the list. The other direction, "which of many selectors
//! does this one object satisfy", is what [`Filing`] is for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashMap;
use roaring::RoaringBitmap;

use crate::model::Labels;
use crate::selector::ast::Node;
use crate::selector::{Restriction, Selector};

/// Number of a label key and of one of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LabelId {
    key: u32,
    value: u32,
}

/// The labels of an object, by ascending number.
pub(crate) type LabelList = Arc<[LabelId]>;

#[derive(Debug)]
struct Key {
    values: HashMap<Arc<str>, u32, foldhash::fast::FixedState>,
    names: Vec<Arc<str>>,
    objects: Vec<RoaringBitmap>,
    present: RoaringBitmap,
}

/// Labels of all objects. Numbers of keys and values are never taken back.
#[derive(Debug, Default)]
pub(crate) struct Universe {
    numbers: HashMap<Arc<str>, u32, foldhash::fast::FixedState>,
    keys: Vec<Key>,
    all: RoaringBitmap,
}

impl Universe {
    fn key(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.keys.len() as u32;
        self.numbers.insert(name.into(), number);
        self.keys.push(Key {
            values: HashMap::default(),
            names: Vec::new(),
            objects: Vec::new(),
            present: RoaringBitmap::new(),
        });
        number
    }

    fn label(&mut self, key: &str, value: &str) -> LabelId {
        let key = self.key(key);
        let of_key = &mut self.keys[key as usize];
        if let Some(value) = of_key.values.get(value) {
            return LabelId { key, value: *value };
        }
        let number = of_key.names.len() as u32;
        let name: Arc<str> = value.into();
        of_key.values.insert(Arc::clone(&name), number);
        of_key.names.push(name);
        of_key.objects.push(RoaringBitmap::new());
        LabelId { key, value: number }
    }

    /// Returns the numbers of `labels`.
    pub(crate) fn intern(&mut self, labels: &Labels) -> LabelList {
        let mut list: Vec<LabelId> = labels.iter().map(|(key, value)| self.label(key, value)).collect();
        list.sort_unstable();
        list.into()
    }

    /// Adds an object.
    pub(crate) fn insert(&mut self, object: u32, labels: &[LabelId]) {
        self.all.insert(object);
        for label in labels {
            let key = &mut self.keys[label.key as usize];
            key.present.insert(object);
            key.objects[label.value as usize].insert(object);
        }
    }

    /// Removes an object that has `labels`.
    pub(crate) fn remove(&mut self, object: u32, labels: &[LabelId]) {
        self.all.remove(object);
        for label in labels {
            let key = &mut self.keys[label.key as usize];
            key.present.remove(object);
            key.objects[label.value as usize].remove(object);
        }
    }

    /// Returns whether an object with `labels` satisfies `selector`.
    pub(crate) fn matches(&self, selector: &Selector, labels: &[LabelId]) -> bool {
        selector.matches_with(&|key| {
            let key = *self.numbers.get(key)?;
            let index = labels.binary_search_by_key(&key, |label| label.key).ok()?;
            Some(&*self.keys[key as usize].names[labels[index].value as usize])
        })
    }

    /// Returns every object that satisfies `selector`.
    pub(crate) fn select(&self, selector: &Selector) -> RoaringBitmap {
        self.evaluate(selector.node()).into_owned()
    }

    fn key_named(&self, name: &str) -> Option<&Key> {
        self.numbers.get(name).map(|number| &self.keys[*number as usize])
    }

    fn with_value(&self, key: &str, value: &str) -> Cow<'_, RoaringBitmap> {
        let objects =
            self.key_named(key).and_then(|key| Some(&key.objects[*key.values.get(value)? as usize]));
        objects.map_or_else(Default::default, Cow::Borrowed)
    }

    fn with_any<'v>(&self, key: &str, values: impl Iterator<Item = &'v String>) -> RoaringBitmap {
        values.fold(RoaringBitmap::new(), |mut sum, value| {
            sum |= &*self.with_value(key, value);
            sum
        })
    }

    fn with_value_like(&self, key: &str, is_wanted: impl Fn(&str) -> bool) -> RoaringBitmap {
        let mut sum = RoaringBitmap::new();
        let key = self.key_named(key);
        for (name, objects) in key.iter().flat_map(|key| key.names.iter().zip(&key.objects)) {
            if !objects.is_empty() && is_wanted(name) {
                sum |= objects;
            }
        }
        sum
    }

    fn evaluate(&self, node: &Node) -> Cow<'_, RoaringBitmap> {
        match node {
            Node::All | Node::Global => Cow::Borrowed(&self.all),
            Node::Has(key) => {
                self.key_named(key).map_or_else(Default::default, |key| Cow::Borrowed(&key.present))
            }
            Node::Equal(key, value) => self.with_value(key, value),
            Node::NotEqual(key, value) => Cow::Owned(&self.all - &*self.with_value(key, value)),
            Node::Contains(key, part) => {
                Cow::Owned(self.with_value_like(key, |value| value.contains(part.as_str())))
            }
            Node::StartsWith(key, part) => {
                Cow::Owned(self.with_value_like(key, |value| value.starts_with(part.as_str())))
            }
            Node::EndsWith(key, part) => {
                Cow::Owned(self.with_value_like(key, |value| value.ends_with(part.as_str())))
            }
            Node::In(key, values) => Cow::Owned(self.with_any(key, values.iter())),
            Node::NotIn(key, values) => Cow::Owned(&self.all - &self.with_any(key, values.iter())),
            Node::Not(inner) => Cow::Owned(&self.all - &*self.evaluate(inner)),
            Node::And(parts) => self.conjunction(parts),
            Node::Or(parts) => Cow::Owned(parts.iter().fold(RoaringBitmap::new(), |mut sum, part| {
                sum |= &*self.evaluate(part);
                sum
            })),
        }
    }

    /// The smallest positive part first; negative parts are taken away from what is left.
    fn conjunction(&self, parts: &[Node]) -> Cow<'_, RoaringBitmap> {
        let (negative, positive): (Vec<&Node>, Vec<&Node>) = parts
            .iter()
            .partition(|part| matches!(part, Node::Not(_) | Node::NotEqual(..) | Node::NotIn(..)));
        let mut positive: Vec<Cow<'_, RoaringBitmap>> =
            positive.into_iter().map(|part| self.evaluate(part)).collect();
        positive.sort_by_key(|objects| objects.len());
        let mut positive = positive.into_iter();
        let mut sum = positive.next().unwrap_or(Cow::Borrowed(&self.all));
        for part in positive {
            if sum.is_empty() {
                return sum;
            }
            *sum.to_mut() &= &*part;
        }
        for part in negative {
            if sum.is_empty() {
                return sum;
            }
            match part {
                Node::Not(inner) => *sum.to_mut() -= &*self.evaluate(inner),
                Node::NotEqual(key, value) => *sum.to_mut() -= &*self.with_value(key, value),
                Node::NotIn(key, values) => *sum.to_mut() -= &self.with_any(key, values.iter()),
                other => *sum.to_mut() &= &*self.evaluate(other),
            }
        }
        sum
    }
}

/// Things with selectors, filed under one label that an object must have to satisfy them (policy model 5.8): an object meets few of them.
#[derive(Debug)]
pub(crate) struct Filing<T> {
    by_label: HashMap<LabelId, Vec<T>, foldhash::fast::FixedState>,
    by_key: HashMap<u32, Vec<T>, foldhash::fast::FixedState>,
    others: Vec<T>,
}

impl<T> Default for Filing<T> {
    fn default() -> Self {
        Self { by_label: HashMap::default(), by_key: HashMap::default(), others: Vec::new() }
    }
}

/// What a selector asks of one label that an object needs to satisfy it.
enum Need {
    OneOf(Vec<LabelId>),
    Present(u32),
}

/// Returns every label that `selector` needs; `None` when nothing satisfies it.
fn needs(universe: &mut Universe, selector: Option<&Selector>) -> Option<Vec<Need>> {
    let restrictions: BTreeMap<String, Restriction> =
        selector.map(Selector::restrictions).unwrap_or_default();
    let mut needs = Vec::new();
    for (label, restriction) in &restrictions {
        match restriction {
            Restriction::OneOf(values) if values.is_empty() => return None,
            Restriction::OneOf(values) => {
                needs.push(Need::OneOf(values.iter().map(|value| universe.label(label, value)).collect()));
            }
            Restriction::Present => needs.push(Need::Present(universe.key(label))),
            Restriction::Absent => {}
        }
    }
    Some(needs)
}

impl<T: Copy + Eq + Hash> Filing<T> {
    /// Files `item` under the label that tells most objects apart; a selector of `None` is satisfied by everything.
    pub(crate) fn insert(&mut self, universe: &mut Universe, selector: Option<&Selector>, item: T) {
        let Some(needs) = needs(universe, selector) else { return };
        // How many values a label has, shared among those that would do.
        let worth = |need: &Need| match need {
            Need::OneOf(labels) => {
                labels.first().map_or(0, |label| universe.keys[label.key as usize].names.len() / labels.len())
            }
            Need::Present(_) => 0,
        };
        match needs.into_iter().max_by_key(worth) {
            Some(Need::OneOf(labels)) => {
                labels.into_iter().for_each(|label| self.by_label.entry(label).or_default().push(item));
            }
            Some(Need::Present(key)) => self.by_key.entry(key).or_default().push(item),
            None => self.others.push(item),
        }
    }

    /// Takes `item` out again; `selector` is the one it was filed with. Which label told most apart may have changed meanwhile.
    pub(crate) fn remove(&mut self, universe: &mut Universe, selector: Option<&Selector>, item: T) {
        fn take<K: Eq + Hash, T: Eq>(
            lists: &mut HashMap<K, Vec<T>, foldhash::fast::FixedState>,
            key: K,
            item: &T,
        ) {
            if let Some(list) = lists.get_mut(&key) {
                list.retain(|other| other != item);
                if list.is_empty() {
                    lists.remove(&key);
                }
            }
        }
        for need in needs(universe, selector).into_iter().flatten() {
            match need {
                Need::OneOf(labels) => {
                    labels.into_iter().for_each(|label| take(&mut self.by_label, label, &item));
                }
                Need::Present(key) => take(&mut self.by_key, key, &item),
            }
        }
        self.others.retain(|other| *other != item);
    }

    /// Returns everything that an object with `labels` may satisfy; each item at most once.
    pub(crate) fn candidates<'a>(&'a self, labels: &'a [LabelId]) -> impl Iterator<Item = T> + 'a {
        let filed = labels.iter().flat_map(|label| {
            self.by_label.get(label).into_iter().chain(self.by_key.get(&label.key)).flatten()
        });
        filed.chain(&self.others).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::{Filing, Universe};
    use crate::model::Labels;
    use crate::selector::Selector;

    const SELECTORS: [&str; 14] = [
        "all()",
        "a == 'x'",
        "a != 'x'",
        "has(b)",
        "!has(b)",
        "a in {'x', 'y'} && b == 'z'",
        "a not in {'x', 'y'}",
        "a contains 'x' || c ends with 'y'",
        "!(a == 'x' && b == 'y')",
        "a == 'x' && a == 'y'",
        "a starts with 'y' && !has(c) && b != 'x'",
        "a in {}",
        "a == 'x' || b == 'x'",
        "!(a != 'x' || b not in {'y'})",
    ];

    proptest! {
        /// Policy model 5.3: one object at a time, all objects at once, and through the filing, selectors mean the same.
        #[test]
        fn pm_5_8_all_objects_at_once(
            objects in vec(btree_map("[abc]", "(x|y|z|xy)", 0..4), 1..20),
            gone in vec(any::<bool>(), 20),
        ) {
            let mut universe = Universe::default();
            let mut filing = Filing::default();
            let selectors: Vec<Selector> = SELECTORS.iter().map(|text| Selector::parse(text).unwrap()).collect();
            for (number, selector) in (0u32..).zip(&selectors) {
                filing.insert(&mut universe, Some(selector), number);
            }
            let lists: Vec<_> = objects.iter().map(|labels: &Labels| universe.intern(labels)).collect();
            for (number, list) in (0..).zip(&lists) {
                universe.insert(number, list);
            }
            for (number, list) in (0..).zip(&lists).filter(|(number, _)| gone[*number as usize]) {
                universe.remove(number, list);
            }
            for (wanted, selector) in (0u32..).zip(&selectors) {
                let selected = universe.select(selector);
                for (number, labels) in (0..).zip(&objects) {
                    let list = &lists[number as usize];
                    let matches = selector.matches(labels);
                    prop_assert_eq!(selected.contains(number), matches && !gone[number as usize]);
                    prop_assert_eq!(universe.matches(selector, list), matches);
                    let filed = filing.candidates(list).filter(|item| *item == wanted).count();
                    prop_assert!(filed <= 1 && (filed == 1 || !matches), "{selector:?} {labels:?}");
                }
            }
            for (number, selector) in (0u32..).zip(&selectors) {
                filing.remove(&mut universe, Some(selector), number);
            }
            prop_assert_eq!(lists.iter().flat_map(|list| filing.candidates(list)).count(), 0);
        }
    }
}
