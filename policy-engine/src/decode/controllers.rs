//! KubeControllersConfiguration (policy model 7.8): what it says about automatic host endpoints; the rest is for another program.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::Value;

use super::field::{Fields, Problems};
use super::identity::Metadata;
use super::policy::open_spec;
use super::{rule, scalar};
use crate::model::{HostEndpointTemplate, KubeControllersConfiguration, Object};

/// Reads a KubeControllersConfiguration.
pub(super) fn configuration(value: &Value, metadata: &Metadata, problems: &mut Problems) -> Object {
    let mut spec = open_spec(value, problems);
    if metadata.name != "default" {
        problems.warn("metadata.name", &metadata.name, "only the object default has an effect; rename it");
    }
    for name in [
        "logSeverityScreen",
        "healthChecks",
        "etcdV3CompactionPeriod",
        "prometheusMetricsPort",
        "debugProfilePort",
    ] {
        spec.raw(name);
    }
    let mut controllers = spec.object("controllers", problems);
    for name in [
        "policy",
        "workloadEndpoint",
        "serviceAccount",
        "namespace",
        "loadBalancer",
        "policyMigration",
        "routereflector",
    ] {
        controllers.raw(name);
    }
    let mut node = controllers.object("node", problems);
    for name in ["reconcilerPeriod", "syncLabels", "leakGracePeriod"] {
        node.raw(name);
    }
    let mut host_endpoint = node.object("hostEndpoint", problems);
    let auto_create = switch(&mut host_endpoint, "autoCreate", false, problems);
    let create_default = switch(&mut host_endpoint, "createDefaultHostEndpoint", true, problems);
    let templates = templates(&mut host_endpoint, problems);
    for fields in [host_endpoint, node, controllers, spec] {
        fields.finish(problems);
    }
    let name = metadata.name.clone();
    Object::KubeControllersConfiguration(
        KubeControllersConfiguration { name, auto_create, create_default, templates }.into(),
    )
}

fn switch(fields: &mut Fields<'_>, name: &'static str, otherwise: bool, problems: &mut Problems) -> bool {
    match fields.text(name, problems) {
        None | Some("") => otherwise,
        Some("Enabled") => true,
        Some("Disabled") => false,
        Some(other) => {
            problems.refuse_text(fields.at(name), other, "must be Enabled or Disabled, in this spelling");
            otherwise
        }
    }
}

fn templates(fields: &mut Fields<'_>, problems: &mut Problems) -> Vec<HostEndpointTemplate> {
    let mut names = BTreeSet::new();
    let mut templates = Vec::new();
    for (path, item) in fields.list("templates", problems) {
        let mut fields = Fields::open(path, Some(item), problems);
        let template = template(&mut fields, problems);
        if !names.insert(template.generate_name.clone()) {
            let reason = "written twice; two templates of one name would make the same host endpoints";
            problems.refuse_text(fields.at("generateName"), &template.generate_name, reason);
        }
        fields.finish(problems);
        templates.push(template);
    }
    templates
}

fn template(fields: &mut Fields<'_>, problems: &mut Problems) -> HostEndpointTemplate {
    let generate_name = fields.text("generateName", problems).unwrap_or_default().to_owned();
    if !scalar::is_dns_subdomain(&generate_name) {
        let reason = "required: a part of a name, [a-z0-9.-], at most 253 characters";
        problems.refuse_text(fields.at("generateName"), &generate_name, reason);
    }
    let mut interface_cidrs = Vec::new();
    for (path, text) in fields.texts("interfaceCIDRs", problems) {
        match scalar::cidr_or_address(text) {
            Ok(net) => interface_cidrs.push(net),
            Err(reason) => problems.refuse_text(path, text, reason),
        }
    }
    let interface_pattern = fields.text("interfacePattern", problems).filter(|text| !text.is_empty());
    if let Some(text) = interface_pattern.filter(|text| Regex::new(text).is_err()) {
        problems.refuse_text(fields.at("interfacePattern"), text, "not a regular expression");
    }
    if interface_cidrs.is_empty() && interface_pattern.is_none() {
        let reason = "write interfaceCIDRs or interfacePattern; one of them finds the interfaces";
        problems.refuse_text(fields.at("interfaceCIDRs"), "", reason);
    }
    let labels = fields.text_map("labels", problems);
    scalar::check_labels(&fields.at("labels"), &labels, problems);
    let annotations = fields.text_map("annotations", problems);
    scalar::check_annotations(&fields.at("annotations"), &annotations, problems);
    HostEndpointTemplate {
        generate_name,
        interface_cidrs,
        interface_pattern: interface_pattern.map(str::to_owned),
        labels,
        annotations,
        node_selector: rule::selector(fields, "nodeSelector", problems),
    }
}
