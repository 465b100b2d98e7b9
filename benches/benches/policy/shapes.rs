//! What is measured: rules, address sets and clusters, always the same ones.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use benches::world::{self, namespace};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::{
    Action, Entity, Labels, NetworkSet, NetworkSetKey, Node, Object, Pod, PortMatch, Rule,
};
use margay_policy_engine::packet::{EndpointId, PacketTuple};
use margay_policy_engine::selector::Selector;
use margay_wire::protocol;

/// Returns the factor for all sizes.
pub fn scale() -> f64 {
    std::env::var("MARGAY_BENCH_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0)
}

/// Returns a size at the scale of this run.
pub fn scaled(size: usize) -> usize {
    ((size as f64 * scale()) as usize).max(1)
}

/// Numbers without a pattern that matters here, the same in every run.
pub struct Random(u64);

impl Random {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns the next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 32) as usize * limit) >> 32
    }
}

/// A rule as a flat list has it: the shape in which peers get it.
#[derive(Clone, Copy)]
pub struct FlatRule {
    pub source: Ipv4Net,
    pub destination: Ipv4Net,
    pub protocol: u8,
    pub first: u16,
    pub last: u16,
    pub action: Action,
}

/// Local pods of the decision world.
pub const PODS: usize = 256;
/// Source prefixes that rules name.
pub const SOURCES: usize = 8_192;

/// Rules on local pods, as a flat list and as policies.
///
/// Three quarters of the rules are in policies of one pod each, one quarter in policies of a group of pods. A rule names one of
/// [`SOURCES`] prefixes (half /32, a quarter /24, the rest /16 to /31), TCP or UDP, and one port (80 %) or 100; one in ten denies.
pub struct Decisions {
    /// Pods of a group.
    pub group: usize,
    pub rules: Vec<FlatRule>,
    pub packets: Vec<(EndpointId, PacketTuple)>,
}

fn pod_address(pod: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, pod as u8)
}

fn net4(address: u32, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(address.into(), length).trunc()
}

impl Decisions {
    /// Draws rules and packets; half of the packets are made to match a rule. `group` is a power of two.
    pub fn draw(count: usize, packets: usize, group: usize) -> Self {
        let mut random = Random::new(7);
        let sources: Vec<Ipv4Net> = (0..SOURCES)
            .map(|n| {
                let length = match n % 4 {
                    0 | 1 => 32,
                    2 => 24,
                    _ => 16 + random.below(16) as u8,
                };
                net4(0x0a00_0000 | random.below(1 << 24) as u32, length)
            })
            .collect();
        let of_pods = count * 3 / 4;
        let groups = PODS / group;
        let group_length = 32 - group.trailing_zeros() as u8;
        let rules: Vec<FlatRule> = (0..count)
            .map(|n| {
                // In the order of the policies, so that the first match of the flat list is the policies' match.
                let destination = if n < of_pods {
                    Ipv4Net::new_assert(pod_address(n * PODS / of_pods), 32)
                } else {
                    let first = (n - of_pods) * groups / (count - of_pods) * group;
                    Ipv4Net::new_assert(pod_address(first), group_length)
                };
                let first = 1 + random.below(60_000) as u16;
                FlatRule {
                    source: sources[random.below(SOURCES)],
                    destination,
                    protocol: [protocol::TCP, protocol::UDP][random.below(2)],
                    first,
                    last: if random.below(5) == 0 { first + 99 } else { first },
                    action: if random.below(10) == 0 { Action::Deny } else { Action::Allow },
                }
            })
            .collect();
        let packets = (0..packets).map(|n| packet(&rules, &mut random, n % 2 == 0)).collect();
        Self { group, rules, packets }
    }

    /// Returns how many rules govern a pod.
    pub fn rules_of_a_pod(&self) -> usize {
        let pods: usize = self.rules.iter().map(|rule| 1 << (32 - rule.destination.prefix_len())).sum();
        pods / PODS
    }

