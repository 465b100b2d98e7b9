//! Which key every node had when it was seen last, also by an earlier run: so that a change of key is noticed (policy model 32.1).
//!
//! Public keys only. The file is a cache: one that cannot be read is begun anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use margay_core::tunnel::PublicKey;

use super::Family;
use super::keys::{from_base64, in_base64};
use super::private;

/// A node that uses another key than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// The node.
    pub node: String,
    /// Which tunnel.
    pub family: Family,
    /// The key in use now.
    pub key: PublicKey,
    /// The node had said before that this key would follow.
    pub was_announced: bool,
}

/// Keys by node and family, the one in use first.
pub type Published = BTreeMap<(String, Family), Vec<PublicKey>>;

/// What was seen.
#[derive(Debug)]
pub struct Seen {
    path: PathBuf,
    known: Published,
    /// Since when the key in use is, in seconds since 1970.
    since: BTreeMap<(String, Family), u64>,
}

impl Seen {
    /// Takes up what an earlier run saw.
    pub fn open(path: &Path) -> Self {
        let text = private::read(path).ok().flatten();
        let (mut known, mut since) = (Published::new(), BTreeMap::new());
        for line in text.iter().flat_map(|text| text.lines()) {
            let mut words = line.split(' ');
            let (Some(node), Some(family), Some(time)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let place = (node.to_owned(), if family == "v6" { Family::V6 } else { Family::V4 });
            since.extend(time.parse().ok().map(|time| (place.clone(), time)));
            known.insert(place, words.filter_map(from_base64).collect());
        }
        Self { path: path.to_owned(), known, since }
    }

    /// Returns since when a node's key in use is known, in seconds since 1970.
    pub fn since(&self, node: &str, family: Family) -> Option<u64> {
        self.since.get(&(node.to_owned(), family)).copied()
    }

    /// Takes what is published now; returns who changed its key. A node without a key is remembered with the one it had.
    pub fn follow(
        &mut self,
        published: &Published,
        is_node: impl Fn(&str) -> bool,
        now: u64,
    ) -> Vec<KeyChange> {
        let mut changes = Vec::new();
        let before = self.known.clone();
        self.known.retain(|(node, _), _| is_node(node));
        self.since.retain(|(node, _), _| is_node(node));
        for ((node, family), keys) in published {
            let Some(key) = keys.first() else { continue };
            let place = (node.clone(), *family);
            if let Some(known) = before.get(&place).filter(|known| known.first() != Some(key)) {
                let was_announced = known.contains(key);
                changes.push(KeyChange { node: node.clone(), family: *family, key: *key, was_announced });
            }
            if before.get(&place).and_then(|known| known.first()) != Some(key) {
                self.since.insert(place.clone(), now);
            }
            self.known.insert(place, keys.clone());
        }
        if self.known != before
            && let Err(error) = private::write(&self.path, &self.text())
        {
            tracing::warn!(%error, "keys of other nodes cannot be remembered: a change of key during a restart goes unnoticed");
        }
        changes
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for ((node, family), keys) in &self.known {
            let since = self.since(node, *family).unwrap_or_default();
            let family = if *family == Family::V6 { "v6" } else { "v4" };
            let keys: Vec<String> = keys.iter().map(|key| in_base64(*key)).collect();
            text.push_str(&format!("{node} {family} {since} {}\n", keys.join(" ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pm_32_1_a_changed_key_is_noticed_also_over_a_restart_and_said_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seen");
        let key = |n| PublicKey([n; 32]);
        let say = |keys: &[u8]| -> Published {
            [(("b".to_owned(), Family::V4), keys.iter().map(|n| key(*n)).collect())].into()
        };
        let mut seen = Seen::open(&path);
        assert_eq!(seen.follow(&say(&[1]), |_| true, 5), []);
        let mut seen = Seen::open(&path);
        assert_eq!(seen.follow(&say(&[1]), |_| true, 5), []);
        let change =
            |n, was_announced| KeyChange { node: "b".into(), family: Family::V4, key: key(n), was_announced };
        assert_eq!(seen.follow(&say(&[2]), |_| true, 5), [change(2, false)]);
        assert_eq!(seen.follow(&say(&[2, 3]), |_| true, 5), []);
        assert_eq!(seen.follow(&Published::new(), |_| true, 5), [], "for a moment it publishes nothing");
        assert_eq!(seen.follow(&say(&[3, 2]), |_| true, 5), [change(3, true)]);
        assert_eq!(seen.follow(&say(&[3]), |_| true, 5), []);
        assert_eq!(seen.follow(&Published::new(), |_| false, 6), [], "the node is gone");
        assert_eq!(seen.follow(&say(&[4]), |_| true, 5), [], "a node of that name is a new one");
    }
}
