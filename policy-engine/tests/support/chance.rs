//! Worlds and packets drawn from a string of bytes: the same bytes, the same world; fewer bytes, a simpler one.
//!
//! Everything comes from small pools, so that labels match, addresses collide, sets overlap and ports meet their names.

#![allow(dead_code, reason = "every test binary uses its own part")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use margay_policy_engine::engine::{Change, HostInterface, LocalEndpoint};
use margay_policy_engine::model::{
    Action, DenyAction, EndpointSlice, Entity, Failsafe, FelixConfiguration, HostEndpoint, IcmpMatch, Labels,
    NamedPort, Namespace, NamespacedName, NetworkSet, NetworkSetKey, Node, Object, Order, Pod, Policy,
    PolicyFlags, PolicyKey, PolicyKind, PortMatch, Profile, Rule, ServiceAccount, StagedAction, Tier,
    TierDefault, Unenforced,
};
use margay_policy_engine::packet::{EndpointId, HostId, PacketTuple};

use super::{name, selector, twin};

const ADDRESSES: [&str; 8] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "11.0.0.1", "255.255.255.255"];
const NETS: [&str; 8] = [
    "10.0.0.0/8",
    "10.0.0.0/30",
    "10.0.0.2/32",
    "10.0.0.4/30",
    "0.0.0.0/0",
    "11.0.0.0/8",
    "10.0.0.1/32",
    "128.0.0.0/1",
];
const PORTS: [u16; 8] = [80, 53, 8080, 0, 1, 79, 81, 65_535];
const NAMES: [&str; 3] = ["http", "dns", "metrics"];
const PROTOCOLS: [u8; 8] = [6, 17, 132, 1, 58, 253, 136, 6];
const SELECTORS: [&str; 22] = [
    "all()",
    "role == 'x'",
    "role == 'y'",
    "has(role)",
    "!has(role)",
    "role != 'x'",
    "role in {'x', 'z'}",
    "role not in {'x'}",
    "zone == '1' && role == 'x'",
    "zone == '1' || role == 'y'",
    "projectcalico.org/namespace == 'a'",
    "projectcalico.org/namespace == 'b' && role == 'x'",
    "!has(projectcalico.org/namespace)",
    "pcns.env == 'prod'",
    "pcns.env != 'prod'",
    "pcns.projectcalico.org/name == 'b'",
    "pcsa.team == 'red'",
    "has(pcsa.projectcalico.org/name)",
    "zone starts with '1'",
    "zone contains '2'",
    "role in {}",
    "extra == 'e'",
];

pub struct Chance<'a> {
    bytes: &'a [u8],
}

