//! The Grafana dashboard, from a list of what each panel asks. Every name that is asked is one that the metrics page has; a test looks.

use serde_json::{Value, json};

/// Title, unit, queries with legend.
type Panel = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const PANELS: &[(&str, &[Panel])] = &[
    (
        "Is all well",
        &[
            ("Nodes that are not ready", "short", &[("count(margay_ready == 0) or vector(0)", "nodes")]),
            ("Nodes with yesterday's policy", "short", &[("sum(margay_policy_stale)", "nodes")]),
            (
                "Objects with something wrong",
                "short",
                &[("max by (severity) (margay_source_problems)", "__auto")],
            ),
            (
                "Oldest heartbeat of a worker",
                "ms",
                &[("max by (node) (margay_worker_heartbeat_age_milliseconds)", "__auto")],
            ),
        ],
    ),
    (
        "Packets",
        &[
            (
                "Packets by what became of them",
                "pps",
                &[
                    ("sum(rate(margay_packets_forwarded_total[5m]))", "forwarded"),
                    ("sum(rate(margay_packets_answered_total[5m]))", "answered"),
                    ("sum(rate(margay_packets_dropped_total[5m]))", "dropped"),
                ],
            ),
            (
                "Drops by reason",
                "pps",
                &[("sum by (reason) (rate(margay_packets_dropped_total[5m])) > 0", "__auto")],
            ),
            (
                "Lost between the kernel and the rings",
                "pps",
                &[("sum by (node, kind) (rate(margay_port_ring_lost_packets_total[5m]))", "__auto")],
            ),
            (
                "Received by node",
                "pps",
                &[("sum by (node) (rate(margay_port_received_packets_total[5m]))", "__auto")],
            ),
        ],
    ),
    (
        "Flows and policy",
        &[
            ("Flows alive", "short", &[("sum by (node) (margay_flow_entries)", "__auto")]),
            (
                "Packets of remembered flows",
                "percentunit",
                &[(
                    "sum(rate(margay_flow_hits_total[5m])) / (sum(rate(margay_flow_hits_total[5m])) + sum(rate(margay_flow_misses_total[5m])))",
                    "share",
                )],
            ),
            (
                "Time of the last compilation",
                "s",
                &[("max by (node) (margay_policy_compile_seconds)", "__auto")],
            ),
            ("Objects known", "short", &[("max by (kind) (margay_policy_objects)", "__auto")]),
        ],
    ),
    (
        "The agent",
        &[
            ("Memory by area", "bytes", &[("max by (area) (margay_memory_bytes)", "__auto")]),
            ("Pods with an interface", "short", &[("sum by (node) (margay_policy_endpoints)", "__auto")]),
            ("Time since the start", "s", &[("min by (node) (margay_agent_uptime_seconds)", "__auto")]),
        ],
    ),
];

/// Returns the dashboard.
pub fn dashboard() -> Value {
    let source = json!({ "type": "prometheus", "uid": "${source}" });
    let mut panels = Vec::new();
    let mut y = 0;
    for (row, listed) in PANELS {
        panels.push(json!({ "type": "row", "title": row, "collapsed": false, "gridPos": { "x": 0, "y": y, "w": 24, "h": 1 }, "panels": [] }));
        y += 1;
        for (nth, (title, unit, queries)) in listed.iter().enumerate() {
            let target = |(letter, (expression, legend)): (char, &(&str, &str))| json!({ "refId": letter.to_string(), "expr": expression, "legendFormat": legend, "datasource": source });
            let targets: Vec<Value> = ('A'..).zip(queries.iter()).map(target).collect();
            panels.push(json!({
                "type": "timeseries",
                "title": title,
                "datasource": source,
                "fieldConfig": { "defaults": { "unit": unit, "min": 0 }, "overrides": [] },
                "gridPos": { "x": 6 * nth, "y": y, "w": 6, "h": 7 },
                "targets": targets,
            }));
        }
        y += 7;
    }
    for (id, panel) in panels.iter_mut().enumerate() {
        panel["id"] = json!(id + 1);
    }
    json!({
        "title": "margay",
        "uid": "margay",
        "tags": ["margay", "network-policy"],
        "schemaVersion": 39,
        "editable": true,
        "refresh": "30s",
        "time": { "from": "now-1h", "to": "now" },
        "templating": { "list": [{ "name": "source", "label": "Data source", "type": "datasource", "query": "prometheus" }] },
        "panels": panels,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::admin::report::{PortReport, StatusReport, WorkerReport};

    /// Names of metrics in a text, such as a query or the metrics page.
    fn names(text: &str) -> BTreeSet<String> {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|word| word.starts_with("margay_"))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn every_metric_that_a_panel_asks_is_on_the_page() {
        let counters = margay_core::Counters::default();
        let status = StatusReport {
            counters: (&counters).into(),
            ports: vec![PortReport::default()],
            workers: vec![WorkerReport::default()],
            objects: [("Pod".to_owned(), 1)].into(),
            ..StatusReport::default()
        };
        let page = crate::metrics::render(&status).expect("a page");
        let samples: String =
            page.lines().filter(|line| !line.starts_with('#')).map(|line| line.to_owned() + "\n").collect();
        let exported = names(&samples);
        let text = super::dashboard().to_string();
        let mut asked = names(&text);
        asked.remove("margay_");
        assert!(asked.len() >= 15, "{asked:?}");
        assert!(asked.is_subset(&exported), "{:?}", asked.difference(&exported));
        // Expressions of the chart use the same brackets.
        assert!(!text.contains("{{"));
    }
}
