//! FelixConfiguration (policy model 25.1, 27): every parameter checked for its type and range, whoever reads it later.
//!
//! Parameters that policy itself reads become fields; every other one becomes canonical text under its name. What Calico knows and
//! this dataplane has no use for is named in a warning, so nobody waits for it to act.

use regex::Regex;
use serde_json::Value;

use super::field::{Fields, Problems};
use super::identity::Metadata;
use super::policy::open_spec;
use super::{duration, failsafe, rule, scalar};
use crate::model::{EndpointToHostAction, FelixConfiguration, Object};

/// What a parameter may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    Boolean,
    /// Both ends inclusive.
    Integer(i64, i64),
    Duration,
    Text,
    /// One of these words, in any case; the canonical text is the word as listed.
    OneOf(&'static [&'static str]),
    /// Up to 15 characters; empty turns the feature off.
    Interface,
    /// Beginnings of interface names, between commas.
    InterfacePrefixes,
    /// Interface names, or regular expressions between slashes, between commas.
    InterfaceNames,
    Networks,
    /// Ports and ranges of ports.
    PortRanges,
    /// `100/second`, `/minute`, `/hour`, `/day`.
    Rate,
    /// An expression over labels.
    Selector,
    /// `ip[:port]`, `[v6]:port`, `k8s-service:[ns/]name[:port]`.
    DnsServers,
    /// Durations by state; `Auto` takes the kernel's.
    Timeouts,
    /// Any single value.
    Scalar,
}

use Shape::{
    Boolean, DnsServers, Duration, Integer, Interface, InterfaceNames, InterfacePrefixes, Networks, OneOf,
    PortRanges, Rate, Scalar, Selector, Text, Timeouts,
};

const ACCEPT_RETURN: Shape = OneOf(&["Accept", "Return"]);
const DROP_REJECT: Shape = OneOf(&["Drop", "Reject"]);
const PORT: Shape = Integer(1, 65_535);
const MTU: Shape = Integer(0, 65_535);
const QUEUE: Shape = Integer(0, 65_535);

/// The parameters that become text, by their field names.
pub(crate) const PARAMETERS: [(&str, Shape); 73] = [
    ("interfacePrefix", InterfacePrefixes),
    ("interfaceExclude", InterfaceNames),
    ("iptablesFilterAllowAction", ACCEPT_RETURN),
    ("iptablesMangleAllowAction", ACCEPT_RETURN),
    ("nftablesFilterAllowAction", ACCEPT_RETURN),
    ("nftablesMangleAllowAction", ACCEPT_RETURN),
    ("iptablesFilterDenyAction", DROP_REJECT),
    ("nftablesFilterDenyAction", DROP_REJECT),
    ("logPrefix", Text),
    ("logActionRateLimit", Rate),
    ("logActionRateLimitBurst", Integer(0, 9_999)),
    ("disableConntrackInvalidCheck", Boolean),
    ("bpfConntrackTimeouts", Timeouts),
    ("workloadSourceSpoofing", OneOf(&["Disabled", "Any"])),
    ("bpfEnforceRPF", OneOf(&["Disabled", "Strict", "Loose"])),
    ("allowVXLANPacketsFromWorkloads", Boolean),
    ("allowIPIPPacketsFromWorkloads", Boolean),
    ("serviceLoopPrevention", OneOf(&["Drop", "Reject", "Disabled"])),
    ("kubeNodePortRanges", PortRanges),
    ("externalNodesList", Networks),
    ("externalNodesCIDRList", Networks),
    ("xdpEnabled", Boolean),
    ("genericXDPEnabled", Boolean),
    ("maxIpsetSize", Integer(1, i32::MAX as i64)),
    ("policySyncPathPrefix", Text),
    ("flowLogsFlushInterval", Duration),
    ("flowLogsPolicyEvaluationMode", OneOf(&["None", "Continuous"])),
    ("flowLogsGoldmaneServer", Text),
    ("flowLogsLocalReporter", OneOf(&["Enabled", "Disabled"])),
    ("wireguardEnabled", Boolean),
    ("wireguardEnabledV6", Boolean),
    ("wireguardListeningPort", PORT),
    ("wireguardListeningPortV6", PORT),
    ("wireguardInterfaceName", Interface),
    ("wireguardInterfaceNameV6", Interface),
    ("wireguardMTU", MTU),
    ("wireguardMTUV6", MTU),
    ("wireguardRoutingRulePriority", Integer(1, 32_765)),
    ("wireguardKeepAlive", Duration),
    ("wireguardHostEncryptionEnabled", Boolean),
    ("wireguardThreadingEnabled", Boolean),
    ("prometheusWireGuardMetricsEnabled", Boolean),
    ("dnsTrustedServers", DnsServers),
    ("dnsPolicyMode", OneOf(&["NoDelay", "DelayDeniedPacket", "DelayDNSResponse", "Inline"])),
    ("bpfDNSPolicyMode", OneOf(&["NoDelay", "Inline"])),
    ("nftablesDNSPolicyMode", OneOf(&["NoDelay", "DelayDeniedPacket", "DelayDNSResponse"])),
    ("dnsExtraTTL", Duration),
    ("dnsCacheEpoch", Integer(0, i64::MAX)),
    ("dnsCacheFile", Text),
    ("dnsCacheSaveInterval", Duration),
    ("dnsPolicyNfqueueID", QUEUE),
    ("dnsPolicyNfqueueSize", QUEUE),
    ("dnsPacketsNfqueueID", QUEUE),
    ("dnsPacketsNfqueueSize", QUEUE),
    ("dnsPacketsNfqueueMaxHoldDuration", Duration),
    ("dropActionOverride", OneOf(&["Drop", "Accept", "LogAndDrop", "LogAndAccept"])),
    ("flowLogsPolicyScope", OneOf(&["AllPolicies", "EndpointPolicies"])),
    ("flowLogsFileEnabled", Boolean),
    ("flowLogsFileDirectory", Text),
    ("flowLogsFileMaxFiles", Integer(0, i32::MAX as i64)),
    ("flowLogsFileMaxFileSizeMB", Integer(0, i32::MAX as i64)),
    ("flowLogsFileIncludeLabels", Boolean),
    ("flowLogsFileIncludePolicies", Boolean),
    ("flowLogsFileIncludeService", Boolean),
    ("flowLogsFileAggregationKindForAllowed", Integer(0, 2)),
    ("flowLogsFileAggregationKindForDenied", Integer(0, 2)),
    ("flowLogsFileEnabledForAllowed", Scalar),
    ("flowLogsFileEnabledForDenied", Scalar),
    ("policyChangeFlowAction", OneOf(&["reevaluate", "keep", "reset"])),
    ("flowAdoptionWindow", Duration),
    ("encryptionMode", OneOf(&["Permissive", "Strict"])),
    ("wireguardKeyRotationInterval", Duration),
    ("encryptionExemptNodes", Selector),
];

