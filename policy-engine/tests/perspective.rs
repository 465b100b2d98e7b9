//! Policy model 27: what rules and addresses mean on a node is said by its own FelixConfiguration before `default`.

use margay_policy_engine::decode::{Decoded, decode};
use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::{NamespacedName, ObjectKey};
use margay_policy_engine::oracle;
use margay_policy_engine::packet::{Direction, EndpointId, PacketTuple, Verdict};

const WORLD: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {env: dev}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a}, spec: {nodeName: here}, status: {podIPs: [{ip: 10.0.0.1}]}}
---
# Only an annotation says where this pod is.
apiVersion: v1
kind: Pod
metadata: {name: peer, namespace: a, labels: {app: peer}, annotations: {cni.projectcalico.org/podIPs: 10.0.1.2/32}}
spec: {nodeName: there}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: office}, spec: {nets: [203.0.113.0/24]}}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: p, namespace: a}
spec:
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: app == 'peer'}}
  - {action: Allow, protocol: TCP, source: {namespaceSelector: env != 'dev'}}
  - {action: Allow, protocol: TCP, source: {nets: [198.51.100.0/24]}, http: {methods: [GET]}}
";

/// From the annotated pod, from the global set, by the rule with a criterion that nothing enforces.
const SOURCES: [&str; 3] = ["10.0.1.2", "203.0.113.9", "198.51.100.7"];

fn felix(name: &str, spec: &str) -> Change {
    let text = format!(
        "{{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
    );
    changes(&text).remove(0)
}

fn changes(text: &str) -> Vec<Change> {
    let objects = decode(text, "test").into_iter().map(|decoded| match decoded {
        Decoded::Valid { object, .. } => Change::Upsert(object),
        other => panic!("{other:?}"),
    });
    objects.collect()
}

fn on_node(name: &str) -> Engine {
    let mut engine = Engine::on_node(name);
    changes(WORLD).into_iter().for_each(|change| engine.apply(change));
    let pod = NamespacedName { namespace: "a".to_owned(), name: "web".to_owned() };
    let addresses = vec!["10.0.0.1".parse().unwrap()];
    engine.apply(Change::Endpoint(LocalEndpoint { id: EndpointId(1), pod, uid: String::new(), addresses }));
    engine
}

/// Verdicts for the three sources; tables and oracle have to agree.
fn verdicts(engine: &mut Engine) -> [bool; 3] {
    let snapshot = engine.publish();
    SOURCES.map(|source| {
        let packet = PacketTuple {
            source: source.parse().unwrap(),
            destination: "10.0.0.1".parse().unwrap(),
            protocol: 6,
            source_port: Some(40_000),
            destination_port: Some(80),
            icmp: None,
        };
        let verdict = snapshot.judge(EndpointId(1), Direction::Ingress, &packet).unwrap().verdict;
        let (model, locals) = (engine.model(), engine.locals());
        let pod = &locals[&EndpointId(1)].pod;
        let read = oracle::evaluate(model, locals, Direction::Ingress, pod, &packet).unwrap();
        assert_eq!(read.verdict, verdict, "{source}");
        verdict == Verdict::Allow
    })
}

#[test]
fn pm_27_every_switch_of_a_node_holds_on_that_node_and_nowhere_else() {
    let as_usual = [false, true, false];
    let all = "trustPodIPAnnotations: true, restrictNamespaceSelectors: true, allowUnenforcedCriteria: true";
    let (mut here, mut there) = (on_node("here"), on_node("there"));
    for engine in [&mut here, &mut there] {
        assert_eq!(verdicts(engine), as_usual);
        engine.apply(felix("node.here", all));
    }
    assert_eq!((verdicts(&mut here), verdicts(&mut there)), ([true, false, true], as_usual));
    // One by one, and back: the object `default` says the opposite, and the node's own comes first.
    for engine in [&mut here, &mut there] {
        engine.apply(felix("default", all));
        engine.apply(felix("node.here", "trustPodIPAnnotations: false"));
    }
    assert_eq!((verdicts(&mut here), verdicts(&mut there)), ([false, false, true], [true, false, true]));
    here.apply(felix("node.here", "restrictNamespaceSelectors: false, allowUnenforcedCriteria: false"));
    assert_eq!(verdicts(&mut here), [true, true, false]);
    here.apply(Change::Delete(ObjectKey::FelixConfiguration("node.here".to_owned())));
    assert_eq!(verdicts(&mut here), [true, false, true]);
    here.apply(Change::Delete(ObjectKey::FelixConfiguration("default".to_owned())));
    assert_eq!(verdicts(&mut here), as_usual);
}

#[test]
fn pm_27_a_parameter_of_a_node_comes_before_that_of_all_nodes() {
    let mut engine = Engine::on_node("here");
    engine.apply(felix("default", "wireguardEnabled: true, wireguardListeningPort: 4000"));
    engine.apply(felix("node.here", "wireguardEnabled: false"));
    let model = engine.model();
    let told = |node: &str| {
        ["wireguardEnabled", "wireguardListeningPort", "wireguardMTU"]
            .map(|name| model.parameter_of(node, name))
    };
    assert_eq!(told("here"), [Some("false"), Some("4000"), None]);
    assert_eq!(told("there"), [Some("true"), Some("4000"), None]);
    assert_eq!(model.nodes_apart(), Vec::<&str>::new(), "rules mean the same everywhere");
}
