//! The switch `trustPodIPAnnotations`: what a pod claims by annotation counts while it is set, and not a moment longer (PM-D24).

mod support;

use std::sync::Arc;

use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::{Action, Entity, FelixConfiguration, Object, ObjectKey};
use support::{Allow, Deny, Ingress, Judge, local, name, pod, policy, rule, selector};

#[test]
fn pm_d24_a_claim_by_annotation_ends_with_the_switch() {
    let mut claiming = pod("a/claiming", "", &[("app", "friend")], &[]);
    claiming.annotated_addresses = vec!["10.0.0.9".parse().unwrap()];
    let mut allow = rule(Action::Allow);
    allow.source = Entity { selector: Some(selector("app == 'friend'")), ..Entity::default() };
    let mut friends = policy("friends", 1.0);
    friends.ingress = vec![allow];
    let trusting = |trusts| {
        Object::FelixConfiguration(Arc::new(FelixConfiguration {
            name: "default".to_owned(),
            trust_pod_ip_annotations: Some(trusts),
            ..FelixConfiguration::default()
        }))
    };
    let mut judge = Judge::new(Engine::new());
    judge
        .apply(Change::Upsert(Object::Pod(Arc::new(claiming))))
        .apply(Change::Upsert(Object::Pod(Arc::new(pod("a/web", "10.0.0.1", &[], &[])))))
        .apply(Change::Upsert(Object::Policy(Arc::new(friends))))
        .apply(Change::Endpoint(local(1, "a/web", "", "10.0.0.1")));
    assert_eq!(judge.engine.endpoint_of(&name("a/web")).map(|id| id.0), Some(1));
    let mut verdict = |change| {
        judge.apply(change).publish();
        judge.verdict(Ingress, "a/web", "tcp 10.0.0.9:1 > 10.0.0.1:80")
    };
    assert_eq!(verdict(Change::Upsert(trusting(false))), Deny);
    assert_eq!(verdict(Change::Upsert(trusting(true))), Allow);
    assert_eq!(verdict(Change::Upsert(trusting(false))), Deny);
    assert_eq!(verdict(Change::Upsert(trusting(true))), Allow);
    assert_eq!(verdict(Change::Delete(ObjectKey::FelixConfiguration("default".to_owned()))), Deny);
}
