//! Whatever cuts, lists and restarts lie between, what is in force is a function of the objects that were seen and of the picture on disk.

use std::collections::BTreeMap;

use margay_policy_engine::model::{Action, Model, Order, PolicyKey, PolicyKind};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::kubernetes::kinds::CALICO;

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Valid(u16),
    Invalid,
}

#[derive(Clone, Debug)]
enum Step {
    /// Somebody writes an object; the watch tells it if there is one.
    Write(u8, Form),
    /// Somebody deletes it.
    Delete(u8),
    /// The watch is lost.
    Lose,
    /// Everything is listed again, so many objects a page.
    List(u8),
    /// The agent starts anew; it may have to begin with the picture on disk.
    Restart { alone: bool, page: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let form = prop_oneof![2 => any::<u16>().prop_map(Form::Valid), 1 => Just(Form::Invalid)];
    let step = prop_oneof![
        8 => (0..6u8, form).prop_map(|(object, form)| Step::Write(object, form)),
        3 => (0..6u8).prop_map(Step::Delete),
        1 => Just(Step::Lose),
        1 => (1..4u8).prop_map(Step::List),
        1 => (any::<bool>(), 1..4u8).prop_map(|(alone, page)| Step::Restart { alone, page }),
    ];
    proptest::collection::vec(step, 1..60)
}

fn policies() -> KindId {
    KindId::all().find(|id| id.kind().group == CALICO && id.kind().kind == "NetworkPolicy").unwrap()
}

struct World {
    folder: TempDir,
    state: State,
    model: Model,
    /// What the server has: version and form.
    server: BTreeMap<u8, (u64, Form)>,
    version: u64,
    watches: bool,
    /// What should be in force: the last valid form seen, or `None` for a closed form.
    expected: BTreeMap<u8, Option<u16>>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path(), SharedDesk::default()).unwrap();
        let mut world = Self {
            folder,
            state,
            model: Model::with_builtins(),
            server: BTreeMap::new(),
            version: 0,
            watches: false,
            expected: BTreeMap::new(),
        };
        world.begin(3);
        world
    }

    fn kept(&self, object: u8) -> Kept {
        let (version, form) = self.server[&object];
        let (selector, order) = match form {
            Form::Valid(order) => ("all()", order),
            Form::Invalid => ("(((", 0),
        };
        policies().kind().document(json!({
            "metadata": { "name": format!("p{object}"), "namespace": "shop", "resourceVersion": version.to_string() },
            "spec": { "selector": selector, "order": order, "types": ["Ingress"], "ingress": [{ "action": "Allow" }] },
        }))
    }

    fn take(&mut self, kind: KindId, event: Event) {
        let mut changes = Vec::new();
        self.state.take((Some(kind), event), &mut changes);
        self.apply(changes);
    }

    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Upsert(object) => self.model.insert(object),
                Change::Delete(key) => self.model.remove(&key),
                other => panic!("{other:?} from a source"),
            }
        }
    }

    /// Everything else is not there, and the policies are listed.
    fn begin(&mut self, page: u8) {
        KindId::all().filter(|kind| *kind != policies()).for_each(|kind| self.take(kind, Event::Unserved));
        self.list(page);
    }

    fn see(&mut self, object: u8) {
        let before = self.expected.get(&object).copied().flatten();
        let now = match self.server[&object].1 {
            Form::Valid(order) => Some(order),
            Form::Invalid => before,
        };
        self.expected.insert(object, now);
    }

    fn list(&mut self, page: u8) {
        self.take(policies(), Event::Listing);
        let objects: Vec<u8> = self.server.keys().copied().collect();
        for part in objects.chunks(usize::from(page)) {
            let part = part.iter().map(|object| self.kept(*object)).collect();
            self.take(policies(), Event::Page(part));
        }
        self.take(policies(), Event::Listed);
        self.expected.retain(|object, _| self.server.contains_key(object));
        objects.into_iter().for_each(|object| self.see(object));
        self.watches = true;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(object, form) => {
                self.version += 1;
                self.server.insert(*object, (self.version, *form));
                if self.watches {
                    let kept = self.kept(*object);
                    self.take(policies(), Event::Applied(kept.into()));
                    self.see(*object);
                }
            }
            Step::Delete(object) if self.server.contains_key(object) => {
                let kept = self.kept(*object);
                self.server.remove(object);
                if self.watches {
                    self.take(policies(), Event::Deleted(kept.into()));
                    self.expected.remove(object);
                }
            }
            Step::Delete(_) => {}
            Step::Lose => self.watches = false,
            Step::List(page) => self.list(*page),
            Step::Restart { alone, page } => {
                self.state.store(true);
                let before = std::mem::replace(&mut self.model, Model::with_builtins());
                self.state = State::open(self.folder.path(), SharedDesk::default()).unwrap();
                if *alone {
                    let earlier = self.state.earlier().unwrap_or_default();
                    self.apply(earlier);
                    assert_eq!(self.model, before, "the picture on disk is what was in force");
                }
                self.begin(*page);
            }
        }
        self.state.store(false);
    }

    fn check(&self) {
        assert_eq!(self.model.policies.len(), self.expected.len(), "{:?}", self.expected);
        for (object, form) in &self.expected {
            let name = format!("p{object}");
            let key = PolicyKey { kind: PolicyKind::NetworkPolicy, namespace: Some("shop".to_owned()), name };
            let policy = &self.model.policies[&key];
            match form {
                Some(order) => assert_eq!(policy.order, Order(f64::from(*order)), "{object}"),
                None => assert!(
                    policy.ingress.iter().all(|rule| rule.action == Action::Deny),
                    "{object}: {policy:?}"
                ),
            }
        }
    }
}

