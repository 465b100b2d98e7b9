//! Objects that were judged once and are trusted from here on.
//!
//! Everything in this module is the *result* of decoding, defaulting (policy model 3), validation (4) and conversion
//! (6 and 7): Kubernetes policies have become [`Policy`] values like the others, selectors carry their namespace scope, protocol
//! names are numbers. `resolve`, `compile` and the oracle read nothing else. Values are behind `Arc`, so a Model is cheap to clone.

mod automatic;
mod config;
mod encryption;
mod http;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::selector::Selector;

pub use automatic::automatic_host_endpoints;
pub use config::{
    CalicoNode, DenyAction, EndpointToHostAction, Failsafe, FelixConfiguration, HostEndpointTemplate, IpPool,
    KubeControllersConfiguration, Settings,
};
pub use encryption::{Encryption, EncryptionFamily, Installation};
pub use http::{HeaderMatch, HeaderOperator, HttpMatch, PathMatch, WrittenPeer};

/// Label keys to values, ordered so that every walk repeats.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// Namespace; never empty.
    pub namespace: String,
    /// Name; never empty.
    pub name: String,
}

/// The kinds that take part in a policy's identity (policy model 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `projectcalico.org/v3` NetworkPolicy.
    NetworkPolicy,
    /// `projectcalico.org/v3` GlobalNetworkPolicy.
    GlobalNetworkPolicy,
    /// `projectcalico.org/v3` StagedNetworkPolicy.
    StagedNetworkPolicy,
    /// `projectcalico.org/v3` StagedGlobalNetworkPolicy.
    StagedGlobalNetworkPolicy,
    /// `projectcalico.org/v3` StagedKubernetesNetworkPolicy.
    StagedKubernetesNetworkPolicy,
    /// `networking.k8s.io/v1` NetworkPolicy.
    KubernetesNetworkPolicy,
    /// `policy.networking.k8s.io` ClusterNetworkPolicy.
    KubernetesClusterNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1` AdminNetworkPolicy (removed in Calico 3.32).
    KubernetesAdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1` BaselineAdminNetworkPolicy (removed in Calico 3.32).
    KubernetesBaselineAdminNetworkPolicy,
}

impl PolicyKind {
    /// Returns the text used in ordering (policy model 8.2), output and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
            Self::StagedNetworkPolicy => "StagedNetworkPolicy",
            Self::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
            Self::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
            Self::KubernetesNetworkPolicy => "KubernetesNetworkPolicy",
            Self::KubernetesClusterNetworkPolicy => "KubernetesClusterNetworkPolicy",
            Self::KubernetesAdminNetworkPolicy => "KubernetesAdminNetworkPolicy",
            Self::KubernetesBaselineAdminNetworkPolicy => "KubernetesBaselineAdminNetworkPolicy",
        }
    }
}

/// Identity of a policy: two policies of different kinds may share a name (policy model 1.2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// The kind.
    pub kind: PolicyKind,
    /// Namespace, or `None` for a global kind.
    pub namespace: Option<String>,
    /// Bare name.
    pub name: String,
}

/// `order` with "absent" as positive infinity; totally ordered, never NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Order(pub f64);

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Final for this endpoint and direction.
    Allow,
    /// Final for this endpoint and direction.
    Deny,
    /// No effect on the verdict; evaluation goes on with the next rule.
    Log,
    /// Skips the rest of the tier, its default action included.
    Pass,
}

/// Why a criterion of a rule cannot be enforced by this build. The rule follows policy model 18.2 (PM-D15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unenforced {
    /// `http` needs an application-layer proxy.
    Http,
    /// `domains` needs DNS tracking.
    Domains,
    /// An element that could not be parsed after admission (PM-D5); the text says which.
    Unparseable(String),
}

/// A port criterion.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// Inclusive on both ends; `first <= last`.
    Range {
        /// Lowest port.
        first: u16,
        /// Highest port.
        last: u16,
    },
    /// A name that endpoints declare.
    Named(String),
}

/// An ICMP criterion; `code` absent means any code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IcmpMatch {
    /// 0 to 254; absent only where a converted object named no type (matches any ICMP of the family).
    pub kind: Option<u8>,
    /// 0 to 255.
    pub code: Option<u8>,
}