impl<'a> Chance<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// A number below `bound`; zero when the bytes are used up.
    pub fn below(&mut self, bound: usize) -> usize {
        let Some((first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        usize::from(*first) % bound
    }

    pub fn once_in(&mut self, rarity: usize) -> bool {
        self.below(rarity) == rarity - 1
    }

    fn pick<T: Copy>(&mut self, pool: &[T]) -> T {
        pool[self.below(pool.len())]
    }

    fn some<T>(&mut self, rarity: usize, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.once_in(rarity).then(|| make(self))
    }

    fn list<T>(&mut self, bound: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(bound)).map(|_| make(self)).collect()
    }

    fn in_a_family(&mut self, text: &str) -> String {
        if self.once_in(3) { twin(text) } else { text.to_owned() }
    }

    fn address(&mut self) -> IpAddr {
        let text = self.pick(&ADDRESSES);
        self.in_a_family(text).parse().unwrap()
    }

    fn net(&mut self) -> ipnet::IpNet {
        let text = self.pick(&NETS);
        self.in_a_family(text).parse().unwrap()
    }

    fn labels(&mut self) -> Labels {
        let mut labels = Labels::new();
        for (key, values) in
            [("role", ["x", "y", "z"]), ("zone", ["1", "2", "12"]), ("extra", ["e", "f", "g"])]
        {
            if !self.once_in(3) {
                labels.insert(key.to_owned(), self.pick(&values).to_owned());
            }
        }
        labels
    }

    fn named_ports(&mut self) -> Vec<NamedPort> {
        self.list(4, |chance| NamedPort {
            name: chance.pick(&NAMES).to_owned(),
            protocol: chance.pick(&[6, 17, 132]),
            port: chance.pick(&PORTS[..3]),
            host_port: None,
            host_ip: None,
        })
    }

    fn namespace_name(&mut self) -> &'static str {
        self.pick(&["a", "b", "a", "b", "a", "b", "a", "ghost"])
    }

    fn pod(&mut self, index: usize) -> Pod {
        let key = NamespacedName { namespace: self.namespace_name().to_owned(), name: format!("p{index}") };
        let mut labels = self.labels();
        labels.insert("projectcalico.org/namespace".to_owned(), key.namespace.clone());
        labels.insert("projectcalico.org/orchestrator".to_owned(), "k8s".to_owned());
        Pod {
            key,
            uid: self.pick(&["", "u1", "u2"]).to_owned(),
            labels: labels.into(),
            service_account: self.some(2, |chance| chance.pick(&["s", "t.u", "none"]).to_owned()),
            node: if self.once_in(8) { None } else { Some(self.pick(&["n1", "n2", "n3"]).to_owned()) },
            host_network: self.once_in(12),
            finished: self.once_in(12),
            addresses: self.list(3, Self::address),
            annotated_addresses: if self.once_in(3) { self.list(3, Self::address) } else { Vec::new() },
            ports: self.named_ports(),
            started: self.pick(&["", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]).to_owned(),
            annotations: BTreeMap::new(),
        }
    }

    fn entity(&mut self, is_destination: bool) -> Entity {
        let mut entity = Entity::default();
        match self.below(13) {
            0 => entity.nets = (0..=self.below(3)).map(|_| self.net()).collect(),
            1 => entity.not_nets = (0..=self.below(2)).map(|_| self.net()).collect(),
            2 | 3 => entity.selector = Some(selector(self.pick(&SELECTORS))),
            4 => entity.not_selector = Some(selector(self.pick(&SELECTORS))),
            5 if self.once_in(2) => entity.service = Some(name(self.pick(&["a/web", "b/web", "a/none"]))),
            6 => {
                entity.nets = vec![self.net()];
                entity.not_nets = vec![self.net()];
                entity.selector = Some(selector(self.pick(&SELECTORS)));
            }
            _ => {}
        }
        let rarity = if is_destination { 3 } else { 8 };
        if self.once_in(rarity) {
            entity.ports = (0..=self.below(3)).map(|_| self.port()).collect();
        }
        if self.once_in(rarity + 2) {
            entity.not_ports = (0..=self.below(3)).map(|_| self.port()).collect();
        }
        entity
    }

    fn port(&mut self) -> PortMatch {
        if self.once_in(2) {
            return PortMatch::Named(self.pick(&NAMES).to_owned());
        }
        let (one, other) = (self.pick(&PORTS), self.pick(&PORTS));
        let (first, last) = if self.once_in(2) { (one, one) } else { (one.min(other), one.max(other)) };
        PortMatch::Range { first, last }
    }

    fn rule(&mut self) -> Rule {
        let icmp = |chance: &mut Self| {
            let kind = chance.some(4, |_| ()).is_none().then(|| chance.pick(&[8, 10, 0]));
            IcmpMatch { kind, code: kind.and_then(|_| chance.some(2, |chance| chance.pick(&[0, 3]))) }
        };
        let protocol = self.some(2, |chance| chance.pick(&PROTOCOLS));
        let is_icmp = matches!(protocol, Some(1 | 58));
        Rule {
            action: self.pick(&[
                Action::Allow,
                Action::Deny,
                Action::Allow,
                Action::Pass,
                Action::Log,
                Action::Deny,
            ]),
            ip_version: self.some(12, |chance| chance.pick(&[4, 6])),
            protocol,
            not_protocol: self.some(10, |chance| chance.pick(&PROTOCOLS)),
            icmp: self.some(if is_icmp { 3 } else { 20 }, icmp),
            not_icmp: self.some(if is_icmp { 3 } else { 20 }, icmp),
            source: self.entity(false),
            destination: self.entity(true),
            http: None,
            unenforced: if self.once_in(16) { vec![Unenforced::Http] } else { Vec::new() },
            annotations: BTreeMap::new(),
        }
    }

    fn policy(&mut self, index: usize) -> Policy {
        let kind = self.pick(&[
            PolicyKind::GlobalNetworkPolicy,
            PolicyKind::GlobalNetworkPolicy,
            PolicyKind::NetworkPolicy,
            PolicyKind::KubernetesNetworkPolicy,
        ]);
        let namespace = (kind != PolicyKind::GlobalNetworkPolicy).then(|| self.pick(&["a", "b"]).to_owned());
        let name = format!("{}{index}", self.pick(&["m", "a", "z"]));
        let selects = if self.once_in(2) { self.pick(&SELECTORS[..4]) } else { self.pick(&SELECTORS[..19]) };
        Policy {
            key: PolicyKey { kind, namespace, name },
            tier: self.pick(&["default", "t1", "t2", "ghost", "default"]).to_owned(),
            order: Order(self.pick(&[0.0, 1.0, -1.0, 0.5, f64::INFINITY])),
            selector: if self.once_in(16) { None } else { Some(selector(selects)) },
            governs_ingress: !self.once_in(3),
            governs_egress: !self.once_in(3),
            ingress: self.list(7, Self::rule),
            egress: self.list(7, Self::rule),
            flags: PolicyFlags {
                do_not_track: self.once_in(20),
                pre_dnat: self.once_in(20),
                apply_on_forward: self.once_in(4),
                deny_action: self.pick(&[None, None, Some(DenyAction::Drop), Some(DenyAction::Reject)]),
            },
            staged: self.some(10, |_| StagedAction::Set),
        }
    }

    /// The objects and local endpoints of a world, each a change.
    pub fn world(&mut self) -> Vec<Change> {
        let mut objects = Vec::new();
        for namespace in ["a", "b"] {
            let mut labels = Labels::new();
            if !self.once_in(3) {
                labels.insert("env".to_owned(), self.pick(&["prod", "dev"]).to_owned());
            }
            objects.push(Object::Namespace(Arc::new(Namespace { name: namespace.to_owned(), labels })));
        }
        for key in ["a/s", "b/s", "a/t.u"] {
            if self.once_in(4) {
                continue;
            }
            let labels = [("team".to_owned(), self.pick(&["red", "blue"]).to_owned())].into();
            objects.push(Object::ServiceAccount(Arc::new(ServiceAccount { key: name(key), labels })));
        }
        for node in ["n1", "n2"] {
            let addresses = if self.once_in(2) { vec![self.address()] } else { Vec::new() };
            let pod_cidrs = self.list(3, Self::net);
            let node = Node {
                name: node.to_owned(),
                labels: Labels::new(),
                internal_addresses: addresses.len(),
                addresses,
                pod_cidrs,
                annotations: BTreeMap::new(),
            };
            objects.push(Object::Node(Arc::new(node)));
        }
        let mut tiers = vec![("t1", 1.0), ("t2", 2.0)];
        tiers.truncate(1 + self.below(2));
        for (tier, order) in tiers {
            let default_action = self.pick(&[TierDefault::Deny, TierDefault::Pass, TierDefault::Allow]);
            objects.push(Object::Tier(Arc::new(Tier {
                name: tier.to_owned(),
                order: Order(order),
                default_action,
            })));
        }
        if self.once_in(2) {
            let profile = Profile {
                name: "p".to_owned(),
                ingress: Vec::new(),
                egress: Vec::new(),
                labels: self.labels(),
            };
            objects.push(Object::Profile(Arc::new(profile)));
        }
        for index in 0..self.below(3) {
            let endpoint = HostEndpoint {
                name: format!("h{index}"),
                labels: self.labels(),
                node: "n1".to_owned(),
                interface_name: "*".to_owned(),
                expected_ips: self.list(3, Self::address),
                profiles: self.list(3, |chance| chance.pick(&["p", "kns.a", "ksa.a.s", "none"]).to_owned()),
                ports: self.named_ports(),
            };
            objects.push(Object::HostEndpoint(Arc::new(endpoint)));
        }
        for index in 0..self.below(4) {
            let namespace = self.some(2, |chance| chance.pick(&["a", "b"]).to_owned());
            let mut labels = self.labels();
            if let Some(namespace) = &namespace {
                labels.insert("projectcalico.org/namespace".to_owned(), namespace.clone());
            }
            let key = NetworkSetKey { namespace, name: format!("s{index}") };
            let nets = self.list(4, Self::net);
            objects.push(Object::NetworkSet(Arc::new(NetworkSet { key, labels, nets, domains: Vec::new() })));
        }
        for index in 0..self.below(3) {
            let slice = EndpointSlice {
                key: NamespacedName {
                    namespace: self.pick(&["a", "b"]).to_owned(),
                    name: format!("web-{index}"),
                },
                service: "web".to_owned(),
                addresses: self.list(4, Self::address),
                ports: self.list(3, |chance| (chance.pick(&[6, 17]), chance.pick(&PORTS[..3]))),
            };
            objects.push(Object::EndpointSlice(Arc::new(slice)));
        }
        let pods: Vec<Pod> = (0..2 + self.below(5)).map(|index| self.pod(index)).collect();
        let mut locals = Vec::new();
        for (id, pod) in (1..).zip(&pods) {
            if id > 1 && self.once_in(3) {
                continue;
            }
            let addresses = if self.once_in(2) { self.list(3, Self::address) } else { pod.addresses.clone() };
            let uid = if self.once_in(6) { "u1".to_owned() } else { pod.uid.clone() };
            locals.push(LocalEndpoint { id: EndpointId(id), pod: pod.key.clone(), uid, addresses });
        }
        objects.extend(pods.into_iter().map(|pod| Object::Pod(Arc::new(pod))));
        for index in 0..1 + self.below(6) {
            objects.push(Object::Policy(Arc::new(self.policy(index))));
        }
        if self.once_in(4) {
            objects.push(Object::FelixConfiguration(Arc::new(FelixConfiguration {
                name: "default".to_owned(),
                trust_pod_ip_annotations: Some(!self.once_in(3)),
                ..FelixConfiguration::default()
            })));
        }
        objects.into_iter().map(Change::Upsert).chain(locals.into_iter().map(Change::Endpoint)).collect()
    }

    /// What a world may have beside [`Chance::world`]: host endpoints, interfaces for them, configuration, and policies in every context.
    pub fn hosts(&mut self) -> Vec<Change> {
        let mut objects = Vec::new();
        for index in 0..1 + self.below(5) {
            let endpoint = HostEndpoint {
                name: format!("{}{index}", self.pick(&["h", "g"])),
                labels: self.labels(),
                node: self.pick(&["n1", "n1", "n2"]).to_owned(),
                interface_name: self.pick(&["*", "eth0", "eth1", "", "*", "eth0"]).to_owned(),
                expected_ips: self.list(3, Self::address),
                profiles: self.list(3, |chance| {
                    chance
                        .pick(&["q", "kns.a", "ksa.a.s", "none", "projectcalico-default-allow", "p", "q"])
                        .to_owned()
                }),
                ports: self.named_ports(),
            };
            objects.push(Object::HostEndpoint(Arc::new(endpoint)));
        }
        let rules = |chance: &mut Self| chance.list(4, Self::rule);
        let profile = Profile {
            name: "q".to_owned(),
            ingress: rules(self),
            egress: rules(self),
            labels: self.labels(),
        };
        objects.push(Object::Profile(Arc::new(profile)));
        for name in ["default", "node.n1"] {
            let configuration = FelixConfiguration {
                name: name.to_owned(),
                failsafe_inbound: self.some(2, |chance| chance.list(7, Self::failsafe)),
                failsafe_outbound: self.some(2, |chance| chance.list(7, Self::failsafe)),
                // Switches of the whole cluster, because nodes share what is compiled from a rule.
                allow_unenforced_criteria: (name == "default" && self.once_in(4)).then_some(true),
                restrict_namespace_selectors: (name == "default" && self.once_in(4)).then_some(true),
                trust_pod_ip_annotations: (name == "default" && self.once_in(3)).then_some(true),
                ..FelixConfiguration::default()
            };
            objects.push(Object::FelixConfiguration(Arc::new(configuration)));
        }
        for index in 0..2 + self.below(7) {
            let mut policy = self.policy(10 + index);
            let (do_not_track, pre_dnat, apply_on_forward) = self.pick(&[
                (true, false, true),
                (false, true, true),
                (false, false, true),
                (false, false, false),
            ]);
            policy.flags = PolicyFlags { do_not_track, pre_dnat, apply_on_forward, ..policy.flags };
            if pre_dnat {
                policy.governs_ingress = true;
                policy.governs_egress = false;
                policy.egress.clear();
            }
            objects.push(Object::Policy(Arc::new(policy)));
        }
        let mut changes: Vec<Change> = objects.into_iter().map(Change::Upsert).collect();
        let places = [("n1", ""), ("n1", "eth0"), ("n1", "eth1"), ("n2", ""), ("n2", "eth0")];
        for (id, (node, name)) in (1..).zip(places) {
            changes.push(Change::Interface(HostInterface {
                id: HostId(id),
                node: node.to_owned(),
                name: name.to_owned(),
                addresses: self.list(3, Self::address),
                is_pod_side: name.is_empty(),
            }));
        }
        changes
    }

    fn failsafe(&mut self) -> Failsafe {
        Failsafe { protocol: self.pick(&[6, 17, 132]), port: self.pick(&PORTS), net: self.some(2, Self::net) }
    }

    /// A packet between addresses of the pools.
    pub fn packet(&mut self) -> PacketTuple {
        let (source, destination) = (self.pick(&ADDRESSES), self.pick(&ADDRESSES));
        let (source, destination) = if self.once_in(3) {
            (twin(source), twin(destination))
        } else {
            (source.to_owned(), destination.to_owned())
        };
        let protocol = self.pick(&PROTOCOLS);
        let has_ports = matches!(protocol, 6 | 17 | 132 | 136) && !self.once_in(12);
        let (one, other) = (self.pick(&PORTS), self.pick(&PORTS));
        let is_icmp = matches!(protocol, 1 | 58) && !self.once_in(12);
        PacketTuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            source_port: has_ports.then_some(one),
            destination_port: has_ports.then_some(other),
            icmp: is_icmp.then(|| (self.pick(&[8, 10, 0]), self.pick(&[0, 3, 4]))),
        }
    }
}
