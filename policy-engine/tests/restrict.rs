//! The switch of decision PM-D4: a negative namespaceSelector without host endpoints and global sets.

use margay_policy_engine::decode::{Decoded, decode};
use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::ObjectKey;
use margay_policy_engine::oracle;
use margay_policy_engine::packet::{Direction, PacketTuple, Verdict};

const WORLD: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {env: dev}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {env: dev}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a}, spec: {nodeName: n}, status: {podIPs: [{ip: 10.0.0.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: peer, namespace: b}, spec: {nodeName: n}, status: {podIPs: [{ip: 10.0.0.2}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: office}, spec: {nets: [203.0.113.0/24]}}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: p, namespace: a}
spec:
  ingress: [{action: Allow, source: {namespaceSelector: env != 'prod'}}]
";

const SWITCH: &str = "{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {restrictNamespaceSelectors: true}}";

fn changes(text: &str) -> Vec<Change> {
    let objects = decode(text, "test").into_iter().map(|decoded| match decoded {
        Decoded::Valid { object, .. } => Change::Upsert(object),
        other => panic!("{other:?}"),
    });
    objects.collect()
}

/// Verdicts for a pod of another namespace, and for an address of a global set; tables and oracle have to agree.
fn verdicts(engine: &mut Engine) -> [Verdict; 2] {
    let snapshot = engine.publish();
    let (id, local) = engine.locals().iter().find(|(_, local)| local.pod.name == "web").unwrap();
    ["10.0.0.2", "203.0.113.9"].map(|source| {
        let packet = PacketTuple {
            source: source.parse().unwrap(),
            destination: "10.0.0.1".parse().unwrap(),
            protocol: 6,
            source_port: Some(40_000),
            destination_port: Some(80),
            icmp: None,
        };
        let verdict = snapshot.judge(*id, Direction::Ingress, &packet).unwrap().verdict;
        let (model, locals) = (engine.model(), engine.locals());
        let read = oracle::evaluate(model, locals, Direction::Ingress, &local.pod, &packet).unwrap();
        assert_eq!(read.verdict, verdict, "{source}");
        verdict
    })
}

#[test]
fn pm_d4_the_switch_narrows_and_widens_again() {
    use Verdict::{Allow, Deny};
    let mut loaded = Engine::new();
    changes(WORLD).into_iter().for_each(|change| loaded.apply(change));
    let mut engine = Engine::with_all_pods_local(loaded.model().clone());
    assert_eq!(verdicts(&mut engine), [Allow, Allow], "as in Calico");
    changes(SWITCH).into_iter().for_each(|change| engine.apply(change));
    assert_eq!(verdicts(&mut engine), [Allow, Deny]);
    // The same policy again changes nothing, and the switch holds for what comes after it.
    let generation = engine.publish().generation();
    changes(WORLD).into_iter().for_each(|change| engine.apply(change));
    assert_eq!(engine.publish().generation(), generation);
    let mut restarted = Engine::with_all_pods_local(engine.model().clone());
    assert_eq!(verdicts(&mut restarted), [Allow, Deny]);
    engine.apply(Change::Delete(ObjectKey::FelixConfiguration("default".to_owned())));
    assert_eq!(verdicts(&mut engine), [Allow, Allow]);
}