/// One side of a rule. All present criteria must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entity {
    /// Address in any of these; empty means no criterion.
    pub nets: Vec<IpNet>,
    /// Address in none of these.
    pub not_nets: Vec<IpNet>,
    /// The compiled positive selector with its scope (policy model 6.3, 6.4), negative part already folded in where both exist.
    pub selector: Option<Selector>,
    /// Present only without `selector`: the address belongs to no selected object.
    pub not_selector: Option<Selector>,
    /// Port in any of these; empty means no criterion.
    pub ports: Vec<PortMatch>,
    /// Port in none of these.
    pub not_ports: Vec<PortMatch>,
    /// Endpoints of a Kubernetes Service (policy model 10.6).
    pub service: Option<NamespacedName>,
    /// Addresses of the Kubernetes nodes whose own labels are selected (policy model 32.11).
    pub nodes: Option<Selector>,
    /// Domain patterns in lower case without trailing dot (policy model 23.1); empty means no criterion.
    pub domains: Vec<String>,
    /// The peer as written; present when it has any criterion beside addresses and ports.
    pub written: Option<Arc<WrittenPeer>>,
}

/// One rule of a policy or profile.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// 4 or 6; absent means both, subject to policy model 9.2.
    pub ip_version: Option<u8>,
    /// Protocol number.
    pub protocol: Option<u8>,
    /// Protocol number that must differ.
    pub not_protocol: Option<u8>,
    /// ICMP type and code that must be equal.
    pub icmp: Option<IcmpMatch>,
    /// ICMP type and code that must not be equal.
    pub not_icmp: Option<IcmpMatch>,
    /// Who sends.
    pub source: Entity,
    /// Who receives.
    pub destination: Entity,
    /// Application-layer criteria (policy model 2.12); packets are not judged by them.
    pub http: Option<Arc<HttpMatch>>,
    /// Criteria that this build does not enforce. Non-empty: Allow and Pass never match, Deny and Log match without them.
    pub unenforced: Vec<Unenforced>,
    /// `metadata.annotations` of the rule; informative.
    pub annotations: BTreeMap<String, String>,
}

impl Rule {
    /// Returns a rule that does `action` to every packet.
    pub fn everything(action: Action) -> Self {
        Self {
            action,
            ip_version: None,
            protocol: None,
            not_protocol: None,
            icmp: None,
            not_icmp: None,
            source: Entity::default(),
            destination: Entity::default(),
            http: None,
            unenforced: Vec::new(),
            annotations: BTreeMap::new(),
        }
    }
}

/// Where policies of a host endpoint are evaluated (policy model 11.2); everything is `Normal` for pods. And how a policy denies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyFlags {
    /// `doNotTrack`.
    pub do_not_track: bool,
    /// `preDNAT`.
    pub pre_dnat: bool,
    /// `applyOnForward`.
    pub apply_on_forward: bool,
    /// Whether whoever is denied by the policy is told so (policy model 32.9); `None` leaves it to the configuration (14.1).
    pub deny_action: Option<DenyAction>,
}

/// `stagedAction` of a staged kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StagedAction {
    /// Create or replace the enforced namesake.
    Set,
    /// Remove the enforced namesake.
    Delete,
    /// Being edited by the recommendation engine.
    Learn,
    /// A dismissed recommendation.
    Ignore,
}

/// Any policy, whatever kind it was written as.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Identity.
    pub key: PolicyKey,
    /// Tier name; `default` when the manifest says nothing.
    pub tier: String,
    /// Place within the tier.
    pub order: Order,
    /// The effective selector over effective labels (policy model 6.1, 6.2). `None`: selects nothing (PM-D2, last row).
    pub selector: Option<Selector>,
    /// Governs traffic towards the endpoint.
    pub governs_ingress: bool,
    /// Governs traffic from the endpoint.
    pub governs_egress: bool,
    /// Ingress rules in order.
    pub ingress: Vec<Rule>,
    /// Egress rules in order.
    pub egress: Vec<Rule>,
    /// Host-endpoint contexts, and how it denies.
    pub flags: PolicyFlags,
    /// Present on staged kinds; they never change a verdict (policy model 19.3).
    pub staged: Option<StagedAction>,
}

/// What happens at the end of a tier to an endpoint that some policy of the tier selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TierDefault {
    /// Deny; Calico's default.
    Deny,
    /// Go on with the next tier.
    Pass,
    /// Allow (policy model 32.5).
    Allow,
}

/// An ordered group of policies.
#[derive(Clone, Debug, PartialEq)]
pub struct Tier {
    /// Name.
    pub name: String,
    /// Place among the tiers; 1,000,000 when absent (PM-D3).
    pub order: Order,
    /// Action at the end of the tier.
    pub default_action: TierDefault,
}

