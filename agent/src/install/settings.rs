//! What differs between clusters. The same fields stand in the values of the chart, whose templates are these objects with expressions
//! in the place of values: one source, so the chart and the plain manifests cannot part.

use serde_json::{Value, json};

/// What a field of an object gets: a value, or an expression of the chart.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of every container.
    pub image: String,
    /// `imagePullPolicy`.
    pub pull_policy: String,
    /// Namespace of everything that has one.
    pub namespace: String,
    /// Namespace of the Secrets with nodes' keys.
    pub key_namespace: String,
    /// `--uplink` of the agent: names between commas, or auto.
    pub uplink: String,
    /// `--endpoint-to-host` of the agent.
    pub endpoint_to_host: String,
    /// What the agent is told besides.
    pub agent_args: Vec<String>,
    /// Address of metrics and health.
    pub metrics_address: String,
    /// Port of metrics and health.
    pub metrics_port: Value,
    /// Memory request of the agent.
    pub memory: String,
    /// CPU request of the agent.
    pub cpu: String,
    /// Host path of CNI programs.
    pub cni_bin: String,
    /// Host path of CNI configurations.
    pub cni_conf: String,
    /// `type` of the IPAM plug-in.
    pub ipam: String,
    /// How many nodes the uninstall Job visits.
    pub nodes: Value,
}

/// One value of the chart: path, what it is when nothing is said, a sentence.
pub type Knob = (&'static str, Value, &'static str);

/// MiB of packets, policy and kernel memory by pods on a node with 300 rules, without the control side, from docs/performance.md.
const MEASURED: [(u32, f64); 4] = [(2, 81.8), (30, 142.1), (110, 314.7), (250, 617.4)];

/// Returns the memory request, in MiB, of a node with `pods` pods: what was measured, between the rows by a straight line, a tenth more.
pub fn memory_request(pods: u32) -> u32 {
    let at = f64::from(pods);
    let above =
        MEASURED.iter().position(|(pods, _)| f64::from(*pods) >= at).unwrap_or(MEASURED.len() - 1).max(1);
    let ((x0, y0), (x1, y1)) = (MEASURED[above - 1], MEASURED[above]);
    let slope = (y1 - y0) / (f64::from(x1) - f64::from(x0));
    let measured = (y0 + (at - f64::from(x0)) * slope).max(MEASURED[0].1);
    // At most some thousand pods: a node has no more.
    (measured * 1.1).ceil().clamp(0.0, 1e6) as u32
}

/// Pods of a node unless something else is said, as the kubelet's default.
pub const PODS: u32 = 110;

/// Port of metrics and health.
pub const METRICS_PORT: u16 = 9470;

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: format!("margay:{}", env!("CARGO_PKG_VERSION")),
            pull_policy: "IfNotPresent".to_owned(),
            namespace: "kube-system".to_owned(),
            key_namespace: "calico-system".to_owned(),
            uplink: "auto".to_owned(),
            endpoint_to_host: "accept".to_owned(),
            agent_args: Vec::new(),
            metrics_address: "127.0.0.1".to_owned(),
            metrics_port: json!(METRICS_PORT),
            memory: format!("{}Mi", memory_request(PODS)),
            cpu: "100m".to_owned(),
            cni_bin: "/opt/cni/bin".to_owned(),
            cni_conf: "/etc/cni/net.d".to_owned(),
            ipam: "host-local".to_owned(),
            nodes: json!(1),
        }
    }
}

