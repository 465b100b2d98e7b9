//! What is under `deploy/` and in the documentation is what the code says, the chart renders to the same objects, and the command line
//! understands what the manifests give it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use clap::Parser;
use gtmpl::{Context, FuncError, Template, Value as Go};
use margay_policy_engine::decode::split_documents;
use serde_json::{Value, json};

use super::settings::Settings;
use super::{chart, manifests, reference, rights, yaml};
use crate::cli::Cli;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Compares `files` with what is there, or writes them when asked to.
fn compare(folder: &Path, files: &BTreeMap<String, String>) {
    for (path, wanted) in files {
        let file = folder.join(path);
        if std::env::var_os("MARGAY_WRITE_DOCS").is_some() {
            fs::create_dir_all(file.parent().expect("a folder")).expect("folder");
            fs::write(&file, wanted).expect("write");
        }
        let there = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            there == *wanted,
            "{} is not what the code says; MARGAY_WRITE_DOCS=1 writes it",
            file.display()
        );
    }
}

fn listing(folder: &Path, below: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            listing(folder, &path, into);
        } else {
            into.push(path.strip_prefix(folder).expect("below").to_string_lossy().into_owned());
        }
    }
}

#[test]
fn deploy_is_what_the_code_says() {
    let (files, folder) = (chart::tree(), root().join("deploy"));
    compare(&folder, &files);
    let mut there = Vec::new();
    listing(&folder, &folder, &mut there);
    there.retain(|path| !files.contains_key(path) && path != "Dockerfile" && path != "README.md");
    assert!(there.is_empty(), "nobody makes these: {there:?}");
}

#[test]
fn pages_are_what_the_code_says() {
    let pages = [
        ("rbac.md", rights::documentation()),
        ("configuration.md", reference::page()),
        ("doctor.md", crate::doctor::documentation()),
    ];
    compare(&root().join("docs"), &pages.map(|(name, text)| (name.to_owned(), text)).into());
}

/// Values as the chart has them, some of them changed.
fn values(changes: &[(&str, Value)]) -> Value {
    let text = &chart::tree()["chart/margay/values.yaml"];
    let mut values = split_documents(text, "").remove(0).expect("values").0;
    for (path, value) in changes {
        let at = format!("/{}", path.replace('.', "/"));
        *values.pointer_mut(&at).expect("a value of this name") = value.clone();
    }
    values
}

fn go(value: &Value) -> Go {
    match value {
        Value::Object(map) => Go::Map(map.iter().map(|(key, inner)| (key.clone(), go(inner))).collect()),
        Value::Array(items) => Go::Array(items.iter().map(go).collect()),
        Value::Bool(value) => Go::Bool(*value),
        Value::Number(number) => Go::from(number.as_i64().expect("whole numbers")),
        Value::String(text) => Go::String(text.clone()),
        Value::Null => Go::Nil,
    }
}

/// Renders a template of the chart as helm does, with the functions of helm that it uses.
fn render(text: &str, values: &Value) -> Vec<Value> {
    fn int(arguments: &[Go]) -> Result<Go, FuncError> {
        match arguments {
            [Go::Number(number)] => Ok(Go::Number(number.clone())),
            other => Err(FuncError::Generic(format!("int {other:?}"))),
        }
    }
    fn quote(arguments: &[Go]) -> Result<Go, FuncError> {
        match arguments {
            [Go::String(text)] => Ok(Go::String(format!("{text:?}"))),
            other => Err(FuncError::Generic(format!("quote {other:?}"))),
        }
    }
    let mut template = Template::default();
    template.add_func("int", int);
    template.add_func("quote", quote);
    template.parse(text).expect("a template");
    let data = go(&json!({ "Values": values, "Release": { "Namespace": "net" } }));
    let rendered = template.render(&Context::from(data)).expect("renders");
    split_documents(&rendered, "").into_iter().map(|document| document.expect(&rendered).0).collect()
}

fn rendered(file: &str, changes: &[(&str, Value)]) -> Vec<Value> {
    render(&chart::tree()[&format!("chart/margay/templates/{file}.yaml")], &values(changes))
}