/// A Namespace; becomes profile `kns.<name>` (policy model 7.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels as written, without prefix.
    pub labels: Labels,
}

/// A ServiceAccount; becomes profile `ksa.<namespace>.<name>` (policy model 7.2).
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceAccount {
    /// Identity.
    pub key: NamespacedName,
    /// Labels as written, without prefix.
    pub labels: Labels,
}

/// A port that a container declares (policy model 7.3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// Name; may be empty when only `host_port` made it worth keeping.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Container port, 1 to 65535.
    pub port: u16,
    /// `hostPort`, when declared.
    pub host_port: Option<u16>,
    /// `hostIP`, when declared.
    pub host_ip: Option<IpAddr>,
}

/// The policy-relevant part of a Pod (policy model 7.3).
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Identity.
    pub key: NamespacedName,
    /// `metadata.uid`, empty when the manifest has none.
    pub uid: String,
    /// User labels (reserved prefixes removed) plus `projectcalico.org/{namespace,orchestrator,serviceaccount}`.
    /// Pods of one deployment share one value.
    pub labels: Arc<Labels>,
    /// `spec.serviceAccountName`, when set.
    pub service_account: Option<String>,
    /// `spec.nodeName`, when set.
    pub node: Option<String>,
    /// Shares the node's network: not a workload endpoint.
    pub host_network: bool,
    /// Finished: no addresses, in no set.
    pub finished: bool,
    /// `status.podIPs`; validated against the Node's podCIDRs by `resolve` (PM-D24).
    pub addresses: Vec<IpAddr>,
    /// What annotations claim where the status has none; counts only with `trustPodIPAnnotations` (PM-D24).
    pub annotated_addresses: Vec<IpAddr>,
    /// Named and host ports.
    pub ports: Vec<NamedPort>,
    /// Orders two live pods that claim one address: `status.startTime`, else creation time, as RFC 3339 text, else empty.
    pub started: String,
    /// QoS and other annotations that the dataplane reads, as written.
    pub annotations: BTreeMap<String, String>,
}

/// The policy-relevant part of a Node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// `status.addresses` of type InternalIP (then ExternalIP), in order.
    pub addresses: Vec<IpAddr>,
    /// How many of `addresses`, from the first, are of type InternalIP.
    pub internal_addresses: usize,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Annotations under `projectcalico.org/`, and those of `margay/` about encryption.
    pub annotations: BTreeMap<String, String>,
}

/// Identity of a network set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkSetKey {
    /// `None` for a GlobalNetworkSet.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

/// A labelled list of CIDRs.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSet {
    /// Identity.
    pub key: NetworkSetKey,
    /// Labels as written, plus `projectcalico.org/namespace` on the namespaced kind.
    pub labels: Labels,
    /// Members, masked.
    pub nets: Vec<IpNet>,
    /// `allowedEgressDomains`; not enforced before the DNS issue.
    pub domains: Vec<String>,
}

/// A Calico Profile object (those of namespaces and service accounts are derived, not stored).
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Name.
    pub name: String,
    /// Ingress rules in order.
    pub ingress: Vec<Rule>,
    /// Egress rules in order.
    pub egress: Vec<Rule>,
    /// Labels contributed to endpoints that list the profile.
    pub labels: Labels,
}

/// One EndpointSlice (policy model 10.6).
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    /// Identity of the slice.
    pub key: NamespacedName,
    /// Value of label `kubernetes.io/service-name`.
    pub service: String,
    /// Every parseable endpoint address, whatever its conditions.
    pub addresses: Vec<IpAddr>,
    /// (protocol number, port).
    pub ports: Vec<(u8, u16)>,
}

/// A HostEndpoint (policy model 2.5). A peer of other policies by `expected_ips`, and a target of policy in four contexts (11.2).
#[derive(Clone, Debug, PartialEq)]
pub struct HostEndpoint {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// The node it belongs to.
    pub node: String,
    /// `*`, an interface name, or empty.
    pub interface_name: String,
    /// Addresses by which other policies know it.
    pub expected_ips: Vec<IpAddr>,
    /// Profiles in order.
    pub profiles: Vec<String>,
    /// Named ports.
    pub ports: Vec<NamedPort>,
}