impl Settings {
    /// The same with expressions of the chart.
    pub fn for_chart() -> Self {
        let of = |path: &str| format!("{{{{ .Values.{path} }}}}");
        let number = |path: &str| json!(format!("{{{{ int .Values.{path} }}}}"));
        Self {
            image: of("image"),
            pull_policy: of("imagePullPolicy"),
            namespace: "{{ .Release.Namespace }}".to_owned(),
            key_namespace: of("encryption.keyNamespace"),
            uplink: of("uplink"),
            endpoint_to_host: of("endpointToHost"),
            agent_args: vec!["{{ each .Values.agentArgs }}".to_owned()],
            metrics_address: of("metrics.address"),
            metrics_port: number("metrics.port"),
            memory: of("resources.memory"),
            cpu: of("resources.cpu"),
            cni_bin: of("cni.binDir"),
            cni_conf: of("cni.confDir"),
            ipam: of("cni.ipam"),
            nodes: number("uninstall.nodes"),
        }
    }

    /// The chart's values, in the order of values.yaml.
    pub fn knobs() -> Vec<Knob> {
        let own = Self::default();
        vec![
            ("image", json!(own.image), "Image of every container."),
            ("imagePullPolicy", json!(own.pull_policy), "When a node fetches it."),
            (
                "uplink",
                json!(own.uplink),
                "NICs that lead to the other nodes, between commas; auto takes those of the routes.",
            ),
            (
                "endpointToHost",
                json!(own.endpoint_to_host),
                "What a pod's packets to its own node meet after egress policy: accept or drop.",
            ),
            (
                "agentArgs",
                json!(own.agent_args),
                "What every agent is told besides, such as [--workers=2, --cpu-latency=0us]; one that it does not know keeps it from starting.",
            ),
            (
                "resources.memory",
                json!(own.memory),
                "Memory request; measured for 110 pods and 300 rules a node, without the control side \
                 (docs/performance.md).",
            ),
            (
                "resources.cpu",
                json!(own.cpu),
                "CPU request. There is no limit: a throttled packet path loses packets.",
            ),
            (
                "metrics.address",
                json!(own.metrics_address),
                "Where metrics and health are served; \"[::]\" lets Prometheus in.",
            ),
            ("metrics.port", own.metrics_port, "The port of both."),
            (
                "encryption.enabled",
                json!(false),
                "Whether agents may keep their WireGuard keys as Secrets; the switch itself is a FelixConfiguration.",
            ),
            (
                "encryption.keyNamespace",
                json!(own.key_namespace),
                "Namespace of these Secrets; it has to be there already.",
            ),
            (
                "admission.enabled",
                json!(false),
                "Whether rules of admission keep every agent to its own Node and Secret, built-in tiers from deletion, and new policies out of tiers that are being deleted; needs Kubernetes 1.30.",
            ),
            ("cni.binDir", json!(own.cni_bin), "Where the container runtime looks for CNI programs."),
            ("cni.confDir", json!(own.cni_conf), "Where it looks for configurations."),
            ("cni.ipam", json!(own.ipam), "The plug-in that gives addresses."),
            (
                "podMonitor.enabled",
                json!(false),
                "Whether the Prometheus operator is told; needs its definitions and a metrics.address it reaches.",
            ),
            (
                "dashboard.enabled",
                json!(false),
                "Whether a ConfigMap with the dashboard is made, for Grafana's sidecar.",
            ),
            (
                "uninstall.nodes",
                json!(0),
                "How many nodes the Job visits that cleans up after `helm uninstall`; 0 makes none.",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request is what the page of measurements says, and a tenth.
    #[test]
    fn memory_is_requested_as_measured() {
        let page = include_str!("../../../docs/performance.md");
        for (pods, measured) in MEASURED {
            let row = page
                .lines()
                .find(|line| line.starts_with(&format!("| {pods} | ")))
                .expect("a row of this size");
            let together = row.split('|').nth(5).unwrap_or_default().trim().trim_matches('*');
            assert_eq!(together.parse(), Ok(measured), "docs/performance.md, {pods} pods");
            let least = (measured * 1.1).ceil();
            assert_eq!(f64::from(memory_request(pods)), least, "{pods} pods");
        }
        assert!(memory_request(0) >= 90 && memory_request(500) > memory_request(250));
        assert!((160..350).contains(&memory_request(60)));
    }
}
