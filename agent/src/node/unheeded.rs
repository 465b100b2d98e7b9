//! What objects say and this agent does not do: told as problems, so that nobody relies on it.

use margay_control::{Problem, Severity, object_name};
use margay_core::WorkerConfig;
use margay_core::worker::{EndpointToHost, PolicyChangeFlowAction};
use margay_policy_engine::model::{EndpointToHostAction, Model, ObjectKey, Settings};

/// Returns the problems of an agent on `node` that was started with `config`.
pub fn problems(model: &Model, node: &str, config: &WorkerConfig) -> Vec<Problem> {
    let mut problems: Vec<Problem> = model.host_endpoints.keys().map(|name| unfiltered(name)).collect();
    problems.extend(overruled(model, node, config));
    problems.extend(without_effect(model, node));
    problems
}

/// The parameters of FelixConfiguration that something acts on, beside those that are no text.
const HEEDED: [&str; 18] = [
    "encryptionExemptNodes",
    "encryptionMode",
    "flowAdoptionWindow",
    "iptablesFilterDenyAction",
    "nftablesFilterDenyAction",
    "policyChangeFlowAction",
    "prometheusWireGuardMetricsEnabled",
    "wireguardEnabled",
    "wireguardEnabledV6",
    "wireguardHostEncryptionEnabled",
    "wireguardInterfaceName",
    "wireguardInterfaceNameV6",
    "wireguardKeepAlive",
    "wireguardKeyRotationInterval",
    "wireguardListeningPort",
    "wireguardListeningPortV6",
    "wireguardMTU",
    "wireguardMTUV6",
];

/// Words that say what is done anyway.
const DONE_ANYWAY: [(&str, &str); 6] = [
    ("iptablesFilterAllowAction", "Accept"),
    ("iptablesMangleAllowAction", "Accept"),
    ("nftablesFilterAllowAction", "Accept"),
    ("nftablesMangleAllowAction", "Accept"),
    ("wireguardThreadingEnabled", "false"),
    ("workloadSourceSpoofing", "Disabled"),
];

/// Parameters that are right and that nothing here acts on.
fn without_effect(model: &Model, node: &str) -> Vec<Problem> {
    let names = ["default".to_owned(), format!("node.{node}")];
    let written = names.iter().filter_map(|name| model.felix_configurations.get(name));
    let parameters = written.flat_map(|object| object.others.iter().map(move |said| (&object.name, said)));
    parameters
        .filter(|(_, (parameter, word))| {
            !HEEDED.contains(&parameter.as_str()) && !DONE_ANYWAY.contains(&(parameter, word))
        })
        .map(|(name, (parameter, word))| {
            let reason =
                format!("{word} is right, and this agent does not act on it: what it does is as without it");
            about(&ObjectKey::FelixConfiguration(name.clone()), &format!("spec.{parameter}"), &reason)
        })
        .collect()
}

fn about(object: &ObjectKey, field: &str, reason: &str) -> Problem {
    let mut problem = Problem::of_file("", Severity::Warning, reason);
    problem.object = Some(object_name(object));
    problem.field = field.to_owned();
    problem
}

/// The packet path of this agent does not ask host endpoints.
fn unfiltered(name: &str) -> Problem {
    about(
        &ObjectKey::HostEndpoint(name.to_owned()),
        "",
        "simulate and explain answer for host endpoints; the packet path does not filter traffic of the host itself, so keep the \
         node's own firewall for that. As a peer of pods' policies the host endpoint counts",
    )
}

