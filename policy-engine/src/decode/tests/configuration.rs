//! Policy model 2.14, 7.8, 11.9, 25.1 and 27: pools, nodes and settings.

use super::*;
use crate::model::{EndpointToHostAction, FelixConfiguration, IpPool, Model, Settings};

fn felix(spec: &str) -> std::sync::Arc<FelixConfiguration> {
    match one(&calico("FelixConfiguration", "default", spec)) {
        Decoded::Valid { object: Object::FelixConfiguration(found), .. } => found,
        other => panic!("{spec}\n{other:#?}"),
    }
}

#[test]
fn pm_27_parameters() {
    let good = [
        ("interfacePrefix: 'cali,tap'", "interfacePrefix", "cali,tap"),
        ("interfaceExclude: 'kube-ipvs0,/^veth/'", "interfaceExclude", "kube-ipvs0,/^veth/"),
        ("iptablesFilterAllowAction: return", "iptablesFilterAllowAction", "Return"),
        ("iptablesMangleAllowAction: Accept", "iptablesMangleAllowAction", "Accept"),
        ("iptablesFilterDenyAction: REJECT", "iptablesFilterDenyAction", "Reject"),
        ("nftablesFilterDenyAction: Drop", "nftablesFilterDenyAction", "Drop"),
        ("logPrefix: calico-packet", "logPrefix", "calico-packet"),
        ("logActionRateLimit: 10/second", "logActionRateLimit", "10/second"),
        ("logActionRateLimitBurst: 5", "logActionRateLimitBurst", "5"),
        ("disableConntrackInvalidCheck: true", "disableConntrackInvalidCheck", "true"),
        (
            "bpfConntrackTimeouts: {tcpEstablished: 1h, tcpFinsSeen: Auto}",
            "bpfConntrackTimeouts",
            "tcpEstablished=3600s,tcpFinsSeen=Auto",
        ),
        ("workloadSourceSpoofing: Any", "workloadSourceSpoofing", "Any"),
        ("bpfEnforceRPF: Strict", "bpfEnforceRPF", "Strict"),
        ("allowVXLANPacketsFromWorkloads: false", "allowVXLANPacketsFromWorkloads", "false"),
        ("allowIPIPPacketsFromWorkloads: true", "allowIPIPPacketsFromWorkloads", "true"),
        ("serviceLoopPrevention: Disabled", "serviceLoopPrevention", "Disabled"),
        ("kubeNodePortRanges: ['30000:32767', 80]", "kubeNodePortRanges", "30000:32767,80:80"),
        ("externalNodesList: [10.0.0.0/8, 'fd00::1']", "externalNodesList", "10.0.0.0/8,fd00::1/128"),
        ("xdpEnabled: true", "xdpEnabled", "true"),
        ("genericXDPEnabled: false", "genericXDPEnabled", "false"),
        ("maxIpsetSize: 1048576", "maxIpsetSize", "1048576"),
        ("policySyncPathPrefix: /var/run/nodeagent", "policySyncPathPrefix", "/var/run/nodeagent"),
        ("flowLogsFlushInterval: 5m", "flowLogsFlushInterval", "300s"),
        ("flowLogsPolicyEvaluationMode: Continuous", "flowLogsPolicyEvaluationMode", "Continuous"),
        ("flowLogsGoldmaneServer: 'goldmane:7443'", "flowLogsGoldmaneServer", "goldmane:7443"),
        ("flowLogsLocalReporter: Enabled", "flowLogsLocalReporter", "Enabled"),
        ("wireguardEnabled: true", "wireguardEnabled", "true"),
        ("wireguardListeningPortV6: 51821", "wireguardListeningPortV6", "51821"),
        ("wireguardInterfaceName: ''", "wireguardInterfaceName", ""),
        ("wireguardMTU: 0", "wireguardMTU", "0"),
        ("wireguardRoutingRulePriority: 99", "wireguardRoutingRulePriority", "99"),
        ("wireguardKeepAlive: 1m30.5s", "wireguardKeepAlive", "90.5s"),
        (
            "dnsTrustedServers: [10.0.0.1, '10.0.0.1:5353', '[fd00::1]:53', 'k8s-service:kube-dns', 'k8s-service:ns/dns:53']",
            "dnsTrustedServers",
            "10.0.0.1,10.0.0.1:5353,[fd00::1]:53,k8s-service:kube-dns,k8s-service:ns/dns:53",
        ),
        ("bpfDNSPolicyMode: Inline", "bpfDNSPolicyMode", "Inline"),
        ("dnsExtraTTL: '0'", "dnsExtraTTL", "0s"),
        ("dropActionOverride: LogAndDrop", "dropActionOverride", "LogAndDrop"),
        ("flowLogsPolicyScope: AllPolicies", "flowLogsPolicyScope", "AllPolicies"),
        ("policyChangeFlowAction: keep", "policyChangeFlowAction", "keep"),
        ("flowAdoptionWindow: 120s", "flowAdoptionWindow", "120s"),
        ("encryptionMode: strict", "encryptionMode", "Strict"),
        ("wireguardKeyRotationInterval: 24h", "wireguardKeyRotationInterval", "86400s"),
        ("encryptionExemptNodes: has( legacy )", "encryptionExemptNodes", "has(legacy)"),
    ];
    for (spec, name, text) in good {
        let found = felix(&format!("{{{spec}}}"));
        assert_eq!(found.others.get(name).map(String::as_str), Some(text), "{spec}");
    }
    for bad in [
        "interfacePrefix: 'a b'",
        "interfaceExclude: '/(/'",
        "iptablesFilterAllowAction: Drop",
        "iptablesFilterDenyAction: Accept",
        "logActionRateLimit: fast",
        "dnsExtraTTL: 0",
        "logActionRateLimit: 0/second",
        "disableConntrackInvalidCheck: 'true'",
        "bpfConntrackTimeouts: {tcpEstablished: soon}",
        "workloadSourceSpoofing: Sometimes",
        "bpfEnforceRPF: Hard",
        "serviceLoopPrevention: Loop",
        "kubeNodePortRanges: ['9:8']",
        "kubeNodePortRanges: [http]",
        "externalNodesList: [nonsense]",
        "maxIpsetSize: 0",
        "flowLogsFlushInterval: 5",
        "flowLogsFlushInterval: '-5s'",
        "wireguardListeningPort: 0",
        "wireguardListeningPort: 65536",
        "wireguardInterfaceName: a-name-that-is-too-long",
        "wireguardRoutingRulePriority: 32766",
        "wireguardRoutingRulePriority: 0",
        "wireguardEnabled: yes",
        "dnsTrustedServers: ['k8s-service:a/b/c']",
        "dnsTrustedServers: [nonsense]",
        "policyChangeFlowAction: forget",
        "trustPodIPAnnotations: 1",
        "defaultEndpointToHostAction: Reject",
        "failsafeInboundHostPorts: {port: 22}",
    ] {
        check(&calico("FelixConfiguration", "default", &format!("{{{bad}}}")), false);
    }
}