/// The parameters that policy itself reads: lists of failsafe ports, a word, switches.
pub(crate) const FAILSAFES: [&str; 2] = ["failsafeInboundHostPorts", "failsafeOutboundHostPorts"];
pub(crate) const ENDPOINT_TO_HOST: (&str, Shape) =
    ("defaultEndpointToHostAction", OneOf(&["Drop", "Return", "Accept"]));
pub(crate) const SWITCHES: [&str; 3] =
    ["trustPodIPAnnotations", "restrictNamespaceSelectors", "allowUnenforcedCriteria"];

/// States whose timeouts can be set.
pub(crate) const TIMEOUT_STATES: [&str; 8] = [
    "creationGracePeriod",
    "genericTimeout",
    "icmpTimeout",
    "tcpEstablished",
    "tcpFinsSeen",
    "tcpResetSeen",
    "tcpSynSent",
    "udpTimeout",
];

/// Parameters of Calico that another dataplane, another cloud or Felix itself needs.
pub(crate) const WITHOUT_EFFECT: [&str; 71] = [
    "awsSrcDstCheck",
    "bpfAttachType",
    "bpfCTLBLogFilter",
    "bpfConnectTimeLoadBalancing",
    "bpfConnectTimeLoadBalancingEnabled",
    "bpfConntrackLogLevel",
    "bpfConntrackMode",
    "bpfDataIfacePattern",
    "bpfDisableGROForIfaces",
    "bpfDisableUnprivileged",
    "bpfEnabled",
    "bpfExcludeCIDRsFromNAT",
    "bpfExportBufferSizeMB",
    "bpfExtToServiceConnmark",
    "bpfExternalServiceMode",
    "bpfForceTrackPacketsFromIfaces",
    "bpfHostConntrackBypass",
    "bpfHostNetworkedNATWithoutCTLB",
    "bpfKubeProxyEndpointSlicesEnabled",
    "bpfKubeProxyHealthzPort",
    "bpfKubeProxyIptablesCleanupEnabled",
    "bpfKubeProxyMinSyncPeriod",
    "bpfL3IfacePattern",
    "bpfLogFilters",
    "bpfLogLevel",
    "bpfMapSizeConntrack",
    "bpfMapSizeConntrackCleanupQueue",
    "bpfMapSizeConntrackScaling",
    "bpfMapSizeIPSets",
    "bpfMapSizeIfState",
    "bpfMapSizeNATAffinity",
    "bpfMapSizeNATBackend",
    "bpfMapSizeNATFrontend",
    "bpfMapSizePerCpuConntrack",
    "bpfMapSizeRoute",
    "bpfPSNATPorts",
    "bpfPolicyDebugEnabled",
    "bpfProfiling",
    "bpfRedirectToPeer",
    "cgroupV2Path",
    "chainInsertMode",
    "dataplaneDriver",
    "dataplaneWatchdogTimeout",
    "deviceRouteProtocol",
    "deviceRouteSourceAddress",
    "deviceRouteSourceAddressIPv6",
    "endpointReportingEnabled",
    "endpointStatusPathPrefix",
    "floatingIPs",
    "healthEnabled",
    "healthHost",
    "healthPort",
    "interfaceRefreshInterval",
    "ipForwarding",
    "ipipEnabled",
    "ipipMTU",
    "ipv6Support",
    "iptablesBackend",
    "iptablesMarkMask",
    "iptablesRefreshInterval",
    "logFilePath",
    "logSeverityFile",
    "logSeverityScreen",
    "logSeveritySys",
    "natPortRange",
    "nftablesMode",
    "prometheusMetricsEnabled",
    "prometheusMetricsPort",
    "reportingInterval",
    "vxlanEnabled",
    "vxlanMTU",
];

