//! Host endpoints in few words, and a node to ask about: who is asked on the way, and how it ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_policy_engine::engine::{Change, Engine, HostInterface};
use margay_policy_engine::model::{
    Action, EndpointToHostAction, Entity, Failsafe, FelixConfiguration, HostEndpoint, Object, Pod, Policy,
    Profile, Rule,
};
use margay_policy_engine::packet::{Context, Direction, HostId, HostVerdict, PacketTuple, Verdict};
use margay_policy_engine::snapshot::Attribution;
use margay_policy_engine::walk::{
    End, Journey, Literal, NodeRef, Outcome, PodRef, Referee, Stage, Subject, walk,
};

use super::{EntityExt, Judge, PolicyExt, World, any, labels, name, packet, pod, policy, rule};

pub use margay_policy_engine::packet::Context::{Forward, Normal, PreDnat, Untracked};

pub const PODS: HostId = HostId(1);
pub const ETH0: HostId = HostId(2);
pub const ETH1: HostId = HostId(3);
pub const TUNNEL: HostId = HostId(4);
pub const OTHER_PODS: HostId = HostId(11);
pub const OTHER_ETH0: HostId = HostId(12);

/// Node `node` (192.0.2.1 on eth0, 198.51.100.1 on eth1, a tunnel wg0) and node `other` (192.0.2.2 on eth0), each with its boundary to
/// the pods.
pub fn interfaces() -> Vec<HostInterface> {
    let interface = |id, node: &str, name: &str, address: &str| HostInterface {
        id,
        node: node.to_owned(),
        name: name.to_owned(),
        addresses: address.parse().into_iter().collect(),
        is_pod_side: name.is_empty(),
    };
    vec![
        interface(PODS, "node", "", ""),
        interface(ETH0, "node", "eth0", "192.0.2.1"),
        interface(ETH1, "node", "eth1", "198.51.100.1"),
        interface(TUNNEL, "node", "wg0", "10.0.0.254"),
        interface(OTHER_PODS, "other", "", ""),
        interface(OTHER_ETH0, "other", "eth0", "192.0.2.2"),
    ]
}

/// A host endpoint of node `node` without profiles, labelled with its own name under `hep`.
pub fn hep(name: &str, interface: &str) -> HostEndpoint {
    HostEndpoint {
        name: name.to_owned(),
        labels: labels(&[("hep", name)]),
        node: "node".to_owned(),
        interface_name: interface.to_owned(),
        expected_ips: Vec::new(),
        profiles: Vec::new(),
        ports: Vec::new(),
    }
}

pub trait HepExt: Sized {
    fn on(self, node: &str) -> Self;
    fn ips(self, addresses: &str) -> Self;
    fn profile(self, name: &str) -> Self;
}

impl HepExt for HostEndpoint {
    fn on(mut self, node: &str) -> Self {
        self.node = node.to_owned();
        self
    }
    fn ips(mut self, addresses: &str) -> Self {
        self.expected_ips = addresses.split_whitespace().map(|text| text.parse().unwrap()).collect();
        self
    }
    fn profile(mut self, name: &str) -> Self {
        self.profiles.push(name.to_owned());
        self
    }
}

/// A policy that selects every host endpoint and no pod, order 1, both directions, with these rules in both.
pub fn host_policy(name: &str, rules: Vec<Rule>) -> Policy {
    policy(name, 1.0).selects("has(hep)").both(rules)
}

/// Contexts of a policy.
pub trait ContextExt: Sized {
    fn untracked(self) -> Self;
    fn pre_dnat(self) -> Self;
    fn on_forward(self) -> Self;
}

impl ContextExt for Policy {
    fn untracked(mut self) -> Self {
        self.flags.do_not_track = true;
        self.flags.apply_on_forward = true;
        self
    }
    fn pre_dnat(mut self) -> Self {
        self.flags.pre_dnat = true;
        self.flags.apply_on_forward = true;
        self.only(Direction::Ingress)
    }
    fn on_forward(mut self) -> Self {
        self.flags.apply_on_forward = true;
        self
    }
}