#[test]
fn the_chart_renders_to_the_plain_manifests() {
    let settings = Settings { namespace: "net".to_owned(), ..Settings::default() };
    assert_eq!(rendered("agent", &[]), manifests::agent(&settings));
    for file in ["podmonitor", "dashboard", "uninstall", "encryption", "admission"] {
        assert_eq!(rendered(file, &[]), Vec::<Value>::new(), "{file} is off unless asked for");
    }
}

#[test]
fn every_value_of_the_chart_reaches_the_objects() {
    let settings = Settings {
        image: "r.example/m@sha256:0".to_owned(),
        pull_policy: "Always".to_owned(),
        namespace: "net".to_owned(),
        key_namespace: "keys".to_owned(),
        uplink: "eth0,eth1".to_owned(),
        endpoint_to_host: "drop".to_owned(),
        agent_args: vec!["--workers=2".to_owned(), "--cpu-latency=0us".to_owned()],
        metrics_address: "[::]".to_owned(),
        metrics_port: json!(1234),
        memory: "1Gi".to_owned(),
        cpu: "2".to_owned(),
        cni_bin: "/opt/bin".to_owned(),
        cni_conf: "/etc/other".to_owned(),
        ipam: "whereabouts".to_owned(),
        nodes: json!(7),
    };
    let changes = [
        ("image", json!(settings.image)),
        ("imagePullPolicy", json!("Always")),
        ("encryption.enabled", json!(true)),
        ("encryption.keyNamespace", json!("keys")),
        ("admission.enabled", json!(true)),
        ("uplink", json!("eth0,eth1")),
        ("endpointToHost", json!("drop")),
        ("agentArgs", json!(settings.agent_args)),
        ("metrics.address", json!("[::]")),
        ("metrics.port", json!(1234)),
        ("resources.memory", json!("1Gi")),
        ("resources.cpu", json!("2")),
        ("cni.binDir", json!("/opt/bin")),
        ("cni.confDir", json!("/etc/other")),
        ("cni.ipam", json!("whereabouts")),
        ("podMonitor.enabled", json!(true)),
        ("dashboard.enabled", json!(true)),
        ("uninstall.nodes", json!(7)),
    ];
    assert_eq!(changes.len(), Settings::knobs().len(), "a value is not tried here");
    assert_eq!(rendered("agent", &changes), manifests::agent(&settings));
    assert_eq!(rendered("uninstall", &changes), [manifests::uninstall_hook(&settings)]);
    assert_eq!(rendered("encryption", &changes), manifests::encryption(&settings));
    assert_eq!(rendered("admission", &changes), manifests::admission(&settings));
    assert_eq!(rendered("podmonitor", &changes), [manifests::pod_monitor(&settings)]);
    let map = rendered("dashboard", &changes).remove(0);
    let inside: Value =
        serde_json::from_str(map["data"]["margay.json"].as_str().expect("text")).expect("JSON");
    assert_eq!(inside, super::dashboard::dashboard());
}

/// With the engine that helm has inside, where Go is installed.
#[test]
fn the_engine_of_go_renders_the_same() {
    let files = chart::tree();
    let templates = files.iter().filter(|(path, _)| path.starts_with("chart/margay/templates/"));
    let changes = [
        ("podMonitor.enabled", json!(true)),
        ("dashboard.enabled", json!(true)),
        ("encryption.enabled", json!(true)),
        ("admission.enabled", json!(true)),
        ("uninstall.nodes", json!(3)),
        ("agentArgs", json!(["--spin=10ms", "--max-flows=\"b\""])),
    ];
    let mut compared = 0;
    for values in [values(&[]), values(&changes)] {
        for (path, text) in templates.clone() {
            let question =
                json!({ "Template": text, "Data": { "Values": values, "Release": { "Namespace": "net" } } });
            let mut go = std::process::Command::new("go");
            go.args(["run", "src/install/render.go"]).current_dir(env!("CARGO_MANIFEST_DIR"));
            let child = go.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
            let Ok(mut child) = child else {
                println!(
                    "SKIPPED the_engine_of_go_renders_the_same: needs the program go (package golang-go)"
                );
                return;
            };
            let mut ear = child.stdin.take().expect("piped");
            ear.write_all(question.to_string().as_bytes()).expect("asked");
            drop(ear);
            let output = child.wait_with_output().expect("ends");
            assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
            let objects: Vec<Value> = split_documents(&String::from_utf8_lossy(&output.stdout), "")
                .into_iter()
                .map(|document| document.expect("an object").0)
                .collect();
            assert_eq!(objects, render(text, &values), "{path}");
            compared += objects.len();
        }
    }
    let agent = manifests::agent(&Settings::default()).len();
    assert_eq!(compared, 2 * agent + 11, "every object of both settings");
}