/// The agent's options come before FelixConfiguration (policy model 27), and it runs with those it was started with
/// (`docs/decisions/0024-three-parameters-are-options.md`).
fn overruled(model: &Model, node: &str, config: &WorkerConfig) -> Vec<Problem> {
    let to_host = match Settings::of_node(model, node).endpoint_to_host {
        None => None,
        Some(EndpointToHostAction::Accept) => Some(config.endpoint_to_host == EndpointToHost::Accept),
        Some(EndpointToHostAction::Drop) => Some(config.endpoint_to_host == EndpointToHost::Drop),
        // The host's firewall never sees the packet.
        Some(EndpointToHostAction::Return) => Some(false),
    };
    let change = model.parameter_of(node, "policyChangeFlowAction").map(|word| match config.policy_change {
        PolicyChangeFlowAction::Reevaluate => word == "reevaluate",
        PolicyChangeFlowAction::Keep => word == "keep",
    });
    let window = model.parameter_of(node, "flowAdoptionWindow").map(|text| {
        let seconds = text.trim_end_matches('s').parse::<f64>().unwrap_or_default();
        (seconds * 1e9 - config.adoption_window.0 as f64).abs() < 1.0
    });
    let said = [
        ("defaultEndpointToHostAction", "--endpoint-to-host", to_host),
        ("policyChangeFlowAction", "--policy-change-flow-action", change),
        ("flowAdoptionWindow", "--flow-adoption-window", window),
    ];
    let differing = said.into_iter().filter(|(.., agrees)| *agrees == Some(false));
    differing
        .map(|(parameter, option, _)| {
            let own = format!("node.{node}");
            let is_own = model.felix_configurations.get(&own).is_some_and(|object| {
                object.others.contains_key(parameter)
                    || parameter == "defaultEndpointToHostAction" && object.endpoint_to_host.is_some()
            });
            let object = ObjectKey::FelixConfiguration(if is_own { own } else { "default".to_owned() });
            let reason = format!(
                "node {node} does otherwise: options of the agent come first, so say it with {option} when the agent is started"
            );
            about(&object, &format!("spec.{parameter}"), &reason)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use margay_core::Nanos;
    use margay_policy_engine::model::{FelixConfiguration, Object};

    use super::*;

    fn written(name: &str, to_host: Option<EndpointToHostAction>, others: &[(&str, &str)]) -> Object {
        let others = others.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let configuration = FelixConfiguration {
            name: name.to_owned(),
            endpoint_to_host: to_host,
            others,
            ..FelixConfiguration::default()
        };
        Object::FelixConfiguration(Arc::new(configuration))
    }

    #[test]
    fn pm_27_what_nothing_acts_on_is_told_and_what_is_done_anyway_is_not() {
        let mut model = Model::with_builtins();
        let said =
            [("logPrefix", "mine"), ("workloadSourceSpoofing", "Disabled"), ("wireguardEnabled", "true")];
        model.insert(written("default", None, &said));
        model.insert(written("node.n", None, &[("workloadSourceSpoofing", "Any")]));
        model.insert(written("node.other", None, &[("logActionRateLimit", "1/second")]));
        let told = problems(&model, "n", &WorkerConfig::default());
        let told: Vec<(String, String)> =
            told.into_iter().map(|problem| (problem.object.unwrap_or_default(), problem.field)).collect();
        let of =
            |object: &str, field: &str| (format!("FelixConfiguration/{object}"), format!("spec.{field}"));
        assert_eq!(told, [of("default", "logPrefix"), of("node.n", "workloadSourceSpoofing")]);
    }

    #[test]
    fn pm_27_what_an_option_overrules_is_told_with_the_object_that_says_otherwise() {
        let config = WorkerConfig {
            endpoint_to_host: EndpointToHost::Accept,
            adoption_window: Nanos::from_secs(90),
            ..WorkerConfig::default()
        };
        let mut model = Model::with_builtins();
        let told = |model: &Model| {
            let list = problems(model, "n", &config);
            list.into_iter().map(|p| (p.object.unwrap_or_default(), p.field)).collect::<Vec<_>>()
        };
        let same = [("policyChangeFlowAction", "reevaluate"), ("flowAdoptionWindow", "90s")];
        model.insert(written("default", Some(EndpointToHostAction::Accept), &same));
        assert_eq!(told(&model), []);
        model.insert(written("node.n", Some(EndpointToHostAction::Drop), &[("flowAdoptionWindow", "1.5s")]));
        model.insert(written("default", None, &[("policyChangeFlowAction", "keep")]));
        let of =
            |object: &str, field: &str| (format!("FelixConfiguration/{object}"), format!("spec.{field}"));
        assert_eq!(
            told(&model),
            [
                of("node.n", "defaultEndpointToHostAction"),
                of("default", "policyChangeFlowAction"),
                of("node.n", "flowAdoptionWindow"),
            ]
        );
        model.insert(written("node.n", Some(EndpointToHostAction::Return), &[]));
        assert_eq!(told(&model)[0], of("node.n", "defaultEndpointToHostAction"));
    }
}
