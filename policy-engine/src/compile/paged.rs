//! A sparse array whose copies share the pages that did not change.

use std::sync::Arc;

const PAGE: usize = 256;

/// Values by dense number; holes cost one pointer per 256.
#[derive(Clone, Debug)]
pub(crate) struct Paged<T> {
    pages: Vec<Option<Arc<Vec<Option<T>>>>>,
}

impl<T> Default for Paged<T> {
    fn default() -> Self {
        Self { pages: Vec::new() }
    }
}

impl<T: Clone> Paged<T> {
    /// Returns the value at `index`.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        self.pages.get(index / PAGE)?.as_ref()?.get(index % PAGE)?.as_ref()
    }

    /// Sets the value at `index`; a page that is shared is copied first.
    pub(crate) fn insert(&mut self, index: u32, value: T) {
        let index = index as usize;
        if self.pages.len() <= index / PAGE {
            self.pages.resize(index / PAGE + 1, None);
        }
        let page = self.pages[index / PAGE].get_or_insert_with(|| Arc::new(vec![None; PAGE]));
        Arc::make_mut(page)[index % PAGE] = Some(value);
    }

    /// Forgets the value at `index`, and its page with the last value in it.
    pub(crate) fn remove(&mut self, index: u32) {
        let index = index as usize;
        let Some(slot @ Some(_)) = self.pages.get_mut(index / PAGE) else { return };
        let Some(page) = slot else { return };
        if page[index % PAGE].is_none() {
            return;
        }
        let values = Arc::make_mut(page);
        values[index % PAGE] = None;
        if values.iter().all(Option::is_none) {
            *slot = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Paged;

    #[test]
    fn a_copy_keeps_what_the_original_loses() {
        let mut first = Paged::default();
        first.insert(3, 'a');
        first.insert(700, 'b');
        let copy = first.clone();
        first.remove(3);
        first.insert(700, 'c');
        assert_eq!((first.get(3), first.get(700), first.get(9_999)), (None, Some(&'c'), None));
        assert_eq!((copy.get(3), copy.get(700)), (Some(&'a'), Some(&'b')));
    }
}
