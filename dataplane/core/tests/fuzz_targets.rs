//! The bodies of the packet path's fuzz targets over their corpora, damaged and whole, and over generated input.

#[path = "../../../fuzz/src/packets.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

/// What judges an input.
type Body = fn(&[u8]);

const TARGETS: [(&str, Body); 5] = [
    ("parsing", targets::parsing),
    ("quoting", targets::quoting),
    ("discovery", targets::discovery),
    ("fragments", targets::fragments),
    ("worker", targets::worker),
];

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = folder(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert!(paths.len() >= 4, "{target}: the corpus is there");
    paths.iter().map(|path| fs::read(path).expect("readable")).collect()
}

#[test]
fn every_corpus_has_its_seeds_and_holds() {
    for (target, name, bytes) in targets::seeds() {
        let path = folder(target).join(name);
        if std::env::var_os("MARGAY_WRITE_CORPUS").is_some() {
            fs::create_dir_all(folder(target)).expect("fuzz/corpus can be written");
            fs::write(&path, &bytes).expect("fuzz/corpus can be written");
        }
        let found = fs::read(&path).unwrap_or_default();
        assert!(
            found == bytes,
            "{} is not what the code says; run: MARGAY_WRITE_CORPUS=1 cargo test -p margay-core --test fuzz_targets",
            path.display()
        );
    }
    for (target, body) in TARGETS {
        corpus(target).iter().for_each(|data| body(data));
    }
}

/// A piece of the corpus with some bytes changed, and perhaps a piece of it cut out or repeated.
fn damaged(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let corpus = corpus(target);
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    // The first bytes are headers, where one change does most.
    let head_edits = prop::collection::vec((0_usize..80, any::<u8>()), 0..4);
    let cut = prop::option::of((any::<prop::sample::Index>(), 0_usize..64, any::<bool>()));
    (0..corpus.len(), edits, head_edits, cut).prop_map(move |(index, edits, head_edits, cut)| {
        let mut data = corpus[index].clone();
        if let Some((at, len, repeats)) = cut {
            let at = at.index(data.len() + 1);
            let end = (at + len).min(data.len());
            let piece: Vec<u8> = if repeats { data[at..end].repeat(2) } else { Vec::new() };
            data.splice(at..end, piece);
        }
        for (at, byte) in edits {
            if !data.is_empty() {
                let at = at.index(data.len());
                data[at] = byte;
            }
        }
        for (at, byte) in head_edits {
            if let Some(place) = data.get_mut(at) {
                *place = byte;
            }
        }
        data
    })
}

proptest! {
    // PROPTEST_CASES asks for more.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1_000)))]

    #[test]
    fn frames_of_any_bytes_hold(data in prop::collection::vec(any::<u8>(), 0..200)) {
        targets::parsing(&data);
        targets::quoting(&data);
    }

    #[test]
    fn damaged_frames_are_read_right(data in damaged("parsing")) {
        targets::parsing(&data);
    }

    #[test]
    fn damaged_frames_are_quoted_right(data in damaged("quoting")) {
        targets::quoting(&data);
    }

    #[test]
    fn any_row_of_fragments_leaves_as_the_rules_say(data in prop::collection::vec(any::<u8>(), 0..240)) {
        targets::fragments(&data);
    }

    /// Few datagrams, so that their parts meet.
    #[test]
    fn crowded_fragments_leave_as_the_rules_say(parts in prop::collection::vec((0_u8..4, 0_u8..16, 0_u8..12), 0..60)) {
        let data: Vec<u8> = parts.into_iter().flat_map(|(id, start, rest)| [id, start, rest]).collect();
        targets::fragments(&data);
    }
}

proptest! {
    // Each makes a node, so they are fewer.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(256)))]

    #[test]
    fn damaged_discovery_is_answered_for_the_gateway_alone(data in damaged("discovery")) {
        targets::discovery(&data);
    }

    #[test]
    fn a_worker_survives_rows_of_any_bytes(data in prop::collection::vec(any::<u8>(), 0..600)) {
        targets::worker(&data);
    }

    #[test]
    fn a_worker_survives_damaged_rows(data in damaged("worker")) {
        targets::worker(&data);
    }
}
