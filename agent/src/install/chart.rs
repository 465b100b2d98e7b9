//! Every file below `deploy/`: definitions, plain manifests, the chart, the dashboard. All are made here and none is written by hand.

use std::collections::BTreeMap;

use margay_policy_engine::schema::{self, Rules};
use serde_json::{Value, json};

use super::settings::Settings;
use super::{dashboard, manifests, yaml};

const MADE: &str = "# Made from the code: MARGAY_WRITE_DOCS=1 cargo test -p margay --bin margay install\n";

/// Returns the definitions in one of their two forms.
pub fn definitions(rules: Rules) -> Vec<Value> {
    schema::resources().iter().map(|resource| resource.definition(rules)).collect()
}

/// Returns every file by its path below `deploy/`.
pub fn tree() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for (folder, rules) in
        [("crds", Rules::Without), ("crds-cel", Rules::Cel), ("chart/margay/crds", Rules::Without)]
    {
        for definition in definitions(rules) {
            let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            files.insert(format!("{folder}/{name}.yaml"), MADE.to_owned() + &yaml::document(&definition));
        }
    }
    let usual = Settings::default();
    let dashboard = format!("{:#}\n", dashboard::dashboard());
    files.insert("margay.yaml".into(), MADE.to_owned() + &yaml::documents(&manifests::agent(&usual)));
    files.insert(
        "uninstall.yaml".into(),
        MADE.to_owned() + &yaml::document(&manifests::uninstall_everywhere(&usual)),
    );
    files
        .insert("podmonitor.yaml".into(), MADE.to_owned() + &yaml::document(&manifests::pod_monitor(&usual)));
    for (name, objects) in
        [("encryption", manifests::encryption(&usual)), ("admission", manifests::admission(&usual))]
    {
        files.insert(format!("{name}.yaml"), MADE.to_owned() + &yaml::documents(&objects));
    }
    files.insert("dashboard.json".into(), dashboard.clone());
    for (path, text) in chart(&dashboard) {
        files.insert(format!("chart/margay/{path}"), text);
    }
    files
}

fn chart(dashboard: &str) -> BTreeMap<String, String> {
    let settings = Settings::for_chart();
    let version = env!("CARGO_PKG_VERSION");
    let about = json!({
        "apiVersion": "v2",
        "name": manifests::NAME,
        "description": "Kubernetes network policy in user space, on AF_XDP",
        "type": "application",
        "version": version,
        "appVersion": version,
        "kubeVersion": ">=1.20.0-0",
    });
    let mut files = BTreeMap::from([
        ("Chart.yaml".to_owned(), MADE.to_owned() + &yaml::document(&about)),
        ("values.yaml".to_owned(), values()),
        ("templates/agent.yaml".to_owned(), template(&yaml::documents(&manifests::agent(&settings)))),
    ]);
    for (file, objects) in
        [("encryption", manifests::encryption(&settings)), ("admission", manifests::admission(&settings))]
    {
        let body = template(&yaml::documents(&objects));
        files.insert(
            format!("templates/{file}.yaml"),
            format!("{{{{- if .Values.{file}.enabled }}}}\n{body}{{{{- end }}}}\n"),
        );
    }
    for (file, condition, object) in [
        ("podmonitor", ".Values.podMonitor.enabled", manifests::pod_monitor(&settings)),
        ("dashboard", ".Values.dashboard.enabled", manifests::dashboard_map(&settings, dashboard)),
        ("uninstall", "gt (int .Values.uninstall.nodes) 0", manifests::uninstall_hook(&settings)),
    ] {
        let body = template(&yaml::document(&object));
        files.insert(
            format!("templates/{file}.yaml"),
            format!("{{{{- if {condition} }}}}\n{body}{{{{- end }}}}\n"),
        );
    }
    files
}

/// Takes the quotes off expressions that stand for a number, and makes as many items of one that stands for each of a list.
fn template(text: &str) -> String {
    let mut lines = String::new();
    for line in text.lines() {
        if let Some((item, rest)) = line.split_once("\"{{ each ")
            && let Some(list) = rest.strip_suffix(" }}\"")
        {
            lines.push_str(&format!("{{{{- range {list} }}}}\n{item}{{{{ quote . }}}}\n{{{{- end }}}}\n"));
            continue;
        }
        match line.split_once("\"{{ int ") {
            Some((before, rest)) if rest.ends_with(" }}\"") => {
                lines.push_str(&format!("{before}{{{{ int {}\n", rest.trim_end_matches('"')));
            }
            _ => lines.extend([line, "\n"]),
        }
    }
    lines
}

fn values() -> String {
    let mut text = MADE.to_owned();
    let mut group = "";
    for (path, value, what) in Settings::knobs() {
        let (head, name) = path.split_once('.').unwrap_or(("", path));
        if head != group && !head.is_empty() {
            text.push_str(&format!("{head}:\n"));
        }
        group = head;
        let indent = if head.is_empty() { "" } else { "  " };
        let line = yaml::document(&json!({ name: value }));
        text.push_str(&format!("{indent}# {what}\n{indent}{line}"));
    }
    text
}

/// The chart's values for people.
#[cfg(test)]
pub fn documentation() -> String {
    let mut text = String::from("| value | default | |\n|---|---|---|\n");
    for (path, value, what) in Settings::knobs() {
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.push_str(&format!("| `{path}` | `{shown}` | {what} |\n"));
    }
    text
}