    /// Returns an engine with the pods as local endpoints and the rules as their policies.
    pub fn engine(&self) -> Engine {
        let mut engine = Engine::new();
        engine.apply(namespace("ns"));
        for n in 0..PODS {
            let pod = world::pod("ns", &format!("pod-{n}"), &format!("app{n}"), world::HERE, pod_address(n));
            engine.apply(Change::Endpoint(world::local(n as u32, &pod)));
            engine.apply(Change::Upsert(Object::Pod(Arc::new(pod))));
        }
        let mut policies: HashMap<Ipv4Net, Vec<Rule>> = HashMap::new();
        for rule in &self.rules {
            policies.entry(rule.destination).or_default().push(rule.written());
        }
        for (net, rules) in policies {
            let pod = usize::from(net.addr().octets()[3]);
            let (order, selector) = match net.prefix_len() {
                32 => (1.0, format!("app == 'app{pod}'")),
                _ => {
                    let apps: Vec<String> = (pod..pod + self.group).map(|n| format!("'app{n}'")).collect();
                    (2.0, format!("app in {{{}}}", apps.join(", ")))
                }
            };
            let name = format!("policy-{}-{pod}", net.prefix_len());
            engine.apply(Change::Upsert(world::ingress(&name, order, &selector, rules)));
        }
        engine
    }
}

impl FlatRule {
    fn written(&self) -> Rule {
        Rule {
            protocol: Some(self.protocol),
            source: Entity { nets: vec![self.source.into()], ..Entity::default() },
            destination: Entity {
                ports: vec![PortMatch::Range { first: self.first, last: self.last }],
                ..Entity::default()
            },
            ..Rule::everything(self.action)
        }
    }
}

fn within(net: Ipv4Net, random: &mut Random) -> Ipv4Addr {
    let span = 1u64 << (32 - net.prefix_len());
    (u32::from(net.network()) + random.below(span as usize) as u32).into()
}

fn packet(rules: &[FlatRule], random: &mut Random, hit: bool) -> (EndpointId, PacketTuple) {
    let rule = rules[random.below(rules.len())];
    let tuple = if hit {
        PacketTuple {
            source: within(rule.source, random).into(),
            destination: within(rule.destination, random).into(),
            protocol: rule.protocol,
            source_port: Some(1024 + random.below(60_000) as u16),
            destination_port: Some(rule.first + random.below(usize::from(rule.last - rule.first) + 1) as u16),
            icmp: None,
        }
    } else {
        PacketTuple {
            source: Ipv4Addr::from(random.next() as u32).into(),
            destination: pod_address(random.below(PODS)).into(),
            protocol: [protocol::TCP, protocol::UDP][random.below(2)],
            source_port: Some(1024 + random.below(60_000) as u16),
            destination_port: Some(random.below(65_536) as u16),
            icmp: None,
        }
    };
    let pod = match tuple.destination {
        IpAddr::V4(address) => u32::from(address.octets()[3]),
        IpAddr::V6(_) => 0,
    };
    (EndpointId(pod), tuple)
}

/// Draws the prefixes of an address set: half /24, the rest /16 to /32; distinct.
pub fn members4(count: usize) -> Vec<Ipv4Net> {
    let mut random = Random::new(11);
    let mut members = std::collections::BTreeSet::new();
    while members.len() < count {
        // Short prefixes are few, as anywhere: with more of them one would hold everything.
        let length = match random.below(20) {
            0..10 => 24,
            10 => 16 + random.below(8) as u8,
            _ => 25 + random.below(8) as u8,
        };
        members.insert(net4(random.next() as u32, length));
    }
    members.into_iter().collect()
}

/// Draws the prefixes of an IPv6 address set: half /64, 5 % /48 to /63, the rest longer; distinct.
pub fn members6(count: usize) -> Vec<Ipv6Net> {
    let mut random = Random::new(13);
    let mut members = std::collections::BTreeSet::new();
    while members.len() < count {
        let length = match random.below(20) {
            0..10 => 64,
            10 => 48 + random.below(16) as u8,
            _ => 65 + random.below(64) as u8,
        };
        let address = Ipv6Addr::from(
            0x2001_0db8 << 96 | u128::from(random.next()) << 32 | u128::from(random.next() as u32),
        );
        members.insert(Ipv6Net::new_assert(address, length).trunc());
    }
    members.into_iter().collect()
}

/// Returns an engine with one local pod that a set's members may reach.
pub fn with_set(nets: Vec<IpNet>) -> Engine {
    let mut engine = Engine::new();
    engine.apply(namespace("ns"));
    let pod = world::pod("ns", "pod", "app", world::HERE, pod_address(1));
    engine.apply(Change::Endpoint(world::local(1, &pod)));
    engine.apply(Change::Upsert(Object::Pod(Arc::new(pod))));
    engine.apply(Change::Upsert(Object::NetworkSet(Arc::new(NetworkSet {
        key: NetworkSetKey { namespace: None, name: "members".to_owned() },
        labels: Labels::from([("set".to_owned(), "members".to_owned())]),
        nets,
        domains: Vec::new(),
    }))));
    let rule = Rule {
        source: Entity { selector: Selector::parse("set == 'members'").ok(), ..Entity::default() },
        ..Rule::everything(Action::Allow)
    };
    engine.apply(Change::Upsert(world::ingress("policy", 1.0, "app == 'app'", vec![rule])));
    engine
}