/// Identity of any object that the engine follows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// Namespace by name.
    Namespace(String),
    /// ServiceAccount.
    ServiceAccount(NamespacedName),
    /// Pod.
    Pod(NamespacedName),
    /// Node by name.
    Node(String),
    /// Tier by name.
    Tier(String),
    /// Any policy.
    Policy(PolicyKey),
    /// NetworkSet or GlobalNetworkSet.
    NetworkSet(NetworkSetKey),
    /// Profile by name.
    Profile(String),
    /// EndpointSlice.
    EndpointSlice(NamespacedName),
    /// HostEndpoint by name.
    HostEndpoint(String),
    /// FelixConfiguration by name.
    FelixConfiguration(String),
    /// KubeControllersConfiguration by name.
    KubeControllersConfiguration(String),
    /// IPPool by name.
    IpPool(String),
    /// Calico Node by name.
    CalicoNode(String),
    /// Installation by name.
    Installation(String),
}

/// Any object that the engine follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Namespace.
    Namespace(Arc<Namespace>),
    /// ServiceAccount.
    ServiceAccount(Arc<ServiceAccount>),
    /// Pod.
    Pod(Arc<Pod>),
    /// Node.
    Node(Arc<Node>),
    /// Tier.
    Tier(Arc<Tier>),
    /// Any policy.
    Policy(Arc<Policy>),
    /// NetworkSet or GlobalNetworkSet.
    NetworkSet(Arc<NetworkSet>),
    /// Profile.
    Profile(Arc<Profile>),
    /// EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// HostEndpoint.
    HostEndpoint(Arc<HostEndpoint>),
    /// FelixConfiguration.
    FelixConfiguration(Arc<FelixConfiguration>),
    /// KubeControllersConfiguration.
    KubeControllersConfiguration(Arc<KubeControllersConfiguration>),
    /// IPPool.
    IpPool(Arc<IpPool>),
    /// Calico Node.
    CalicoNode(Arc<CalicoNode>),
    /// Installation.
    Installation(Arc<Installation>),
}

/// Everything that is known, judged and in force. Ordered maps: every walk repeats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// The node for which the objects are read: its FelixConfiguration `node.NAME` comes before `default` (policy model 27). Empty where
    /// they are read for no node in particular.
    pub here: String,
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// Service accounts.
    pub service_accounts: BTreeMap<NamespacedName, Arc<ServiceAccount>>,
    /// Pods.
    pub pods: BTreeMap<NamespacedName, Arc<Pod>>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// Tiers by name; the built-in ones are always present (see [`Model::with_builtins`]).
    pub tiers: BTreeMap<String, Arc<Tier>>,
    /// Policies of every kind, staged ones included.
    pub policies: BTreeMap<PolicyKey, Arc<Policy>>,
    /// Network sets.
    pub network_sets: BTreeMap<NetworkSetKey, Arc<NetworkSet>>,
    /// Profile objects by name.
    pub profiles: BTreeMap<String, Arc<Profile>>,
    /// EndpointSlices.
    pub endpoint_slices: BTreeMap<NamespacedName, Arc<EndpointSlice>>,
    /// Host endpoints by name.
    pub host_endpoints: BTreeMap<String, Arc<HostEndpoint>>,
    /// FelixConfigurations by name.
    pub felix_configurations: BTreeMap<String, Arc<FelixConfiguration>>,
    /// KubeControllersConfigurations by name.
    pub kube_controllers: BTreeMap<String, Arc<KubeControllersConfiguration>>,
    /// IPPools by name.
    pub ip_pools: BTreeMap<String, Arc<IpPool>>,
    /// Calico Nodes by name.
    pub calico_nodes: BTreeMap<String, Arc<CalicoNode>>,
    /// Installations by name.
    pub installations: BTreeMap<String, Arc<Installation>>,
}

impl Eq for Order {}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Object {
    /// Returns the identity of the object.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Namespace(o) => ObjectKey::Namespace(o.name.clone()),
            Self::ServiceAccount(o) => ObjectKey::ServiceAccount(o.key.clone()),
            Self::Pod(o) => ObjectKey::Pod(o.key.clone()),
            Self::Node(o) => ObjectKey::Node(o.name.clone()),
            Self::Tier(o) => ObjectKey::Tier(o.name.clone()),
            Self::Policy(o) => ObjectKey::Policy(o.key.clone()),
            Self::NetworkSet(o) => ObjectKey::NetworkSet(o.key.clone()),
            Self::Profile(o) => ObjectKey::Profile(o.name.clone()),
            Self::EndpointSlice(o) => ObjectKey::EndpointSlice(o.key.clone()),
            Self::HostEndpoint(o) => ObjectKey::HostEndpoint(o.name.clone()),
            Self::FelixConfiguration(o) => ObjectKey::FelixConfiguration(o.name.clone()),
            Self::KubeControllersConfiguration(o) => ObjectKey::KubeControllersConfiguration(o.name.clone()),
            Self::IpPool(o) => ObjectKey::IpPool(o.name.clone()),
            Self::CalicoNode(o) => ObjectKey::CalicoNode(o.name.clone()),
            Self::Installation(o) => ObjectKey::Installation(o.name.clone()),
        }
    }
}

