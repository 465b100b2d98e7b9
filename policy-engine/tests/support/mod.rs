//! Small worlds for tests: objects in few words, packets as text, and a judge that always asks both the tables and the oracle.

#![allow(dead_code, unused_imports, reason = "every test binary uses its own part")]

pub mod chance;
pub mod hosts;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::{
    Action, EndpointSlice, Entity, IcmpMatch, Labels, Model, NamedPort, Namespace, NamespacedName,
    NetworkSet, NetworkSetKey, Object, Order, Pod, Policy, PolicyFlags, PolicyKey, PolicyKind, PortMatch,
    Rule, ServiceAccount, StagedAction, Tier, TierDefault,
};
use margay_policy_engine::oracle;
use margay_policy_engine::packet::{Direction, EndpointId, PacketTuple, Verdict};
use margay_policy_engine::selector::Selector;
use margay_policy_engine::snapshot::{Attribution, Snapshot};

pub use margay_policy_engine::packet::Direction::{Egress, Ingress};
pub use margay_policy_engine::packet::Verdict::{Allow, Deny};

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap();
    NamespacedName { namespace: namespace.to_owned(), name: name.to_owned() }
}

pub fn selector(text: &str) -> Selector {
    Selector::parse(text).unwrap()
}

/// `10.0.0.1` stays, or becomes its twin in the other family: the same 32 bits at the top of an IPv6 address.
pub fn twin(text: &str) -> String {
    let (address, length) =
        text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let v4: std::net::Ipv4Addr = address.parse().unwrap();
    let v6 = std::net::Ipv6Addr::from(u128::from(u32::from(v4)) << 96);
    match length {
        Some(length) => format!("{v6}/{length}"),
        None => v6.to_string(),
    }
}

/// A Model under construction.
pub struct World {
    pub model: Model,
}

impl World {
    pub fn new() -> Self {
        Self { model: Model::with_builtins() }
    }

    pub fn namespace(&mut self, name: &str, pairs: &[(&str, &str)]) -> &mut Self {
        let namespace = Namespace { name: name.to_owned(), labels: labels(pairs) };
        self.model.insert(Object::Namespace(Arc::new(namespace)));
        self
    }

    pub fn service_account(&mut self, key: &str, pairs: &[(&str, &str)]) -> &mut Self {
        self.model.insert(Object::ServiceAccount(Arc::new(ServiceAccount {
            key: name(key),
            labels: labels(pairs),
        })));
        self
    }

    /// `addresses` are separated by blanks.
    pub fn pod(
        &mut self,
        key: &str,
        addresses: &str,
        pairs: &[(&str, &str)],
        ports: &[(&str, u8, u16)],
    ) -> &mut Self {
        self.model.insert(Object::Pod(Arc::new(pod(key, addresses, pairs, ports))));
        self
    }

    pub fn tier(&mut self, name: &str, order: f64, default_action: TierDefault) -> &mut Self {
        self.model.insert(Object::Tier(Arc::new(Tier {
            name: name.to_owned(),
            order: Order(order),
            default_action,
        })));
        self
    }

    pub fn policy(&mut self, policy: Policy) -> &mut Self {
        self.model.insert(Object::Policy(Arc::new(policy)));
        self
    }

    pub fn network_set(&mut self, name: &str, nets: &str, pairs: &[(&str, &str)]) -> &mut Self {
        let key = NetworkSetKey { namespace: None, name: name.to_owned() };
        let nets = nets.split_whitespace().map(|net| net.parse().unwrap()).collect();
        self.model.insert(Object::NetworkSet(Arc::new(NetworkSet {
            key,
            labels: labels(pairs),
            nets,
            domains: Vec::new(),
        })));
        self
    }

    pub fn slice(&mut self, key: &str, service: &str, addresses: &str, ports: &[(u8, u16)]) -> &mut Self {
        let slice = EndpointSlice {
            key: name(key),
            service: service.to_owned(),
            addresses: addresses.split_whitespace().map(|address| address.parse().unwrap()).collect(),
            ports: ports.to_vec(),
        };
        self.model.insert(Object::EndpointSlice(Arc::new(slice)));
        self
    }

    pub fn all_local(&self) -> Judge {
        Judge::new(Engine::with_all_pods_local(self.model.clone()))
    }
}

