//! Pods that policy denies and that keep trying.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::rig::{Lab, Tool};

/// The senders whom policy denies, and those who watch at their targets.
pub struct Denied {
    senders: Vec<Tool>,
    watchers: Vec<Tool>,
}

impl Denied {
    pub fn start(lab: &Lab) -> Self {
        let sources: Vec<String> = ["shop/a", "shop/c"]
            .iter()
            .flat_map(|pod| [4, 6].map(|family| lab.address(pod, family)))
            .collect();
        let mut told = vec!["-"];
        told.extend(sources.iter().map(String::as_str));
        let watchers = ["shop/d", "shop/e"].iter().map(|pod| lab.tool(pod, "watch", &told)).collect();
        let pairs = [("shop/a", "shop/d"), ("shop/c", "shop/d"), ("shop/a", "shop/e"), ("shop/c", "shop/e")];
        let senders = pairs
            .iter()
            .flat_map(|(from, to)| [4, 6].map(|family| lab.flow("deny", from, to, family, "0.05")))
            .collect();
        Self { senders, watchers }
    }

    /// Nothing has come through until now.
    pub fn check(&mut self, when: &str) {
        for watcher in &mut self.watchers {
            let known = watcher.ask();
            assert_eq!(known["seen"], json!([]), "{when}: a denied packet arrived: {}", watcher.what);
        }
        for sender in &mut self.senders {
            assert_eq!(sender.ask()["answers"], json!([]), "{when}: {} was answered", sender.what);
        }
    }

    pub fn attempts(&mut self) -> u64 {
        self.senders.iter_mut().map(|s| s.ask()["sent"].as_u64().expect("number")).sum()
    }

    /// The last check: without policy the same senders get through, and the same watchers see it.
    pub fn were_able(mut self, lab: &Lab) {
        self.check("before the policy is taken away");
        for file in ["closed.yaml", "guard.yaml"] {
            let _ = fs::remove_file(lab.manifest(file));
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let seen = self.watchers.iter_mut().all(|w| w.ask()["seen"] != json!([]));
            let answered = self.senders.iter_mut().all(|s| s.ask()["answers"] != json!([]));
            if seen && answered {
                return;
            }
            assert!(Instant::now() < deadline, "without policy the denied senders must get through");
            thread::sleep(Duration::from_millis(50));
        }
    }
}