proptest! {
    #[test]
    fn what_is_in_force_depends_on_what_was_seen_and_on_the_disk_alone(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            if world.watches {
                world.check();
            }
        }
        world.list(2);
        world.check();
    }
}

#[test]
fn an_api_that_goes_away_takes_nothing_with_it_also_across_a_restart() {
    let mut world = World::new();
    world.step(&Step::Write(1, Form::Valid(7)));
    world.take(policies(), Event::Unserved);
    world.check();
    let told = world.state.problems().unwrap_or_default();
    assert!(told.iter().any(|problem| problem.reason.contains("any more")), "{told:?}");
    world.state.store(true);
    world.state = State::open(world.folder.path(), SharedDesk::default()).unwrap();
    world.model = Model::with_builtins();
    KindId::all().for_each(|kind| world.take(kind, Event::Unserved));
    assert!(world.state.is_complete());
    world.check();
    // It is there again, and empty: now its objects are gone.
    world.server.clear();
    world.list(1);
    world.check();
}

/// The records of a change, each as its fields; of one thread, for tests run beside each other.
#[derive(Clone)]
struct Records(std::sync::Arc<std::sync::Mutex<Vec<BTreeMap<String, String>>>>, std::thread::ThreadId);

impl tracing::Subscriber for Records {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == audit::TARGET
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
        tracing::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(BTreeMap<String, String>);
        impl tracing::field::Visit for Fields {
            fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
                self.0.insert(field.name().to_owned(), value.to_owned());
            }

            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.insert(field.name().to_owned(), format!("{value:?}"));
            }
        }
        if std::thread::current().id() != self.1 {
            return;
        }
        let mut fields = Fields(BTreeMap::new());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }

    fn enter(&self, _: &tracing::Id) {}

    fn exit(&self, _: &tracing::Id) {}
}

impl Records {
    /// Takes what was recorded: change, kind, name, generation, what is in force.
    fn take(&self) -> Vec<String> {
        let fields = ["change", "kind", "name", "generation", "in_force"];
        let line = |record: &BTreeMap<String, String>| {
            let words = fields.iter().filter_map(|field| record.get(*field));
            words.map(String::as_str).collect::<Vec<_>>().join(" ")
        };
        std::mem::take(&mut *self.0.lock().unwrap()).iter().map(line).collect()
    }
}