pub fn pod(key: &str, addresses: &str, pairs: &[(&str, &str)], ports: &[(&str, u8, u16)]) -> Pod {
    let key = name(key);
    let mut labels = labels(pairs);
    labels.insert("projectcalico.org/namespace".to_owned(), key.namespace.clone());
    labels.insert("projectcalico.org/orchestrator".to_owned(), "k8s".to_owned());
    let ports = ports
        .iter()
        .map(|(name, protocol, port)| NamedPort {
            name: (*name).to_owned(),
            protocol: *protocol,
            port: *port,
            host_port: None,
            host_ip: None,
        })
        .collect();
    Pod {
        key,
        uid: String::new(),
        labels: labels.into(),
        service_account: None,
        node: Some("node".to_owned()),
        host_network: false,
        finished: false,
        addresses: addresses.split_whitespace().map(|address| address.parse().unwrap()).collect(),
        annotated_addresses: Vec::new(),
        ports,
        started: String::new(),
        annotations: BTreeMap::new(),
    }
}

/// A GlobalNetworkPolicy in tier `default` that selects everything and governs both directions.
pub fn policy(name: &str, order: f64) -> Policy {
    Policy {
        key: PolicyKey { kind: PolicyKind::GlobalNetworkPolicy, namespace: None, name: name.to_owned() },
        tier: "default".to_owned(),
        order: Order(order),
        selector: Some(selector("all()")),
        governs_ingress: true,
        governs_egress: true,
        ingress: Vec::new(),
        egress: Vec::new(),
        flags: PolicyFlags::default(),
        staged: None,
    }
}

/// Short forms for building policies.
pub trait PolicyExt: Sized {
    fn tier(self, tier: &str) -> Self;
    fn selects(self, text: &str) -> Self;
    fn only(self, direction: Direction) -> Self;
    fn both(self, rules: Vec<Rule>) -> Self;
    fn staged(self) -> Self;
}

impl PolicyExt for Policy {
    fn tier(mut self, tier: &str) -> Self {
        self.tier = tier.to_owned();
        self
    }
    fn selects(mut self, text: &str) -> Self {
        self.selector = Some(selector(text));
        self
    }
    fn only(mut self, direction: Direction) -> Self {
        self.governs_ingress = direction == Ingress;
        self.governs_egress = direction == Egress;
        self
    }
    fn both(mut self, rules: Vec<Rule>) -> Self {
        self.ingress = rules.clone();
        self.egress = rules;
        self
    }
    fn staged(mut self) -> Self {
        self.staged = Some(StagedAction::Set);
        self
    }
}

pub fn rule(action: Action) -> Rule {
    Rule::everything(action)
}

/// Short forms for building rules.
pub trait RuleExt: Sized {
    fn protocol(self, protocol: u8) -> Self;
    fn not_protocol(self, protocol: u8) -> Self;
    fn icmp(self, kind: u8, code: Option<u8>) -> Self;
    fn not_icmp(self, kind: u8, code: Option<u8>) -> Self;
    fn from(self, entity: Entity) -> Self;
    fn to(self, entity: Entity) -> Self;
}

impl RuleExt for Rule {
    fn protocol(mut self, protocol: u8) -> Self {
        self.protocol = Some(protocol);
        self
    }
    fn not_protocol(mut self, protocol: u8) -> Self {
        self.not_protocol = Some(protocol);
        self
    }
    fn icmp(mut self, kind: u8, code: Option<u8>) -> Self {
        self.icmp = Some(IcmpMatch { kind: Some(kind), code });
        self
    }
    fn not_icmp(mut self, kind: u8, code: Option<u8>) -> Self {
        self.not_icmp = Some(IcmpMatch { kind: Some(kind), code });
        self
    }
    fn from(mut self, entity: Entity) -> Self {
        self.source = entity;
        self
    }
    fn to(mut self, entity: Entity) -> Self {
        self.destination = entity;
        self
    }
}

pub fn any() -> Entity {
    Entity::default()
}

/// Short forms for one side of a rule. Lists are separated by blanks.
pub trait EntityExt: Sized {
    fn nets(self, nets: &str) -> Self;
    fn not_nets(self, nets: &str) -> Self;
    fn selector(self, text: &str) -> Self;
    fn not_selector(self, text: &str) -> Self;
    fn ports(self, ports: &str) -> Self;
    fn not_ports(self, ports: &str) -> Self;
    fn service(self, key: &str) -> Self;
}

fn port_list(text: &str) -> Vec<PortMatch> {
    text.split_whitespace()
        .map(|item| match item.split_once(':').unwrap_or((item, item)) {
            (first, last) if first.bytes().all(|byte| byte.is_ascii_digit()) => {
                PortMatch::Range { first: first.parse().unwrap(), last: last.parse().unwrap() }
            }
            _ => PortMatch::Named(item.to_owned()),
        })
        .collect()
}