/// With helm itself, where it is installed.
#[test]
fn helm_renders_the_same() {
    let chart = root().join("deploy/chart/margay");
    let all = ["podMonitor.enabled=true", "uninstall.nodes=3"];
    let mut helm = std::process::Command::new("helm");
    helm.args(["template", "m", "--namespace", "net"]).arg(&chart);
    for set in all {
        helm.args(["--set", set]);
    }
    let Ok(output) = helm.output() else {
        println!("SKIPPED helm_renders_the_same: needs the program helm");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut objects: Vec<Value> = split_documents(&String::from_utf8_lossy(&output.stdout), "")
        .into_iter()
        .map(|document| document.expect("an object").0)
        .collect();
    let settings = Settings { namespace: "net".to_owned(), nodes: json!(3), ..Settings::default() };
    let mut wanted = manifests::agent(&settings);
    wanted.extend([manifests::pod_monitor(&settings), manifests::uninstall_hook(&settings)]);
    let by_name = |value: &Value| format!("{}/{}", value["kind"], value["metadata"]["name"]);
    objects.sort_by_key(by_name);
    wanted.sort_by_key(by_name);
    assert_eq!(objects, wanted);
}

fn pods() -> Vec<Value> {
    let settings = Settings::default();
    let mut objects = manifests::agent(&settings);
    objects.extend([manifests::uninstall_everywhere(&settings), manifests::uninstall_hook(&settings)]);
    objects
        .into_iter()
        .map(|object| object["spec"]["template"]["spec"].clone())
        .filter(|spec| !spec.is_null())
        .collect()
}

#[test]
fn every_container_is_started_with_what_the_command_line_knows() {
    let mut commands = Vec::new();
    for pod in pods() {
        for container in
            ["initContainers", "containers"].iter().filter_map(|list| pod[list].as_array()).flatten()
        {
            let arguments: Vec<String> =
                serde_json::from_value(container["args"].clone()).expect("arguments");
            let arguments = manifests::handed_over(&arguments);
            let words: Vec<String> = std::iter::once("margay".to_owned()).chain(arguments).collect();
            commands.push(words[1].clone());
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("{words:?}: {error}");
            }
        }
    }
    assert_eq!(commands, ["cni-install", "agent", "uninstall", "uninstall", "uninstall"]);
}

#[test]
fn what_keeps_agents_from_starting_is_told_before_anything_is_printed() {
    let with = |arguments: &[&str]| {
        let agent_args = arguments.iter().map(|it| (*it).to_owned()).collect();
        super::check_arguments(&Settings { agent_args, ..Settings::default() })
    };
    assert_eq!(with(&["--workers=2", "--cpu-latency=0us", "--spin=10ms"]), Ok(()));
    for (wrong, named) in [
        ("--worker=2", "'--worker'"),
        ("--workers=many", "'many'"),
        ("--cni-ipam=other", "'--cni-ipam <"),
        ("--help", "would not start"),
    ] {
        let why = with(&[wrong]).expect_err(wrong);
        assert!(why.contains(named), "{wrong}: {why}");
    }
    let nowhere = Settings { metrics_address: "::".to_owned(), ..Settings::default() };
    assert!(super::check_arguments(&nowhere).is_err_and(|why| why.contains(":::9470")));
}

