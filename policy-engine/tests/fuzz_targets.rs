//! The bodies of the fuzz targets over their corpora, damaged and whole, and over generated input.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

use proptest::prelude::*;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 5, "{target}: the corpus is there");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_corpus_holds() {
    corpus("selector").iter().for_each(|data| targets::selector(data));
    corpus("manifest").iter().for_each(|data| targets::manifest(data));
}

/// A piece of the corpus with one piece cut out and another put in.
fn damaged(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let corpus = corpus(target);
    (0..corpus.len(), 0_usize..1 << 16, 0_usize..24, "[-:{}\\[\\](),!=&|a-c0-9 '\"*/\n\té]{0,8}").prop_map(
        move |(index, at, cut, insert)| {
            let data = &corpus[index];
            let at = at % (data.len() + 1);
            let rest = &data[(at + cut).min(data.len())..];
            [&data[..at], insert.as_bytes(), rest].concat()
        },
    )
}

/// Two pieces of the corpus joined at any place: a field of one kind in an object of another.
fn crossed() -> impl Strategy<Value = Vec<u8>> {
    let corpus = corpus("manifest");
    (0..corpus.len(), 0..corpus.len(), any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(
        move |(left, right, at, from)| {
            let lines =
                |index: usize| corpus[index].split_inclusive(|byte| *byte == b'\n').collect::<Vec<_>>();
            let (left, right) = (lines(left), lines(right));
            [&left[..at.index(left.len() + 1)], &right[from.index(right.len() + 1)..]].concat().concat()
        },
    )
}

proptest! {
    // PROPTEST_CASES asks for more.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1_000)))]

    #[test]
    fn selectors_of_any_bytes_hold(data in prop::collection::vec(any::<u8>(), 0..200)) {
        targets::selector(&data);
    }

    #[test]
    fn damaged_selectors_hold(data in damaged("selector")) {
        targets::selector(&data);
    }

    #[test]
    fn manifests_of_any_bytes_hold(data in prop::collection::vec(any::<u8>(), 0..200)) {
        targets::manifest(&data);
    }

    #[test]
    fn damaged_manifests_hold(data in damaged("manifest")) {
        targets::manifest(&data);
    }

    #[test]
    fn crossed_manifests_hold(data in crossed()) {
        targets::manifest(&data);
    }
}