/// Reads a FelixConfiguration.
pub(super) fn configuration(value: &Value, metadata: &Metadata, problems: &mut Problems) -> Object {
    let mut spec = open_spec(value, problems);
    if metadata.name != "default" && !metadata.name.starts_with("node.") {
        let reason = "only the objects default and node.NAME have an effect; rename it";
        problems.warn("metadata.name", &metadata.name, reason);
    }
    let mut configuration = FelixConfiguration {
        name: metadata.name.clone(),
        failsafe_inbound: failsafe::read(&mut spec, FAILSAFES[0], problems),
        failsafe_outbound: failsafe::read(&mut spec, FAILSAFES[1], problems),
        endpoint_to_host: endpoint_to_host(&mut spec, problems),
        trust_pod_ip_annotations: boolean(&mut spec, SWITCHES[0], problems),
        restrict_namespace_selectors: boolean(&mut spec, SWITCHES[1], problems),
        allow_unenforced_criteria: boolean(&mut spec, SWITCHES[2], problems),
        ..FelixConfiguration::default()
    };
    for (name, shape) in PARAMETERS {
        if let Some(text) = parameter(&mut spec, name, shape, problems) {
            configuration.others.insert(name.to_owned(), text);
        }
    }
    for name in WITHOUT_EFFECT {
        if spec.raw(name).is_some() {
            problems.warn(spec.at(name), "", "this parameter of Calico has no effect on this dataplane");
        }
    }
    spec.finish(problems);
    Object::FelixConfiguration(configuration.into())
}

fn boolean(spec: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<bool> {
    let is_written = spec.raw(name).is_some();
    let value = spec.boolean(name, problems);
    is_written.then_some(value)
}

fn endpoint_to_host(spec: &mut Fields<'_>, problems: &mut Problems) -> Option<EndpointToHostAction> {
    let (name, shape) = ENDPOINT_TO_HOST;
    match parameter(spec, name, shape, problems)?.as_str() {
        "Accept" => Some(EndpointToHostAction::Accept),
        "Return" => Some(EndpointToHostAction::Return),
        _ => Some(EndpointToHostAction::Drop),
    }
}

/// Reads one parameter; `None` when it is absent, empty or wrong.
fn parameter(
    spec: &mut Fields<'_>,
    name: &'static str,
    shape: Shape,
    problems: &mut Problems,
) -> Option<String> {
    let value = spec.raw(name)?;
    match shape {
        Boolean => boolean(spec, name, problems).map(|value| value.to_string()),
        Integer(low, high) => spec.integer(name, low, high, problems).map(|number| number.to_string()),
        Networks => networks(spec, name, problems),
        PortRanges => port_ranges(spec, name, problems),
        DnsServers => dns_servers(spec, name, problems),
        Timeouts => timeouts(spec, name, problems),
        Selector => rule::selector(spec, name, problems).map(|found| found.canonical().to_owned()),
        Scalar => match value {
            Value::Array(_) | Value::Object(_) => {
                problems.refuse(spec.at(name), value, "must be a single value");
                None
            }
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        },
        Duration | Text | OneOf(_) | Interface | InterfacePrefixes | InterfaceNames | Rate => {
            let text = spec.text(name, problems)?;
            match word(text, shape) {
                Ok(text) => text,
                Err(reason) => {
                    problems.refuse_text(spec.at(name), text, reason);
                    None
                }
            }
        }
    }
}

/// Judges a parameter that is one text; an empty one says nothing, unless emptiness means something.
fn word(text: &str, shape: Shape) -> Result<Option<String>, String> {
    if text.is_empty() && !matches!(shape, Interface | Text) {
        return Ok(None);
    }
    let refuse = |reason: &str| Err(reason.to_owned());
    match shape {
        Duration => match duration::parse(text) {
            Some(found) => Ok(Some(duration::canonical(found))),
            None => refuse("not a duration such as 90s, 5m or 1h30m"),
        },
        OneOf(words) => match words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
            Some(word) => Ok(Some((*word).to_owned())),
            None => Err(format!("must be one of {}", words.join(", "))),
        },
        Interface if text.is_empty() || is_interface(text) => Ok(Some(text.to_owned())),
        Interface => refuse("not the name of an interface: at most 15 of [A-Za-z0-9_.-]"),
        InterfacePrefixes if text.split(',').all(|part| is_interface(part.trim())) => {
            Ok(Some(text.split(',').map(str::trim).collect::<Vec<_>>().join(",")))
        }
        InterfacePrefixes => refuse(
            "not beginnings of interface names: 1 to 15 of [A-Za-z0-9_.-] each, several between commas",
        ),
        InterfaceNames => interface_names(text),
        Rate => rate(text),
        _ => Ok(Some(text.to_owned())),
    }
}

