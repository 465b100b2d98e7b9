//! Configuration objects that have a say in policy (policy model 2.14, 7.8, 27), and what they come to for one node.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Labels, Model};

/// A port that host endpoint policy never closes (policy model 11.9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failsafe {
    /// IP protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// The packet's destination port.
    pub port: u16,
    /// Inbound: the packet's source is in here; outbound: its destination. `None`: everything.
    pub net: Option<IpNet>,
}

/// One FelixConfiguration: `default`, or `node.<name>`. Absent fields say nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FelixConfiguration {
    /// Name.
    pub name: String,
    /// `failsafeInboundHostPorts`; an empty list disables them.
    pub failsafe_inbound: Option<Vec<Failsafe>>,
    /// `failsafeOutboundHostPorts`.
    pub failsafe_outbound: Option<Vec<Failsafe>>,
    /// `defaultEndpointToHostAction`.
    pub endpoint_to_host: Option<EndpointToHostAction>,
    /// `trustPodIPAnnotations` (project).
    pub trust_pod_ip_annotations: Option<bool>,
    /// `restrictNamespaceSelectors` (project, PM-D4): a namespaceSelector selects namespaced objects only.
    pub restrict_namespace_selectors: Option<bool>,
    /// `allowUnenforcedCriteria` (project, PM-D15): rules whose criteria are not enforced behave as in Calico.
    pub allow_unenforced_criteria: Option<bool>,
    /// Every other parameter of policy model 27 that was written, as canonical text by its field name.
    pub others: std::collections::BTreeMap<String, String>,
}

/// What a pod's packet to its own node meets after its egress policy (policy model 12.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointToHostAction {
    /// Drop.
    #[default]
    Drop,
    /// Left to the host's own firewall.
    Return,
    /// Accepted.
    Accept,
}

/// What the sender of a denied packet gets (policy model 14.1, 32.9). No part of a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DenyAction {
    /// Nothing.
    #[default]
    Drop,
    /// A TCP reset, or ICMP's "administratively prohibited".
    Reject,
}

/// What the configuration comes to for one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Inbound ports that host endpoint policy never closes.
    pub failsafe_inbound: Vec<Failsafe>,
    /// Outbound ports.
    pub failsafe_outbound: Vec<Failsafe>,
    /// `None`: no FelixConfiguration says, the agent's own default holds.
    pub endpoint_to_host: Option<EndpointToHostAction>,
    /// Whether pods of other nodes may claim addresses by annotation (PM-D24).
    pub trust_pod_ip_annotations: bool,
    /// PM-D4.
    pub restrict_namespace_selectors: bool,
    /// PM-D15.
    pub allow_unenforced_criteria: bool,
    /// What those are told whom a policy denies that does not say itself: Reject where `iptablesFilterDenyAction` or
    /// `nftablesFilterDenyAction` says so.
    pub deny_action: DenyAction,
}

/// The parameters of policy model 14.1; a dataplane that is neither heeds both.
const DENY_ACTIONS: [&str; 2] = ["iptablesFilterDenyAction", "nftablesFilterDenyAction"];

/// Policy model 11.9.
const INBOUND: [(u8, u16); 9] =
    [(6, 22), (17, 68), (6, 179), (6, 2379), (6, 2380), (6, 5473), (6, 6443), (6, 6666), (6, 6667)];
const OUTBOUND: [(u8, u16); 9] =
    [(17, 53), (17, 67), (6, 179), (6, 2379), (6, 2380), (6, 5473), (6, 6443), (6, 6666), (6, 6667)];

impl Default for Settings {
    fn default() -> Self {
        let list = |ports: [(u8, u16); 9]| {
            ports
                .iter()
                .map(|(protocol, port)| Failsafe { protocol: *protocol, port: *port, net: None })
                .collect()
        };
        Self {
            failsafe_inbound: list(INBOUND),
            failsafe_outbound: list(OUTBOUND),
            endpoint_to_host: None,
            trust_pod_ip_annotations: false,
            restrict_namespace_selectors: false,
            allow_unenforced_criteria: false,
            deny_action: DenyAction::Drop,
        }
    }
}