impl EntityExt for Entity {
    fn nets(mut self, nets: &str) -> Self {
        self.nets = nets.split_whitespace().map(|net| net.parse().unwrap()).collect();
        self
    }
    fn not_nets(mut self, nets: &str) -> Self {
        self.not_nets = nets.split_whitespace().map(|net| net.parse().unwrap()).collect();
        self
    }
    fn selector(mut self, text: &str) -> Self {
        self.selector = Some(selector(text));
        self
    }
    fn not_selector(mut self, text: &str) -> Self {
        self.not_selector = Some(selector(text));
        self
    }
    fn ports(mut self, ports: &str) -> Self {
        self.ports = port_list(ports);
        self
    }
    fn not_ports(mut self, ports: &str) -> Self {
        self.not_ports = port_list(ports);
        self
    }
    fn service(mut self, key: &str) -> Self {
        self.service = Some(name(key));
        self
    }
}

/// Reads `tcp 10.0.0.1:1024 > 10.0.0.2:80`, `icmp/8/0 10.0.0.1 > 10.0.0.2`, `253 10.0.0.1 > 10.0.0.2`; IPv6 with ports in brackets.
pub fn packet(text: &str) -> PacketTuple {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [kind, source, ">", destination] = words[..] else { panic!("not a packet: {text}") };
    let kind: Vec<&str> = kind.split('/').collect();
    let protocol = match kind[0] {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" => 1,
        "icmp6" => 58,
        number => number.parse().unwrap(),
    };
    let end = |text: &str| -> (IpAddr, Option<u16>) {
        if let Ok(end) = text.parse::<std::net::SocketAddr>() {
            (end.ip(), Some(end.port()))
        } else {
            (text.parse().unwrap(), None)
        }
    };
    let ((source, source_port), (destination, destination_port)) = (end(source), end(destination));
    let ported = matches!(protocol, 6 | 17 | 132);
    PacketTuple {
        source,
        destination,
        protocol,
        source_port: if ported { source_port.or(Some(40_000)) } else { None },
        destination_port: if ported { destination_port.or(Some(40_001)) } else { None },
        icmp: matches!(protocol, 1 | 58).then(|| {
            (
                kind.get(1).map_or(8, |text| text.parse().unwrap()),
                kind.get(2).map_or(0, |text| text.parse().unwrap()),
            )
        }),
    }
}

/// Asks the tables and the oracle, and insists that they agree.
pub struct Judge {
    pub engine: Engine,
    pub snapshot: Arc<Snapshot>,
}

impl Judge {
    pub fn new(mut engine: Engine) -> Self {
        let snapshot = engine.publish();
        Self { engine, snapshot }
    }

    pub fn apply(&mut self, change: Change) -> &mut Self {
        self.engine.apply(change);
        self
    }

    pub fn publish(&mut self) -> &mut Self {
        self.snapshot = self.engine.publish();
        self
    }

    /// The verdict for a pod's leg, or `None` when policy does not know it.
    pub fn leg(
        &self,
        direction: Direction,
        pod: &str,
        packet: &PacketTuple,
    ) -> Option<(Verdict, Attribution)> {
        let pod = name(pod);
        let expected = oracle::evaluate(self.engine.model(), self.engine.locals(), direction, &pod, packet);
        let found = self.engine.endpoint_of(&pod).and_then(|id| self.snapshot.judge(id, direction, packet));
        let found = found.map(|judgement| {
            let attribution = self.snapshot.attribution(judgement.rule).expect("every verdict has a name");
            (judgement.verdict, attribution.clone())
        });
        let trace = expected.as_ref().map(|decision| decision.trace.clone());
        let expected = expected.map(|decision| (decision.verdict, decision.attribution));
        assert_eq!(
            found, expected,
            "tables (left) and oracle (right) differ: {direction:?} {pod:?} {packet:?}\n{trace:#?}"
        );
        found
    }

    pub fn verdict(&self, direction: Direction, pod: &str, text: &str) -> Verdict {
        self.leg(direction, pod, &packet(text)).expect("the pod is known").0
    }

    pub fn decided_by(&self, direction: Direction, pod: &str, text: &str) -> String {
        let by = self.leg(direction, pod, &packet(text)).expect("the pod is known").1;
        format!("{}/{}/{}/{}/{}", by.tier, by.kind, by.namespace, by.name, by.rule)
    }
}

pub fn local(id: u32, pod: &str, uid: &str, addresses: &str) -> LocalEndpoint {
    LocalEndpoint {
        id: EndpointId(id),
        pod: name(pod),
        uid: uid.to_owned(),
        addresses: addresses.split_whitespace().map(|address| address.parse().unwrap()).collect(),
    }
}