fn is_interface(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn interface_names(text: &str) -> Result<Option<String>, String> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    for part in &parts {
        let pattern = part.strip_prefix('/').and_then(|part| part.strip_suffix('/'));
        match pattern {
            Some(pattern) if Regex::new(pattern).is_err() => {
                return Err(format!("/{pattern}/ is not a regular expression"));
            }
            None if !is_interface(part) => {
                return Err(format!(
                    "{part:?} is neither the name of an interface nor a regular expression between slashes"
                ));
            }
            _ => {}
        }
    }
    Ok(Some(parts.join(",")))
}

fn rate(text: &str) -> Result<Option<String>, String> {
    let good = text.split_once('/').is_some_and(|(number, unit)| {
        matches!(unit, "second" | "minute" | "hour" | "day")
            && !number.starts_with('0')
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && number.parse::<u16>().is_ok_and(|number| (1..=9_999).contains(&number))
    });
    if good {
        Ok(Some(text.to_owned()))
    } else {
        Err("not a rate such as 10/second; also /minute, /hour, /day".to_owned())
    }
}

fn networks(spec: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<String> {
    let mut nets = Vec::new();
    for (path, text) in spec.texts(name, problems) {
        match scalar::cidr_or_address(text) {
            Ok(net) => nets.push(net.to_string()),
            Err(reason) => problems.refuse_text(path, text, reason),
        }
    }
    Some(nets.join(","))
}

fn port_ranges(spec: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<String> {
    let mut ranges = Vec::new();
    for (path, value) in spec.list_up_to(name, 7, problems) {
        match scalar::port(&path, value, problems) {
            Some(crate::model::PortMatch::Range { first, last }) => ranges.push(format!("{first}:{last}")),
            Some(crate::model::PortMatch::Named(_)) => {
                problems.refuse(path, value, "must be a port or a range such as \"30000:32767\"");
            }
            None => {}
        }
    }
    Some(ranges.join(","))
}

fn dns_servers(spec: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<String> {
    let mut servers = Vec::new();
    for (path, text) in spec.texts(name, problems) {
        if !is_dns_server(text) {
            let reason = "not a DNS server: ip, ip:port, [ipv6]:port or k8s-service:[namespace/]name[:port]";
            problems.refuse_text(path, text, reason);
        }
        servers.push(text);
    }
    Some(servers.join(","))
}

fn is_dns_server(text: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    if let Some(service) = text.strip_prefix("k8s-service:") {
        let (name, port) = service.split_once(':').map_or((service, None), |(name, port)| (name, Some(port)));
        let names: Vec<&str> = name.split('/').collect();
        return names.len() <= 2
            && names.iter().all(|name| scalar::is_dns_subdomain(name))
            && port.is_none_or(is_port);
    }
    text.parse::<std::net::IpAddr>().is_ok()
        || text.parse::<std::net::SocketAddr>().is_ok_and(|address| address.port() > 0)
}

fn timeouts(spec: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<String> {
    let mut fields = spec.object(name, problems);
    let mut timeouts = Vec::new();
    for state in TIMEOUT_STATES {
        let Some(text) = fields.text(state, problems).filter(|text| !text.is_empty()) else { continue };
        match duration::parse(text) {
            Some(found) => timeouts.push(format!("{state}={}", duration::canonical(found))),
            None if text.eq_ignore_ascii_case("auto") => timeouts.push(format!("{state}=Auto")),
            None => problems.refuse_text(fields.at(state), text, "not a duration such as 90s, nor Auto"),
        }
    }
    fields.finish(problems);
    Some(timeouts.join(","))
}