impl Settings {
    /// Returns what holds on `node`: the object `node.<node>` before `default` (policy model 27), field by field.
    pub fn of_node(model: &Model, node: &str) -> Self {
        let mut settings = Self::default();
        for name in ["default".to_owned(), format!("node.{node}")] {
            let Some(written) = model.felix_configurations.get(&name) else { continue };
            if let Some(list) = &written.failsafe_inbound {
                settings.failsafe_inbound.clone_from(list);
            }
            if let Some(list) = &written.failsafe_outbound {
                settings.failsafe_outbound.clone_from(list);
            }
            settings.endpoint_to_host = written.endpoint_to_host.or(settings.endpoint_to_host);
            let over = |value: &mut bool, written: Option<bool>| *value = written.unwrap_or(*value);
            over(&mut settings.trust_pod_ip_annotations, written.trust_pod_ip_annotations);
            over(&mut settings.restrict_namespace_selectors, written.restrict_namespace_selectors);
            over(&mut settings.allow_unenforced_criteria, written.allow_unenforced_criteria);
        }
        let rejects = |name: &&str| model.parameter_of(node, name) == Some("Reject");
        if DENY_ACTIONS.iter().any(rejects) {
            settings.deny_action = DenyAction::Reject;
        }
        settings
    }
}

impl Model {
    /// Returns the settings that decide what rules and addresses mean, for the node that the Model is read for. Where nodes have different
    /// ones, each leg of a packet is judged by those of the node that judges it.
    pub fn settings_of_rules(&self) -> Settings {
        Settings::of_node(self, &self.here)
    }

    /// Returns what is written for a parameter that policy itself does not read, as canonical text: `node.<node>` before `default`.
    pub fn parameter_of(&self, node: &str, name: &str) -> Option<&str> {
        let written = |object: &str| self.felix_configurations.get(object)?.others.get(name);
        written(&format!("node.{node}")).or_else(|| written("default")).map(String::as_str)
    }

    /// Returns the nodes for which rules and addresses mean something else, or denials are told otherwise, than for the cluster as a whole.
    pub fn nodes_apart(&self) -> Vec<&str> {
        let of_rules = |node: &str| {
            let of = Settings::of_node(self, node);
            let switches =
                (of.trust_pod_ip_annotations, of.restrict_namespace_selectors, of.allow_unenforced_criteria);
            (switches, of.deny_action)
        };
        let common = of_rules("");
        let named = self.felix_configurations.keys().filter_map(|name| name.strip_prefix("node."));
        named.filter(|node| !node.is_empty() && of_rules(node) != common).collect()
    }
}

/// An IPPool (policy model 2.14). It carries no policy; other parts ask whether an address is inside a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct IpPool {
    /// Name.
    pub name: String,
    /// Addresses of the pool, masked.
    pub cidr: IpNet,
    /// Source NAT for what leaves all pools.
    pub nat_outgoing: bool,
    /// `spec.disabled`.
    pub disabled: bool,
    /// Everything else that was written under `spec`, as canonical text by field name.
    pub others: std::collections::BTreeMap<String, String>,
}

/// Automatic host endpoints (policy model 7.8): what KubeControllersConfiguration says about them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KubeControllersConfiguration {
    /// Name; `default` is the one that counts.
    pub name: String,
    /// `autoCreate: Enabled`.
    pub auto_create: bool,
    /// `createDefaultHostEndpoint`; Enabled unless told otherwise.
    pub create_default: bool,
    /// `templates`.
    pub templates: Vec<HostEndpointTemplate>,
}

/// One entry of `templates`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostEndpointTemplate {
    /// `generateName`.
    pub generate_name: String,
    /// `interfaceCIDRs`.
    pub interface_cidrs: Vec<IpNet>,
    /// `interfacePattern`, a regular expression that compiles.
    pub interface_pattern: Option<String>,
    /// `labels`.
    pub labels: Labels,
    /// `annotations`; informative.
    pub annotations: Labels,
    /// `nodeSelector` over node labels; `None` selects every node.
    pub node_selector: Option<crate::selector::Selector>,
}

/// A Calico Node object: addresses beside those of the Kubernetes Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CalicoNode {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// BGP, IPIP, VXLAN, WireGuard and InternalIP addresses, in the order of policy model 7.8, without duplicates.
    pub addresses: Vec<IpAddr>,
    /// Interfaces that it lists, with their addresses.
    pub interfaces: Vec<(String, Vec<IpAddr>)>,
}