impl Model {
    /// Returns an empty Model with the tiers `kube-admin`, `default` and `kube-baseline`, and those of `policy.networking.k8s.io/v1alpha1`
    /// (policy model 2.3). A tier without policies has no effect.
    pub fn with_builtins() -> Self {
        let mut model = Self::default();
        for (name, order, default_action) in [
            ("kube-admin", 1_000.0, TierDefault::Pass),
            ("default", 1_000_000.0, TierDefault::Deny),
            ("kube-baseline", 10_000_000.0, TierDefault::Pass),
            ("adminnetworkpolicy", 1_000.0, TierDefault::Pass),
            ("baselineadminnetworkpolicy", 10_000_000.0, TierDefault::Pass),
        ] {
            let tier = Tier { name: name.to_owned(), order: Order(order), default_action };
            model.tiers.insert(name.to_owned(), Arc::new(tier));
        }
        model
    }

    /// Adds or replaces `object`.
    pub fn insert(&mut self, object: Object) {
        match object {
            Object::Namespace(o) => drop(self.namespaces.insert(o.name.clone(), o)),
            Object::ServiceAccount(o) => drop(self.service_accounts.insert(o.key.clone(), o)),
            Object::Pod(o) => drop(self.pods.insert(o.key.clone(), o)),
            Object::Node(o) => drop(self.nodes.insert(o.name.clone(), o)),
            Object::Tier(o) => drop(self.tiers.insert(o.name.clone(), o)),
            Object::Policy(o) => drop(self.policies.insert(o.key.clone(), o)),
            Object::NetworkSet(o) => drop(self.network_sets.insert(o.key.clone(), o)),
            Object::Profile(o) => drop(self.profiles.insert(o.name.clone(), o)),
            Object::EndpointSlice(o) => drop(self.endpoint_slices.insert(o.key.clone(), o)),
            Object::HostEndpoint(o) => drop(self.host_endpoints.insert(o.name.clone(), o)),
            Object::FelixConfiguration(o) => drop(self.felix_configurations.insert(o.name.clone(), o)),
            Object::KubeControllersConfiguration(o) => drop(self.kube_controllers.insert(o.name.clone(), o)),
            Object::IpPool(o) => drop(self.ip_pools.insert(o.name.clone(), o)),
            Object::CalicoNode(o) => drop(self.calico_nodes.insert(o.name.clone(), o)),
            Object::Installation(o) => drop(self.installations.insert(o.name.clone(), o)),
        }
    }

    /// Removes the object with identity `key`; a built-in tier goes back to its built-in form instead. Absent keys are fine.
    pub fn remove(&mut self, key: &ObjectKey) {
        match key {
            ObjectKey::Namespace(k) => drop(self.namespaces.remove(k)),
            ObjectKey::ServiceAccount(k) => drop(self.service_accounts.remove(k)),
            ObjectKey::Pod(k) => drop(self.pods.remove(k)),
            ObjectKey::Node(k) => drop(self.nodes.remove(k)),
            ObjectKey::Tier(k) => match Self::with_builtins().tiers.remove(k) {
                Some(builtin) => drop(self.tiers.insert(k.clone(), builtin)),
                None => drop(self.tiers.remove(k)),
            },
            ObjectKey::Policy(k) => drop(self.policies.remove(k)),
            ObjectKey::NetworkSet(k) => drop(self.network_sets.remove(k)),
            ObjectKey::Profile(k) => drop(self.profiles.remove(k)),
            ObjectKey::EndpointSlice(k) => drop(self.endpoint_slices.remove(k)),
            ObjectKey::HostEndpoint(k) => drop(self.host_endpoints.remove(k)),
            ObjectKey::FelixConfiguration(k) => drop(self.felix_configurations.remove(k)),
            ObjectKey::KubeControllersConfiguration(k) => drop(self.kube_controllers.remove(k)),
            ObjectKey::IpPool(k) => drop(self.ip_pools.remove(k)),
            ObjectKey::CalicoNode(k) => drop(self.calico_nodes.remove(k)),
            ObjectKey::Installation(k) => drop(self.installations.remove(k)),
        }
    }
}