pub fn deny_all() -> Vec<Rule> {
    vec![rule(Action::Deny)]
}

pub fn allow_all() -> Vec<Rule> {
    vec![rule(Action::Allow)]
}

/// Allows what is sent to one of `nets`.
pub fn allow_to(nets: &str) -> Rule {
    Rule { destination: any().nets(nets), ..rule(Action::Allow) }
}

/// Allows what is sent to port `port`, TCP or UDP alike.
pub fn allow_to_port(protocol: u8, ports: &str) -> Rule {
    Rule { protocol: Some(protocol), destination: any().ports(ports), ..rule(Action::Allow) }
}

impl World {
    /// Pods ns/a and ns/b on `node`, ns/c on `other`, in a namespace whose profile allows everything.
    pub fn two_nodes() -> Self {
        let mut world = Self::new();
        world.namespace("ns", &[]);
        for (key, address, node) in
            [("ns/a", "10.0.0.1", "node"), ("ns/b", "10.0.0.2", "node"), ("ns/c", "10.0.1.1", "other")]
        {
            let pod = Pod { node: Some(node.to_owned()), ..pod(key, address, &[("app", key)], &[]) };
            world.model.insert(Object::Pod(Arc::new(pod)));
        }
        world
    }

    pub fn hep(&mut self, endpoint: HostEndpoint) -> &mut Self {
        self.model.insert(Object::HostEndpoint(Arc::new(endpoint)));
        self
    }

    pub fn profile(&mut self, name: &str, rules: Vec<Rule>) -> &mut Self {
        self.model.insert(Object::Profile(Arc::new(Profile {
            name: name.to_owned(),
            ingress: rules.clone(),
            egress: rules,
            labels: labels(&[]),
        })));
        self
    }

    pub fn hosts(&self) -> Hosts {
        let mut engine = Engine::with_all_pods_local(self.model.clone());
        for interface in interfaces() {
            engine.apply(Change::Interface(interface));
        }
        Hosts { judge: Judge::new(engine), endpoint_to_host: EndpointToHostAction::Accept }
    }
}

/// A FelixConfiguration with these failsafe ports: protocol, port, and net where there is one.
pub fn failsafe_ports(name: &str, inbound: &[(u8, u16, &str)], outbound: &[(u8, u16, &str)]) -> Object {
    let list = |ports: &[(u8, u16, &str)]| {
        let failsafe = |(protocol, port, net): &(u8, u16, &str)| Failsafe {
            protocol: *protocol,
            port: *port,
            net: (!net.is_empty()).then(|| net.parse().unwrap()),
        };
        Some(ports.iter().map(failsafe).collect())
    };
    Object::FelixConfiguration(Arc::new(FelixConfiguration {
        name: name.to_owned(),
        failsafe_inbound: list(inbound),
        failsafe_outbound: list(outbound),
        ..FelixConfiguration::default()
    }))
}

/// A world with interfaces. Asks the tables and the oracle, and insists that they agree.
pub struct Hosts {
    pub judge: Judge,
    pub endpoint_to_host: EndpointToHostAction,
}

