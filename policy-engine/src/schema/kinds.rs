//! The kinds, one function each: what stands in their `spec`.

use super::rules::{
    elsewhere, global_fields, kubernetes_fields, policy_fields, protocol, rules, staged_field,
};
use super::shape::{
    Shape, boolean, integer, list, mapping, number, required, ruled, selector, text, text_map, text_up_to,
    words,
};

/// Policy model 2.1.
pub(super) fn network_policy(staged: bool) -> Shape {
    let mut fields = policy_fields();
    fields.extend(staged.then(staged_field));
    alone_when_deleting(mapping(fields), staged)
}

/// Policy model 2.2 and 4.5.
pub(super) fn global_network_policy(staged: bool) -> Shape {
    let mut fields = policy_fields();
    fields.extend(global_fields());
    fields.extend(staged.then(staged_field));
    let is = |name: &str| format!("(has(self.{name}) && self.{name})");
    let (raw, early, forward) = (is("doNotTrack"), is("preDNAT"), is("applyOnForward"));
    let spec = ruled(
        mapping(fields),
        &format!("!({raw} && {early})"),
        "preDNAT excludes doNotTrack; write two policies",
    );
    let spec = ruled(
        spec,
        &format!("!({raw} || {early}) || {forward}"),
        "doNotTrack and preDNAT need applyOnForward: true beside them",
    );
    let spec = ruled(
        spec,
        &format!("!{early} || !has(self.egress) || self.egress.size() == 0"),
        "a preDNAT policy has no egress rules",
    );
    alone_when_deleting(spec, staged)
}

/// Policy model 2.6, its last sentence.
fn alone_when_deleting(spec: Shape, staged: bool) -> Shape {
    if !staged {
        return spec;
    }
    let rule = "!has(self.stagedAction) || self.stagedAction != 'Delete' || !(has(self.ingress) && self.ingress.size() > 0 || \
                has(self.egress) && self.egress.size() > 0)";
    ruled(spec, rule, "stagedAction Delete stands alone, with tier at most; remove the rules")
}

/// Policy model 2.6.
pub(super) fn staged_kubernetes_network_policy() -> Shape {
    let mut fields = kubernetes_fields();
    fields.push(staged_field());
    alone_when_deleting(mapping(fields), true)
}

/// Policy model 2.3, 32.5.
pub(super) fn tier() -> Shape {
    mapping(vec![
        ("order", "Its place among the tiers, lower first; 1000000 if absent.", number()),
        (
            "defaultAction",
            "What happens at its end to what no rule decided; Deny if absent.",
            words(&["", "Deny", "Pass", "Allow"]),
        ),
    ])
}

/// Policy model 2.4.
pub(super) fn network_set() -> Shape {
    mapping(vec![
        ("nets", "Networks and addresses that belong to it.", list(text_up_to(64))),
        ("allowedEgressDomains", "Domains whose addresses belong to it.", list(text_up_to(1024))),
    ])
}

/// Policy model 2.5.
pub(super) fn host_endpoint() -> Shape {
    let port = mapping(vec![
        ("name", "Name of the port, for rules.", text_up_to(128)),
        ("protocol", "Its protocol, by name or number.", protocol()),
        ("port", "Its number.", integer(1, 65_535)),
    ]);
    let mut interface = text_up_to(15);
    interface["pattern"] = r"^(\*|[A-Za-z0-9_.-]*)$".into();
    let spec = mapping(vec![
        ("node", "The node that has the interface.", text_up_to(253)),
        ("interfaceName", "The interface, or \"*\" for all of them.", interface),
        (
            "expectedIPs",
            "Addresses of the interface; peers of policies know it by them.",
            list(text_up_to(64)),
        ),
        ("profiles", "Profiles that decide when no policy did.", list(text_up_to(253))),
        ("ports", "Named ports.", list(required(port, &["name", "port", "protocol"]))),
    ]);
    let rule = "(has(self.interfaceName) && self.interfaceName != '') || (has(self.expectedIPs) && self.expectedIPs.size() > 0)";
    required(
        ruled(spec, rule, "write interfaceName or expectedIPs; one of them finds the interface"),
        &["node"],
    )
}

/// Policy model 2.7.
pub(super) fn profile() -> Shape {
    mapping(vec![
        ("ingress", "Rules for what comes in, in order.", rules()),
        ("egress", "Rules for what goes out, in order.", rules()),
        ("labelsToApply", "Labels of every endpoint that lists the profile.", text_map()),
    ])
}

