//! How much memory it takes to follow a folder: a rule of 80 bytes costs 1,500 at most, while it is read too.
//!
//! The only test of its process, whose memory it measures.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use margay_control::{Directory, DirectoryConfig, Source};

const POLICIES: usize = 200;
const RULES_OF_POLICY: usize = 100;
/// Bytes that a rule may take: its text, its object, and nothing else of its size.
const LIMIT: u64 = 1_500;

/// Returns the most that this process ever had resident, in bytes.
fn peak() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1_024
}

#[test]
fn a_rule_is_kept_as_its_text_and_its_object() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("manifests")).unwrap();
    let mut text = String::new();
    for n in 0..POLICIES {
        write!(text, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: policy{n}, namespace: a}}\n")
            .unwrap();
        text += "spec:\n  podSelector: {}\n  ingress:\n";
        for port in 1..=RULES_OF_POLICY {
            let cidr = format!("172.16.{}.0/24", (n + port) % 256);
            writeln!(
                text,
                "  - {{from: [{{ipBlock: {{cidr: {cidr}}}}}], ports: [{{protocol: TCP, port: {port}}}]}}"
            )
            .unwrap();
        }
    }
    fs::write(root.path().join("manifests/all.yaml"), &text).unwrap();
    drop(text);
    let before = peak();
    let config = DirectoryConfig {
        manifests: vec![root.path().join("manifests")],
        overlay: None,
        store: root.path().join("store"),
    };
    let mut directory = Directory::open(config).unwrap();
    let batch = directory.next(Duration::ZERO).unwrap().unwrap();
    assert_eq!((batch.changes.len(), batch.problems.len()), (POLICIES, 0));
    let each = (peak() - before) / (POLICIES * RULES_OF_POLICY) as u64;
    println!("MEASURED {each} bytes a rule while a folder is read");
    assert!(each < LIMIT, "{each} bytes a rule");
}