/// Policy model 22.3.
#[test]
fn pm_22_3_every_change_of_a_policy_is_recorded_with_its_generation_and_nothing_else() {
    let records = Records(std::sync::Arc::default(), std::thread::current().id());
    tracing::subscriber::set_global_default(records.clone()).expect("the only one here");
    let mut world = World::new();
    let object = |name: &str, version: u64, generation: i64, selector: &str, more: Value| {
        let mut object = json!({
            "metadata": {
                "name": name, "namespace": "shop", "uid": "u", "resourceVersion": version.to_string(), "generation": generation,
            },
            "spec": { "selector": selector, "types": ["Ingress"] },
        });
        if let (Value::Object(into), Value::Object(more)) = (&mut object["metadata"], more) {
            into.extend(more);
        }
        policies().kind().document(object)
    };
    let mut tell = |kept: Kept| world.take(policies(), Event::Applied(kept.into()));
    tell(object("p", 1, 1, "all()", json!({})));
    assert_eq!(records.take(), ["created NetworkPolicy.projectcalico.org p 1 as written"]);
    // Somebody wrote its status, or a finalizer: the server counts, policy is the same.
    tell(object("p", 2, 1, "all()", json!({ "finalizers": ["f"] })));
    tell(object("p", 3, 1, "all()", json!({ "managedFields": [] })));
    assert!(records.take().is_empty());
    tell(object("p", 4, 2, "app == 'x'", json!({})));
    // Labels have no generation.
    tell(object("p", 5, 2, "app == 'x'", json!({ "labels": { "a": "b" } })));
    assert_eq!(
        records.take(),
        [
            "changed NetworkPolicy.projectcalico.org p 2 as written",
            "changed NetworkPolicy.projectcalico.org p 2 as written",
        ]
    );
    // What cannot be understood is a change as well, once, and what is in force is said.
    for version in 6..9 {
        tell(object("p", version, 3, "(((", json!({ "labels": { "a": "b" } })));
    }
    tell(object("q", 9, 1, "(((", json!({})));
    assert_eq!(
        records.take(),
        [
            "changed NetworkPolicy.projectcalico.org p 3 last valid form",
            "created NetworkPolicy.projectcalico.org q 1 closed",
        ]
    );
    // Listed again: what is the same is no change, what is not there any more is.
    world.take(policies(), Event::Listing);
    world.take(policies(), Event::Page(vec![object("q", 9, 1, "(((", json!({}))]));
    world.take(policies(), Event::Listed);
    assert_eq!(records.take(), ["deleted NetworkPolicy.projectcalico.org p 3"]);
    world.take(policies(), Event::Deleted(object("q", 10, 1, "(((", json!({})).into()));
    assert_eq!(records.take(), ["deleted NetworkPolicy.projectcalico.org q 1"]);

    // Kinds: those of policy, sets, tiers and host endpoints; not pods and the like, whose changes the API server's audit tells.
    let recorded = KindId::all().filter(|kind| audit::records(*kind)).map(|kind| kind.kind().kind);
    let recorded: std::collections::BTreeSet<&str> = recorded.collect();
    let expected = [
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
        "ClusterNetworkPolicy",
        "GlobalNetworkPolicy",
        "GlobalNetworkSet",
        "HostEndpoint",
        "NetworkPolicy",
        "NetworkSet",
        "StagedGlobalNetworkPolicy",
        "StagedKubernetesNetworkPolicy",
        "StagedNetworkPolicy",
        "Tier",
    ];
    assert!(recorded.iter().eq(&expected), "{recorded:?}");

    // What is there at a start is no change.
    world.state.store(true);
    let folder = tempfile::tempdir().unwrap();
    world.state = State::open(folder.path(), SharedDesk::default()).unwrap();
    world.model = Model::with_builtins();
    KindId::all().filter(|kind| *kind != policies()).for_each(|kind| world.take(kind, Event::Unserved));
    world.take(policies(), Event::Listing);
    world.take(policies(), Event::Page(vec![object("p", 11, 4, "all()", json!({}))]));
    world.take(policies(), Event::Listed);
    assert!(world.state.is_complete() && records.take().is_empty());
}