/// Local pods of a cluster.
pub const LOCAL: usize = 110;

/// Rules of a policy of [`policy`].
pub const RULES_OF_POLICY: usize = 10;

/// Labels that pods of one deployment share.
#[derive(Default)]
pub struct Deployments(HashMap<(usize, usize), Arc<Labels>>);

impl Deployments {
    /// Returns pod `n` of a cluster with its app.
    pub fn pod(&mut self, n: usize, app: usize) -> Pod {
        let mut pod = world::cluster_pod(n, app);
        let labels = self.0.entry((n % 50, app % world::APPS)).or_insert_with(|| Arc::clone(&pod.labels));
        pod.labels = Arc::clone(labels);
        pod
    }
}

/// Returns policy `n` of a cluster: on one app, half of its rules from other apps, half from CIDRs. `variant` changes one port.
pub fn policy(n: usize, variant: u16) -> Object {
    let rules = (0..RULES_OF_POLICY).map(|k| {
        let source = if k % 2 == 0 {
            let app = (n * 7 + k) % world::APPS;
            Entity { selector: Selector::parse(&format!("app == 'app{app}'")).ok(), ..Entity::default() }
        } else {
            let net = Ipv4Net::new_assert(Ipv4Addr::new(172, 16, (n % 256) as u8, 0), 24);
            Entity { nets: vec![net.into()], ..Entity::default() }
        };
        let port = if k == 0 { 10_000 + variant % 1_000 } else { 8_000 + k as u16 };
        world::allow(protocol::TCP, source, world::port(port))
    });
    let selector = format!("app == 'app{}'", n % world::APPS);
    world::ingress(&format!("policy-{n}"), n as f64, &selector, rules.collect())
}

/// Returns the decoded objects of a cluster, the first [`LOCAL`] pods as endpoints of this node.
pub fn cluster(pods: usize, policies: usize, policy: impl Fn(usize) -> Object) -> Vec<Change> {
    let mut changes: Vec<Change> = (0..50).map(|n| namespace(&format!("ns{n}"))).collect();
    for n in 0..pods.div_ceil(200) {
        let [a, b, c, _] = world::cluster_address(n * 200).octets();
        changes.push(Change::Upsert(Object::Node(Arc::new(Node {
            name: format!("node-{n}"),
            labels: Labels::new(),
            addresses: vec![Ipv4Addr::new(192, 168, (n / 250) as u8, (1 + n % 250) as u8).into()],
            internal_addresses: 1,
            pod_cidrs: vec![Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), 24).into()],
            annotations: Default::default(),
        }))));
    }
    let mut deployments = Deployments::default();
    for n in 0..pods {
        let pod = deployments.pod(n, n);
        if n < LOCAL {
            changes.push(Change::Endpoint(world::local(n as u32 + 1, &pod)));
        }
        changes.push(Change::Upsert(Object::Pod(Arc::new(pod))));
    }
    changes.extend((0..policies).map(|n| Change::Upsert(policy(n))));
    changes
}

/// Returns the decoded objects of isolated customers: each has a namespace, one or two pods and a policy that lets in its own
/// namespace only.
pub fn customers(count: usize) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut pods = 0;
    for n in 0..count {
        let name = format!("customer-{n}");
        changes.push(namespace(&name));
        let mut labels = None;
        for k in 0..1 + n % 2 {
            let mut pod = world::pod(
                &name,
                &format!("pod-{k}"),
                "app",
                &format!("node-{}", pods / LOCAL),
                Ipv4Addr::from(0x0a00_0000 + pods as u32),
            );
            pod.labels = Arc::clone(labels.get_or_insert_with(|| Arc::clone(&pod.labels)));
            if pods < LOCAL {
                changes.push(Change::Endpoint(world::local(pods as u32 + 1, &pod)));
            }
            changes.push(Change::Upsert(Object::Pod(Arc::new(pod))));
            pods += 1;
        }
        changes.push(Change::Upsert(world::own_namespace_only(&name)));
    }
    changes
}