/// Policy model 7.8.
pub(super) fn kube_controllers_configuration() -> Shape {
    let switch = || words(&["", "Enabled", "Disabled"]);
    let template = mapping(vec![
        ("generateName", "Ending of the names of its host endpoints.", text_up_to(253)),
        ("interfaceCIDRs", "Interfaces with an address in one of these networks.", list(text_up_to(64))),
        ("interfacePattern", "Interfaces whose name matches this regular expression.", text()),
        ("labels", "Labels of its host endpoints.", text_map()),
        ("annotations", "Annotations of its host endpoints.", text_map()),
        ("nodeSelector", "Only nodes with such labels.", selector()),
    ]);
    let host_endpoint = mapping(vec![
        ("autoCreate", "Whether every node gets a host endpoint of its own.", switch()),
        ("createDefaultHostEndpoint", "Whether that one is for all interfaces; Enabled if absent.", switch()),
        ("templates", "More host endpoints for each node.", list(required(template, &["generateName"]))),
    ]);
    let mut node = vec![("hostEndpoint", "Automatic host endpoints.", host_endpoint)];
    node.extend(elsewhere(["reconcilerPeriod", "syncLabels", "leakGracePeriod"]));
    let mut controllers = vec![("node", "The node controller.", mapping(node))];
    controllers.extend(elsewhere([
        "policy",
        "workloadEndpoint",
        "serviceAccount",
        "namespace",
        "loadBalancer",
        "policyMigration",
        "routereflector",
    ]));
    let mut spec = vec![("controllers", "What each controller does.", mapping(controllers))];
    spec.extend(elsewhere([
        "logSeverityScreen",
        "healthChecks",
        "etcdV3CompactionPeriod",
        "prometheusMetricsPort",
        "debugProfilePort",
    ]));
    mapping(spec)
}

/// Policy model 2.14, 32.2.
pub(super) fn ip_pool() -> Shape {
    let mode = || words(&["", "Never", "Always", "CrossSubnet"]);
    let fixed = |shape, name: &str| {
        ruled(shape, "self == oldSelf", &format!("{name} never changes; make another pool"))
    };
    let uses = super::shape::list_up_to(3, words(&["Workload", "Tunnel", "LoadBalancer"]));
    let spec = mapping(vec![
        ("cidr", "The addresses of the pool; never changes.", fixed(text_up_to(64), "cidr")),
        ("natOutgoing", "Whether what leaves the pools gets the node's address.", boolean()),
        ("ipipMode", "When packets are carried in IPIP.", mode()),
        ("vxlanMode", "When packets are carried in VXLAN.", mode()),
        ("disabled", "Whether no new addresses are given.", boolean()),
        (
            "blockSize",
            "Prefix length of what one node gets; never changes.",
            fixed(integer(20, 128), "blockSize"),
        ),
        ("nodeSelector", "Nodes that take addresses from it.", selector()),
        ("namespaceSelector", "Namespaces whose pods take addresses from it.", selector()),
        ("allowedUses", "What its addresses are for.", uses),
        (
            "assignmentMode",
            "Whether it gives addresses without being named.",
            words(&["", "Automatic", "Manual"]),
        ),
        (
            "encryption",
            "Whether traffic of its addresses is encrypted between nodes.",
            words(&["", "WireGuard", "None"]),
        ),
        ("disableBGPExport", "Kept for other programs.", boolean()),
    ]);
    required(spec, &["cidr"])
}

/// What is known of a Calico Node.
pub(super) fn calico_node() -> Shape {
    let address = |what| ("address", what, text_up_to(64));
    let mut bgp = vec![
        ("ipv4Address", "Its IPv4 address.", text_up_to(64)),
        ("ipv6Address", "Its IPv6 address.", text_up_to(64)),
        ("ipv4IPIPTunnelAddr", "Address of its IPIP device.", text_up_to(64)),
    ];
    bgp.extend(elsewhere(["asNumber", "routeReflectorClusterID"]));
    let wireguard = vec![
        ("interfaceIPv4Address", "IPv4 address of its WireGuard device.", text_up_to(64)),
        ("interfaceIPv6Address", "IPv6 address of its WireGuard device.", text_up_to(64)),
    ];
    let listed = mapping(vec![address("The address."), ("type", "InternalIP counts.", text())]);
    let interface = mapping(vec![
        ("name", "Name of the interface.", text()),
        ("addresses", "Its addresses.", list(text_up_to(64))),
    ]);
    let mut spec = vec![
        ("bgp", "Addresses, as routing knows them.", mapping(bgp)),
        ("ipv4VXLANTunnelAddr", "IPv4 address of its VXLAN device.", text_up_to(64)),
        ("ipv6VXLANTunnelAddr", "IPv6 address of its VXLAN device.", text_up_to(64)),
        ("wireguard", "Addresses of WireGuard.", mapping(wireguard)),
        ("addresses", "Its addresses.", list(listed)),
        ("interfaces", "Its interfaces.", list(interface)),
    ];
    spec.extend(elsewhere(["orchRefs", "vxlanTunnelMACAddr", "vxlanTunnelMACAddrV6"]));
    mapping(spec)
}