#[test]
fn the_agent_is_restrained_by_nothing_that_would_stop_packets() {
    let pod = &pods()[0];
    let agent = &pod["containers"][0];
    assert_eq!(agent["resources"].get("limits"), None);
    assert_eq!(agent["resources"]["requests"]["memory"], format!("{}Mi", super::memory_request(110)));
    assert_eq!(
        (&pod["hostNetwork"], &pod["priorityClassName"]),
        (&json!(true), &json!("system-node-critical"))
    );
    assert_eq!(agent["readinessProbe"]["httpGet"]["path"], "/readyz");
    assert_eq!(agent["livenessProbe"]["httpGet"]["path"], "/healthz");
    // Programs are pinned in a file system that the agent mounts, and that has to outlive its container.
    let mounts = agent["volumeMounts"].as_array().expect("mounts");
    let run = mounts.iter().find(|mount| mount["mountPath"] == manifests::RUN).expect("the run folder");
    assert_eq!(run["mountPropagation"], "Bidirectional");
    for pod in pods() {
        let volumes = pod["volumes"].as_array().expect("volumes").len();
        assert_eq!(volumes, mounts.len());
        assert!(!pod.to_string().contains("/bin/sh"), "the image has no shell");
    }
}

#[test]
fn what_is_printed_reads_back() {
    let objects = manifests::agent(&Settings::default());
    let read: Vec<Value> = split_documents(&yaml::documents(&objects), "")
        .into_iter()
        .map(|document| document.expect("reads").0)
        .collect();
    assert_eq!(read, objects);
}

