//! Random policies over the cluster's labels, and which seeds a run tries.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod encrypted;

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_policy_engine::model::{
    Action, Entity, Object, Order, Policy, PolicyFlags, PolicyKey, PolicyKind, PortMatch, Rule,
};
use margay_policy_engine::selector::Selector;
use margay_sim::Random;
use margay_wire::protocol;

/// The seeds of a test's scenarios. Who panics with one is told how to replay it.
pub struct Seeds {
    left: std::ops::Range<u64>,
    present: Option<u64>,
}

/// Returns the seeds to try: `MARGAY_SCENARIOS` many (`default` without it), from `MARGAY_SEED` on.
pub fn seeds(default: u64) -> Seeds {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("MARGAY_SEED").unwrap_or(1);
    Seeds { left: first..first + number("MARGAY_SCENARIOS").unwrap_or(default), present: None }
}

impl Iterator for Seeds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.present = self.left.next();
        self.present
    }
}

impl Drop for Seeds {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(seed) = self.present
        {
            // Threads of tests have the names of the tests.
            let thread = std::thread::current();
            let test = thread.name().unwrap_or_default();
            eprintln!("replay: MARGAY_SCENARIOS=1 MARGAY_SEED={seed} cargo test -p margay-sim {test}");
        }
    }
}

fn entity(random: &mut Random) -> Entity {
    let mut entity = Entity::default();
    if random.below(2) == 0 {
        let text = format!("app == 'app{}'", random.below(4));
        entity.selector = Some(Selector::parse(&text).expect("selector"));
    }
    entity
}

/// Returns up to three rules.
pub fn rules(random: &mut Random) -> Vec<Rule> {
    (0..random.below(4))
        .map(|_| {
            let mut destination = entity(random);
            let protocol = [None, Some(protocol::TCP), Some(protocol::UDP)][random.below(3) as usize];
            if protocol.is_some() && random.below(2) == 0 {
                let first = 80 + random.below(3) as u16;
                destination.ports.push(PortMatch::Range { first, last: first + random.below(2) as u16 });
            }
            Rule {
                action: [Action::Allow, Action::Deny, Action::Pass, Action::Allow][random.below(4) as usize],
                ip_version: None,
                protocol,
                not_protocol: None,
                icmp: None,
                not_icmp: None,
                source: entity(random),
                destination,
                http: None,
                unenforced: Vec::new(),
                annotations: BTreeMap::new(),
            }
        })
        .collect()
}

/// Returns a policy with one of a few selectors; the same number replaces it.
pub fn policy(random: &mut Random, number: u64) -> Object {
    let selector = Selector::parse(&format!("app in {{'app{}', 'app{}'}}", random.below(4), random.below(4)));
    let governs = random.below(3);
    Object::Policy(Arc::new(Policy {
        key: PolicyKey { kind: PolicyKind::GlobalNetworkPolicy, namespace: None, name: format!("p{number}") },
        tier: "default".to_owned(),
        order: Order(random.below(5) as f64),
        selector: Some(selector.expect("selector")),
        governs_ingress: governs != 0,
        governs_egress: governs != 1,
        ingress: rules(random),
        egress: rules(random),
        flags: PolicyFlags::default(),
        staged: None,
    }))
}