impl Hosts {
    fn literal(&self) -> Literal<'_> {
        let engine = &self.judge.engine;
        Literal { model: engine.model(), locals: engine.locals(), interfaces: engine.interfaces() }
    }

    /// What one context says; `-` when nobody is asked.
    pub fn says(&self, interface: HostId, context: Context, direction: Direction, text: &str) -> String {
        let packet = packet(text);
        match self.host(interface, context, direction, &packet) {
            None => "-".to_owned(),
            Some((verdict, _)) => format!("{verdict:?}"),
        }
    }

    /// Who decides in one context.
    pub fn decided_by(
        &self,
        interface: HostId,
        context: Context,
        direction: Direction,
        text: &str,
    ) -> String {
        let by = self.host(interface, context, direction, &packet(text)).expect("somebody is asked").1;
        format!("{}/{}/{}/{}/{}", by.tier, by.kind, by.namespace, by.name, by.rule)
    }

    /// A pod of the world as an end; its node is `node` or `other`.
    pub fn end(&self, pod: &str) -> End<'_> {
        let engine = &self.judge.engine;
        let pod = name(pod);
        let local = engine.locals().values().find(|local| local.pod == pod).expect("the pod exists");
        let node = match engine.model().pods[&pod].node.as_deref() {
            Some("node") => Some(NODE),
            Some("other") => Some(OTHER),
            _ => None,
        };
        End::Pod { key: &local.pod, endpoint: Some(local.id), node }
    }

    pub fn trip<'a>(&'a self, text: &str, from: End<'a>, to: End<'a>) -> Trip<'a> {
        let journey = Journey {
            packet: packet(text),
            addressed_to: None,
            from,
            to,
            through: None,
            endpoint_to_host: self.endpoint_to_host,
            pods_take_untracked: false,
        };
        Trip { hosts: self, journey }
    }
}

impl Referee for Hosts {
    fn pod(
        &self,
        pod: PodRef<'_>,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<(Verdict, Attribution)> {
        self.judge.leg(direction, &format!("{}/{}", pod.key.namespace, pod.key.name), packet)
    }

    fn host(
        &self,
        interface: HostId,
        context: Context,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<(HostVerdict, Attribution)> {
        let expected = self.literal().host(interface, context, direction, packet);
        let found = self.judge.snapshot.host(interface, context, direction, packet);
        assert_eq!(
            found, expected,
            "tables (left) and oracle (right) differ: {interface:?} {context:?} {direction:?} {packet:?}"
        );
        found
    }
}

/// A journey under construction.
pub struct Trip<'a> {
    pub hosts: &'a Hosts,
    pub journey: Journey<'a>,
}

impl<'a> Trip<'a> {
    /// The destination before translation, as `192.0.2.1:30000`.
    pub fn via(mut self, text: &str) -> Self {
        let address: std::net::SocketAddr = text.parse().unwrap();
        self.journey.addressed_to = Some((address.ip(), Some(address.port())));
        self
    }

    pub fn walk(&self) -> Outcome<'a> {
        walk(&self.journey, self.hosts)
    }

    pub fn verdict(&self) -> Verdict {
        self.walk().ending.verdict()
    }

    /// Everybody who was asked, as in `node preDNAT Ingress`.
    pub fn asked(&self) -> Vec<String> {
        self.walk().stages.iter().map(stage_text).collect()
    }
}

pub fn stage_text(stage: &Stage<'_>) -> String {
    let reply = if stage.is_reply { " reply" } else { "" };
    format!("{}{reply}", asked_text(stage.subject, stage.context, stage.direction))
}

/// `ns/a Egress`, `node eth0 forward Ingress`.
pub fn asked_text(subject: Subject<'_>, context: Context, direction: Direction) -> String {
    let interface = match subject {
        Subject::Pod(key) => return format!("{}/{} {direction:?}", key.namespace, key.name),
        Subject::Host(PODS) => "node pods",
        Subject::Host(ETH0) => "node eth0",
        Subject::Host(ETH1) => "node eth1",
        Subject::Host(TUNNEL) => "node wg0",
        Subject::Host(OTHER_PODS) => "other pods",
        Subject::Host(OTHER_ETH0) => "other eth0",
        Subject::Host(HostId(number)) => panic!("no interface has number {number}"),
    };
    format!("{interface} {} {direction:?}", context.as_str())
}

/// Node `node` by eth0.
pub const NODE: NodeRef<'static> = NodeRef { name: "node", pods: Some(PODS), wire: Some(ETH0) };
/// Node `other` by eth0.
pub const OTHER: NodeRef<'static> = NodeRef { name: "other", pods: Some(OTHER_PODS), wire: Some(OTHER_ETH0) };