/// Whether the rule of admission `name` lets a request through, evaluated as an API server does with what it is told about it by names
/// (`request`, `object`, `oldObject`, `params`); `None` where it is not asked.
fn admitted(name: &str, told: &[(&str, &Value)]) -> Option<bool> {
    let rules = manifests::admission(&Settings::default());
    let rule = rules.iter().find(|rule| rule["metadata"]["name"] == name).expect("a rule");
    let evaluate = |expression: &Value, variables: &Value| {
        let text = expression.as_str().expect("text");
        let program = cel::Program::compile(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut context = cel::Context::default();
        for (name, value) in told.iter().copied().chain([("variables", variables)]) {
            context.add_variable(name, value.clone()).expect("a value");
        }
        program.execute(&context).unwrap_or_else(|error| panic!("{text}: {error}"))
    };
    let each = |field: &str| rule["spec"][field].as_array().cloned().unwrap_or_default();
    let no_variables = json!({});
    if each("matchConditions")
        .iter()
        .any(|condition| evaluate(&condition["expression"], &no_variables) != cel::Value::Bool(true))
    {
        return None;
    }
    let mut variables = json!({});
    for variable in each("variables") {
        let cel::Value::String(text) = evaluate(&variable["expression"], &variables) else {
            panic!("no text")
        };
        variables[variable["name"].as_str().expect("a name")] = json!(*text);
    }
    Some(
        each("validations")
            .iter()
            .all(|one| evaluate(&one["expression"], &variables) == cel::Value::Bool(true)),
    )
}

#[test]
fn pm_22_1_admission_keeps_built_in_tiers_and_lets_nobody_join_one_that_is_deleted() {
    let named = |name: &str| json!({ "metadata": { "name": name } });
    for (name, wanted) in
        [("default", false), ("kube-admin", false), ("kube-baseline", false), ("security", true)]
    {
        let told = [("oldObject", &named(name)), ("object", &Value::Null)];
        assert_eq!(admitted("margay-built-in-tiers", &told), Some(wanted), "{name}");
    }
    let ending = json!({ "metadata": { "name": "security", "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    let policy =
        |tier: Option<&str>| tier.map_or(json!({ "spec": {} }), |tier| json!({ "spec": { "tier": tier } }));
    let ask = |tier: &Value, object: &Value, before: &Value| {
        let told = [("params", tier), ("object", object), ("oldObject", before)];
        admitted("margay-ending-tiers", &told).expect("it is asked about every policy")
    };
    let (inside, outside) = (policy(Some("security")), policy(Some("other")));
    assert!(!ask(&ending, &inside, &Value::Null), "made in it");
    assert!(!ask(&ending, &inside, &outside), "moved into it");
    assert!(ask(&ending, &inside, &inside), "what is in it may be changed");
    assert!(ask(&ending, &outside, &inside), "and may leave");
    assert!(ask(&ending, &outside, &Value::Null) && ask(&named("security"), &inside, &Value::Null));
    // A policy without a tier is in the default one, which is for everybody also when somebody deleted it.
    let ending = json!({ "metadata": { "name": "default", "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    for blank in [policy(None), policy(Some("")), json!({})] {
        assert!(ask(&ending, &blank, &Value::Null), "{blank}");
    }
    let rules = manifests::admission(&Settings::default());
    let binding =
        rules.iter().find(|rule| rule["spec"]["policyName"] == "margay-ending-tiers").expect("a binding");
    let rule = rules.iter().find(|rule| rule["metadata"]["name"] == "margay-ending-tiers").expect("a rule");
    assert_eq!(rule["spec"]["failurePolicy"], "Ignore", "a server that knows no tiers yet takes policies");
    // What is spelled wrong here is never asked about.
    let asked = &rule["spec"]["matchConstraints"]["resourceRules"][0];
    let served: Vec<&str> =
        margay_policy_engine::schema::resources().iter().map(|resource| resource.plural).collect();
    for resource in asked["resources"].as_array().expect("resources") {
        assert!(served.iter().any(|plural| resource == *plural), "{resource} of {served:?}");
    }
    assert_eq!(asked["operations"], json!(["CREATE", "UPDATE"]));
    assert_eq!(binding["spec"]["paramRef"], json!({ "selector": {}, "parameterNotFoundAction": "Allow" }));
}

#[test]
fn pm_32_1_admission_lets_an_agent_write_its_own_node_and_secret_alone() {
    const OWN: &str = "margay-own-node";
    let request = |resource: &str, node: Option<&str>| {
        let extra =
            node.map_or(json!({}), |node| json!({ "authentication.kubernetes.io/node-name": [node] }));
        json!({
            "resource": { "resource": resource },
            "userInfo": { "username": "system:serviceaccount:kube-system:margay", "extra": extra },
        })
    };
    let node = |name: &str, labels: Value, spec: &str| json!({ "metadata": { "name": name, "labels": labels }, "spec": { "podCIDR": spec } });
    let plain = node("a", json!({ "x": "y" }), "10.0.0.0/24");
    let ask = |node: Option<&str>, object: &Value, before: &Value| {
        admitted(OWN, &[("request", &request("nodes", node)), ("object", object), ("oldObject", before)])
    };
    assert_eq!(ask(Some("a"), &plain, &plain), Some(true));
    assert_eq!(ask(Some("b"), &plain, &plain), Some(false), "another node");
    assert_eq!(ask(None, &plain, &plain), Some(false), "a token that does not say where");
    for changed in [node("a", json!({}), "10.0.0.0/24"), node("a", json!({ "x": "y" }), "10.0.0.0/16")] {
        assert_eq!(ask(Some("a"), &changed, &plain), Some(false), "{changed}");
    }
    let bare = json!({ "metadata": { "name": "a" }, "spec": {} });
    assert_eq!(ask(Some("a"), &bare, &bare), Some(true), "no labels, before and after");
    assert_eq!(ask(Some("a"), &plain, &bare), Some(false), "labels from nowhere");
    assert_eq!(ask(Some("a"), &bare, &Value::Null), Some(false), "Nodes are not made");
    let secret = |name: &str| json!({ "metadata": { "name": name } });
    for (name, wanted) in [("wireguard-a", true), ("wireguard-b", false), ("other", false)] {
        let asked = request("secrets", Some("a"));
        let found =
            admitted(OWN, &[("request", &asked), ("object", &secret(name)), ("oldObject", &Value::Null)]);
        assert_eq!(found, Some(wanted), "{name}");
    }
    let mut other = request("nodes", None);
    other["userInfo"]["username"] = json!("system:node:a");
    let told = [("request", &other), ("object", &plain), ("oldObject", &plain)];
    assert_eq!(admitted(OWN, &told), None, "kubelets are not asked");
}