#[test]
fn pm_27_parameters_that_policy_reads_and_precedence() {
    let mut model = Model::with_builtins();
    assert_eq!(Settings::of_node(&model, "n"), Settings::default());
    for (name, spec) in [
        (
            "default",
            "{defaultEndpointToHostAction: accept, trustPodIPAnnotations: true, restrictNamespaceSelectors: true}",
        ),
        (
            "node.n",
            "{trustPodIPAnnotations: false, allowUnenforcedCriteria: true, failsafeInboundHostPorts: []}",
        ),
    ] {
        let Decoded::Valid { object, .. } = one(&calico("FelixConfiguration", name, spec)) else {
            panic!("{spec}")
        };
        model.insert(object);
    }
    let (n, other) = (Settings::of_node(&model, "n"), Settings::of_node(&model, "other"));
    assert_eq!(n.endpoint_to_host, Some(EndpointToHostAction::Accept));
    assert!(!n.trust_pod_ip_annotations && other.trust_pod_ip_annotations);
    assert!(
        n.restrict_namespace_selectors && n.allow_unenforced_criteria && !other.allow_unenforced_criteria
    );
    assert!(n.failsafe_inbound.is_empty() && other.failsafe_inbound.len() == 9);
}

#[test]
fn pm_27_a_parameter_without_effect_and_a_mistyped_one_are_warnings() {
    let Decoded::Valid { warnings, .. } =
        one(&calico("FelixConfiguration", "elsewhere", "{bpfEnabled: true, wiregardEnabled: true, zzz: 1}"))
    else {
        panic!()
    };
    let told: Vec<_> =
        warnings.iter().map(|warning| (warning.field.as_str(), warning.reason.as_str())).collect();
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(told[0].1.contains("node.NAME"), "{told:?}");
    assert_eq!(told[1], ("spec.bpfEnabled", "this parameter of Calico has no effect on this dataplane"));
    assert_eq!(told[2], ("spec.wiregardEnabled", "unknown field, ignored; did you mean `wireguardEnabled`?"));
    assert_eq!(told[3], ("spec.zzz", "unknown field, ignored; remove it"));
}

#[test]
fn pm_11_9_failsafe_ports_in_both_forms() {
    let shown = |list: &Option<Vec<crate::model::Failsafe>>| -> Option<Vec<String>> {
        let one = |f: &crate::model::Failsafe| {
            format!("{}:{}:{}", f.protocol, f.net.map(|net| net.to_string()).unwrap_or_default(), f.port)
        };
        list.as_ref().map(|list| list.iter().map(one).collect())
    };
    let rows: [(&str, Option<&[&str]>); 11] = [
        ("{}", None),
        ("{failsafeInboundHostPorts: ''}", None),
        ("{failsafeInboundHostPorts: []}", Some(&[])),
        ("{failsafeInboundHostPorts: none}", Some(&[])),
        ("{failsafeInboundHostPorts: [{port: 22}]}", Some(&["6::22"])),
        (
            "{failsafeInboundHostPorts: [{protocol: UDP, port: 53, net: 10.0.0.0/8}]}",
            Some(&["17:10.0.0.0/8:53"]),
        ),
        (
            "{failsafeInboundHostPorts: [{protocol: sctp, port: 1, net: 'fd00::/8'}]}",
            Some(&["132:fd00::/8:1"]),
        ),
        ("{failsafeInboundHostPorts: '22'}", Some(&["6::22"])),
        ("{failsafeInboundHostPorts: 'tcp:22, udp:10.0.0.0/8:53'}", Some(&["6::22", "17:10.0.0.0/8:53"])),
        ("{failsafeInboundHostPorts: 'tcp:[fd00::/8]:22'}", Some(&["6:fd00::/8:22"])),
        ("{failsafeInboundHostPorts: ['udp:68', {port: 22}]}", Some(&["17::68", "6::22"])),
    ];
    for (spec, expected) in rows {
        let found = shown(&felix(spec).failsafe_inbound);
        let expected = expected.map(|list| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(found, expected, "{spec}");
    }
    assert_eq!(shown(&felix("{failsafeOutboundHostPorts: 'udp:53'}").failsafe_outbound).unwrap(), ["17::53"]);
    for bad in [
        "[{port: 0}]",
        "[{protocol: icmp, port: 1}]",
        "[{protocol: tcp}]",
        "[{port: 1, net: x}]",
        "'tcp'",
        "'tcp:0'",
        "'icmp:1'",
        "'tcp:x:1'",
        "'22,,23'",
        "7",
    ] {
        check(
            &calico("FelixConfiguration", "default", &format!("{{failsafeInboundHostPorts: {bad}}}")),
            false,
        );
    }
}

#[test]
fn pm_2_14_ip_pools() {
    let rows = [
        ("{cidr: 10.244.0.0/16}", true),
        ("{cidr: 10.244.0.0/16, natOutgoing: true, disabled: true, disableBGPExport: true}", true),
        ("{}", false),
        ("{cidr: nonsense}", false),
        ("{cidr: 10.244.0.1/16}", false),
        ("{cidr: 10.244.0.0/16, ipipMode: Always}", true),
        ("{cidr: 10.244.0.0/16, ipipMode: CrossSubnet, vxlanMode: Never}", true),
        ("{cidr: 10.244.0.0/16, ipipMode: always}", false),
        ("{cidr: 10.244.0.0/16, ipipMode: Always, vxlanMode: Always}", false),
        ("{cidr: 'fd00::/48', ipipMode: Always}", false),
        ("{cidr: 'fd00::/48', ipipMode: Never, vxlanMode: Always}", true),
        ("{cidr: 10.244.0.0/16, blockSize: 20}", true),
        ("{cidr: 10.244.0.0/16, blockSize: 32}", true),
        ("{cidr: 10.244.0.0/16, blockSize: 19}", false),
        ("{cidr: 10.244.0.0/16, blockSize: 33}", false),
        ("{cidr: 'fd00::/48', blockSize: 116}", true),
        ("{cidr: 'fd00::/48', blockSize: 128}", true),
        ("{cidr: 'fd00::/48', blockSize: 115}", false),
        ("{cidr: 'fd00::/48', blockSize: 26}", false),
        ("{cidr: 10.244.0.0/28}", false),
        ("{cidr: 10.244.0.0/28, blockSize: 28}", true),
        ("{cidr: 10.244.0.0/16, nodeSelector: 'all()', namespaceSelector: env == 'prod'}", true),
        ("{cidr: 10.244.0.0/16, nodeSelector: 'a ='}", false),
        ("{cidr: 10.244.0.0/16, allowedUses: [Workload, Tunnel, LoadBalancer]}", true),
        ("{cidr: 10.244.0.0/16, allowedUses: [Pods]}", false),
        ("{cidr: 10.244.0.0/16, allowedUses: [Tunnel, Tunnel]}", false),
        ("{cidr: 10.244.0.0/16, assignmentMode: Manual}", true),
        ("{cidr: 10.244.0.0/16, assignmentMode: Never}", false),
        ("{cidr: 10.244.0.0/16, encryption: WireGuard}", true),
        ("{cidr: 10.244.0.0/16, encryption: Maybe}", false),
    ];
    for (spec, accept) in rows {
        check(&calico("IPPool", "p", spec), accept);
    }
    let text = calico(
        "IPPool",
        "p",
        "{cidr: 10.0.0.0/8, natOutgoing: true, vxlanMode: Always, allowedUses: [Workload, Tunnel]}",
    )
    .replace("projectcalico.org/v3", "crd.projectcalico.org/v1");
    let Decoded::Valid { object: Object::IpPool(pool), .. } = one(&text) else { panic!() };
    let IpPool { cidr, nat_outgoing, disabled, others, .. } = &*pool;
    assert_eq!((cidr.to_string().as_str(), *nat_outgoing, *disabled), ("10.0.0.0/8", true, false));
    assert_eq!((others["vxlanMode"].as_str(), others["allowedUses"].as_str()), ("Always", "Tunnel,Workload"));
}

#[test]
fn pm_7_8_controllers_configuration() {
    let wrap = |inner: &str| {
        calico(
            "KubeControllersConfiguration",
            "default",
            &format!("{{controllers: {{node: {{syncLabels: Enabled, hostEndpoint: {inner}}}}}}}"),
        )
    };
    let Decoded::Valid { object: Object::KubeControllersConfiguration(found), warnings, .. } = one(&wrap(
        "{autoCreate: Enabled, createDefaultHostEndpoint: Disabled, templates: [{generateName: ext, interfaceCIDRs: [192.0.2.0/24], interfacePattern: 'eth.*', labels: {a: b}, nodeSelector: has(gpu)}]}",
    )) else {
        panic!()
    };
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(found.auto_create && !found.create_default);
    let template = &found.templates[0];
    assert_eq!((template.generate_name.as_str(), template.interface_cidrs.len()), ("ext", 1));
    assert_eq!(template.interface_pattern.as_deref(), Some("eth.*"));
    assert_eq!(template.node_selector.as_ref().unwrap().canonical(), "has(gpu)");
    let Decoded::Valid { object: Object::KubeControllersConfiguration(found), .. } = one(&wrap("{}")) else {
        panic!()
    };
    assert!(!found.auto_create && found.create_default, "the defaults");
    for one_of_both in ["interfacePattern: e", "interfaceCIDRs: [10.0.0.0/8]"] {
        check(&wrap(&format!("{{templates: [{{generateName: x, {one_of_both}}}]}}")), true);
    }
    for bad in [
        "{autoCreate: true}",
        "{autoCreate: enabled}",
        "{templates: [{generateName: x}]}",
        "{templates: [{interfaceCIDRs: [10.0.0.0/8]}]}",
        "{templates: [{generateName: x, interfacePattern: '('}]}",
        "{templates: [{generateName: x, interfaceCIDRs: [y]}]}",
        "{templates: [{generateName: x, interfacePattern: e, labels: {'a b': c}}]}",
        "{templates: [{generateName: x, interfacePattern: e, nodeSelector: 'a ='}]}",
        "{templates: [{generateName: x, interfacePattern: e}, {generateName: x, interfacePattern: f}]}",
    ] {
        check(&wrap(bad), false);
    }
}

#[test]
fn pm_7_8_calico_nodes() {
    let spec = "{bgp: {asNumber: 64512, ipv4Address: 10.0.0.1/24, ipv6Address: 'fd00::1/64', ipv4IPIPTunnelAddr: 10.244.0.1}, ipv4VXLANTunnelAddr: 10.244.0.2, ipv6VXLANTunnelAddr: 'fd00::2', wireguard: {interfaceIPv4Address: 10.244.0.3, interfaceIPv6Address: 'fd00::3'}, addresses: [{address: 10.0.0.1, type: InternalIP}, {address: 203.0.113.1, type: ExternalIP}, {address: 10.0.0.9, type: InternalIP}], interfaces: [{name: eth0, addresses: [10.0.0.1/24]}]}";
    let Decoded::Valid { object: Object::CalicoNode(node), warnings, .. } = one(&calico("Node", "n", spec))
    else {
        panic!()
    };
    assert!(warnings.is_empty(), "{warnings:?}");
    let addresses: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(
        addresses,
        ["10.0.0.1", "fd00::1", "10.244.0.1", "10.244.0.2", "fd00::2", "10.244.0.3", "fd00::3", "10.0.0.9"]
    );
    assert_eq!(node.interfaces, [("eth0".to_owned(), vec!["10.0.0.1".parse().unwrap()])]);
    check(&calico("Node", "n", "{bgp: {ipv4Address: nonsense}}"), false);
}

#[test]
fn pm_32_2_a_pool_says_it_by_field_or_by_annotation() {
    let pool = |annotation: &str, field: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: p, annotations: {{margay/encryption: '{annotation}'}}}}\nspec: {{cidr: 10.0.0.0/8{field}}}\n"
        )
    };
    let word = |text: &str| match one(text) {
        Decoded::Valid { object: Object::IpPool(pool), .. } => pool.others.get("encryption").cloned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(word(&pool("None", "")).as_deref(), Some("None"));
    assert_eq!(word(&pool("None", ", encryption: WireGuard")).as_deref(), Some("WireGuard"));
    check(&pool("none", ""), false);
}

#[test]
fn the_installation_s_switch_and_networks() {
    let text = |spec: &str| {
        format!(
            "apiVersion: operator.tigera.io/v1\nkind: Installation\nmetadata: {{name: default}}\nspec: {spec}\n"
        )
    };
    let read = |spec: &str| match one(&text(spec)) {
        Decoded::Valid { object: Object::Installation(found), warnings, .. } => {
            assert!(warnings.is_empty(), "{warnings:?}");
            (found.wireguard, found.pools.iter().map(ToString::to_string).collect::<Vec<_>>())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(read("{variant: Calico, wireguard: Enabled}"), (Some(true), vec![]));
    let network =
        "{calicoNetwork: {wireguard: Disabled, ipPools: [{cidr: 192.168.0.0/16, encapsulation: VXLAN}]}}";
    assert_eq!(read(network), (Some(false), vec!["192.168.0.0/16".to_owned()]));
    assert_eq!(read("{}"), (None, vec![]));
    check(&text("{wireguard: yes}"), false);
    check(&text("{wireguard: enabled}"), false);
    check(&text("{wireguard: Enabled, calicoNetwork: {wireguard: Disabled}}"), false);
    check(&text("{calicoNetwork: {ipPools: [{cidr: here}]}}"), false);
}
