//! A folder of manifests as a source of truth: what is in force after files come, change, break and go, also across restarts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use margay_control::{Directory, DirectoryConfig, Problem, Severity, Source};
use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{Action, Model, PolicyKey, PolicyKind};
use proptest::prelude::*;
use tempfile::TempDir;

const VALID: &str = "
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: { name: web, namespace: shop }
spec:
  types: [Ingress]
  selector: role == 'web'
  ingress:
  - action: Allow
    protocol: TCP
    source: { nets: [10.0.0.0/8] }
    destination: { ports: [443] }
";

#[test]
fn change_of_a_file_is_told_well_under_a_second() {
    let mut world = World::new();
    world.write("a.yaml", VALID);
    world.settle();
    assert!(world.policy("shop", "web").is_some());
    let began = Instant::now();
    world.write("b.yaml", &VALID.replace("web", "api"));
    world.wait_for("the new policy", |world| world.policy("shop", "api").is_some());
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    fs::remove_file(world.path("b.yaml")).unwrap();
    world.wait_for("its end", |world| world.policy("shop", "api").is_none());
    assert!(world.policy("shop", "web").is_some());
}

#[test]
fn busy_neighbour_of_the_folder_delays_nothing() {
    let mut world = World::new();
    world.settle();
    let beside = world.root.path().join("log");
    let stop = Arc::new(AtomicBool::new(false));
    let neighbour = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                write_whole(&beside, "a line");
                thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let mut fastest = Duration::MAX;
    for round in 0..3 {
        let name = format!("p{round}");
        let began = Instant::now();
        world.write(&format!("{name}.yaml"), &VALID.replace("web", &name));
        world.wait_for("the new policy", |world| world.policy("shop", &name).is_some());
        fastest = fastest.min(began.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    neighbour.join().unwrap();
    assert!(fastest < Duration::from_millis(400), "{fastest:?}");
}

#[test]
fn every_kind_of_error_is_named_with_its_place_and_keeps_the_last_valid_form() {
    let cases: [(&str, String, &str, &str); 8] = [
        ("bad YAML", format!("{VALID}\n  - [unclosed"), "", "YAML"),
        ("bad selector", VALID.replace("role == 'web'", "role = 'web'"), "spec.selector", ""),
        ("misspelt field that must be there", VALID.replace("action:", "actoin:"), "action", ""),
        ("wrong type", VALID.replace("[Ingress]", "7"), "spec.types", ""),
        ("host bits", VALID.replace("10.0.0.0/8", "10.0.0.999/8"), "nets", ""),
        ("port out of range", VALID.replace("443", "70000"), "ports", ""),
        ("no name", VALID.replace("name: web, ", ""), "name", ""),
        ("not UTF-8", String::new(), "", "UTF-8"),
    ];
    for (what, text, field, reason) in cases {
        let mut world = World::new();
        world.write("ok.yaml", &VALID.replace("web", "other"));
        world.write("web.yaml", VALID);
        world.settle();
        let before = world.model.clone();
        if what == "not UTF-8" {
            fs::write(world.path("web.yaml"), b"kind: \xff\xfe").unwrap();
        } else {
            world.write("web.yaml", &text);
        }
        world.wait_for(what, |world| !world.problems().is_empty());
        assert_eq!(world.model, before, "{what}");
        let problems = world.problems();
        let told = |p: &Problem| {
            p.file.ends_with("web.yaml")
                && p.field.contains(field)
                && p.reason.contains(reason)
                && p.severity >= Severity::Error
        };
        assert!(problems.iter().any(told), "{what}: {problems:?}");

        // The same after a restart with the same store.
        let problems = world.problems();
        world.restart();
        assert_eq!(world.model, before, "{what} after a restart");
        assert_eq!(world.problems(), problems, "{what} after a restart");

        // And it heals.
        world.write("web.yaml", VALID);
        world.wait_for("the mended file", |world| world.problems().is_empty());
        assert_eq!(world.model, before, "{what}, mended");
    }
}

#[test]
fn host_bits_in_a_cidr_open_nothing() {
    let mut world = World::new();
    world.write("web.yaml", &VALID.replace("10.0.0.0/8", "10.1.2.3/8"));
    world.settle();
    // Accepted with the bits masked, or refused and closed: never more than was written.
    let policy = world.policy("shop", "web").unwrap();
    for rule in policy.ingress.iter().filter(|rule| rule.action == Action::Allow) {
        assert_eq!(rule.source.nets, ["10.0.0.0/8".parse().unwrap()]);
    }
}

#[test]
fn invalid_policy_that_was_never_valid_denies() {
    let mut world = World::new();
    world.write("web.yaml", &VALID.replace("443", "70000"));
    world.settle();
    let policy = world.policy("shop", "web").expect("its closed form is in force");
    assert!(policy.governs_ingress && !policy.governs_egress);
    assert!(policy.ingress.iter().all(|rule| rule.action != Action::Allow));
    assert!(
        world.problems().iter().any(|problem| problem.object.as_deref() == Some("NetworkPolicy/shop/web"))
    );
}

#[test]
fn file_of_100_mb_is_refused_unread_and_changes_nothing() {
    let mut world = World::new();
    world.write("web.yaml", VALID);
    world.settle();
    let before = world.model.clone();
    let file = fs::OpenOptions::new().write(true).open(world.path("web.yaml")).unwrap();
    file.set_len(100 << 20).unwrap();
    drop(file);
    world.wait_for("the complaint", |world| world.problems().iter().any(|p| p.reason.contains("split it")));
    assert_eq!(world.model, before);
    world.restart();
    assert_eq!(world.model, before);
}

#[test]
fn store_is_for_the_owner_only_and_follows_deletion() {
    let mut world = World::new();
    world.write("web.yaml", VALID);
    world.settle();
    let records =
        || fs::read_dir(world.store()).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(records().len(), 1);
    assert_eq!(fs::metadata(&records()[0]).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(world.store()).unwrap().permissions().mode() & 0o777, 0o700);
    fs::remove_file(world.path("web.yaml")).unwrap();
    world.wait_for("the end", |world| world.model.policies.is_empty());
    assert!(fs::read_dir(world.store()).unwrap().next().is_none());
}

#[test]
fn damaged_store_record_is_reported_and_passed_over() {
    let mut world = World::new();
    world.write("web.yaml", VALID);
    world.settle();
    for record in fs::read_dir(world.store()).unwrap() {
        fs::write(record.unwrap().path(), "{\"path\":").unwrap();
    }
    world.restart();
    assert!(world.policy("shop", "web").is_some());
    assert!(
        world
            .problems()
            .iter()
            .any(|p| p.severity == Severity::Warning && p.reason.contains("stored record"))
    );
}

#[test]
fn first_file_in_order_wins_and_the_second_is_reported() {
    let mut world = World::new();
    world.write("b.yaml", &VALID.replace("443", "80"));
    world.write("a.yaml", VALID);
    world.settle();
    let first = world.policy("shop", "web").unwrap();
    assert!(
        world.problems().iter().any(|p| p.file.ends_with("b.yaml") && p.reason.contains("a.yaml:2")),
        "{:?}",
        world.problems()
    );
    fs::remove_file(world.path("a.yaml")).unwrap();
    world.wait_for("the other one", |world| world.policy("shop", "web").as_ref() != Some(&first));
    assert!(world.problems().is_empty());
}

#[test]
fn a_last_valid_form_goes_over_to_the_file_that_needs_it_and_survives_a_restart() {
    let mut world = World::new();
    world.write("a.yaml", VALID);
    world.settle();
    world.write("b.yaml", &VALID.replace("443", "70000"));
    world.settle();
    let kept = world.model.clone();
    fs::remove_file(world.path("a.yaml")).unwrap();
    world.settle();
    assert_eq!(world.model, kept, "what is left of it was never valid by itself, but the object was");
    world.restart();
    assert_eq!(world.model, kept);
}

#[test]
fn a_valid_description_that_does_not_count_is_no_last_valid_form() {
    let mut world = World::new();
    world.write("a.yaml", &VALID.replace("443", "70000"));
    world.settle();
    let closed = world.model.clone();
    world.write("b.yaml", VALID);
    world.settle();
    assert_eq!(world.model, closed);
    world.restart();
    assert_eq!(world.model, closed);
}

#[test]
fn folder_that_disappears_changes_nothing_and_is_followed_when_it_returns() {
    let mut world = World::new();
    world.write("web.yaml", VALID);
    world.settle();
    let before = world.model.clone();
    fs::rename(world.manifests(), world.root.path().join("away")).unwrap();
    world
        .wait_for("the complaint", |world| world.problems().iter().any(|p| p.severity == Severity::Critical));
    assert_eq!(world.model, before);
    world.restart();
    assert_eq!(world.model, before);
    fs::create_dir(world.manifests()).unwrap();
    world.write("api.yaml", &VALID.replace("web", "api"));
    world.wait_for("the new folder", |world| world.policy("shop", "api").is_some());
    world.wait_for("the old file's end", |world| world.policy("shop", "web").is_none());
}

#[test]
fn config_map_is_followed_through_its_links_and_odd_files_are_not() {
    let mut world = World::new();
    let folder = world.manifests();
    let version = |n: u32, text: &str| {
        fs::create_dir(folder.join(format!("..v{n}"))).unwrap();
        fs::write(folder.join(format!("..v{n}/web.yaml")), text).unwrap();
        symlink(format!("..v{n}"), folder.join("..tmp")).unwrap();
        fs::rename(folder.join("..tmp"), folder.join("..data")).unwrap();
    };
    version(1, VALID);
    symlink("..data/web.yaml", folder.join("web.yaml")).unwrap();
    for name in [".web.yaml.swp", ".hidden.yaml", "web.yaml~", "#web.yaml#", "notes.txt"] {
        world.write(name, "][ not a manifest");
    }
    world.settle();
    assert!(world.problems().is_empty(), "{:?}", world.problems());
    let before = world.policy("shop", "web").unwrap();
    version(2, &VALID.replace("443", "80"));
    world.wait_for("the new version", |world| {
        world.policy("shop", "web").is_some_and(|policy| policy != before)
    });
}

#[test]
fn overlay_completes_pods_and_nothing_else() {
    let mut world = World::new();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, labels: {role: web}}\nspec: {nodeName: n1}\n";
    world.write("pods.yaml", pod);
    world.write_overlay("a.json", r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"shop"},"status":{"podIPs":[{"ip":"10.1.0.2"}]}}"#);
    world.write_overlay("b.json", r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"ghost","namespace":"shop"},"status":{"podIPs":[{"ip":"10.1.0.3"}]}}"#);
    world.settle();
    let addresses = |world: &World| -> Vec<String> {
        world.model.pods.values().flat_map(|pod| pod.addresses.iter().map(ToString::to_string)).collect()
    };
    assert_eq!(world.model.pods.len(), 1);
    assert_eq!(addresses(&world), ["10.1.0.2"]);
    assert_eq!(world.model.pods.values().next().unwrap().labels.get("role").map(String::as_str), Some("web"));
    world.write_overlay("a.json", "{ broken");
    world.wait_for("the complaint", |world| !world.problems().is_empty());
    assert_eq!(addresses(&world), ["10.1.0.2"]);
    fs::remove_file(world.root.path().join("overlay/a.json")).unwrap();
    world.wait_for("the bare pod", |world| addresses(world).is_empty());
}

#[test]
fn overlay_says_what_nodes_say_about_themselves() {
    let mut world = World::new();
    world.write("nodes.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: n1, annotations: {projectcalico.org/a: '1', projectcalico.org/b: '2'}}\n");
    world.write_overlay("n.json", r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","annotations":{"projectcalico.org/a":null,"projectcalico.org/WireguardPublicKey":"k"}}}"#);
    world.settle();
    let annotations: Vec<&String> = world.model.nodes["n1"].annotations.keys().collect();
    assert_eq!(annotations, ["projectcalico.org/WireguardPublicKey", "projectcalico.org/b"]);
    world.write_overlay(
        "n.json",
        r#"{"apiVersion":"projectcalico.org/v3","kind":"Node","metadata":{"name":"n1"}}"#,
    );
    world.wait_for("the complaint", |world| !world.problems().is_empty());
    assert_eq!(world.model.nodes["n1"].annotations.len(), 2, "what was said last stands");
}

/// What may happen to one of three files.
#[derive(Clone, Debug)]
enum Event {
    Write { file: usize, variant: usize },
    Remove { file: usize },
    Restart,
}

fn content(file: usize, variant: usize) -> String {
    let valid = VALID.replace("web", &format!("web{file}"));
    let shared = VALID.replace("name: web", "name: shared");
    match variant {
        0 => valid,
        1 => valid.replace("443", "8443"),
        2 => valid.replace("443", "70000"),
        3 => format!("{valid}\n  - [unclosed"),
        4 => format!("{valid}---{}", VALID.replace("web", &format!("extra{file}"))),
        5 => format!("{}---{valid}", shared.replace("443", &format!("{}", 1000 + file))),
        _ => format!("{}---{valid}", shared.replace("443", "70000")),
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (0..3_usize, 0..7_usize).prop_map(|(file, variant)| Event::Write { file, variant }),
        2 => (0..3_usize).prop_map(|file| Event::Remove { file }),
        1 => Just(Event::Restart),
    ];
    proptest::collection::vec(event, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// However the files came to be as they are: an agent that kept running equals one restarted with the same store, and where every
    /// file is valid at the end, both equal one that never saw anything else.
    #[test]
    fn every_sequence_of_events_ends_in_one_state(events in events()) {
        let mut world = World::new();
        let mut last = [None; 3];
        world.settle();
        for event in &events {
            match *event {
                Event::Write { file, variant } => {
                    world.write(&format!("{file}.yaml"), &content(file, variant));
                    last[file] = Some(variant);
                }
                Event::Remove { file } => {
                    let _ = fs::remove_file(world.path(&format!("{file}.yaml")));
                    last[file] = None;
                }
                Event::Restart => world.restart(),
            }
            world.settle();
        }
        let (kept, problems) = (world.model.clone(), world.problems());
        world.restart();
        prop_assert_eq!(&world.model, &kept);
        prop_assert_eq!(world.problems(), problems);
        if last.iter().flatten().all(|variant| ![2, 3, 6].contains(variant)) {
            fs::remove_dir_all(world.store()).unwrap();
            world.restart();
            prop_assert_eq!(&world.model, &kept);
        }
    }
}

/// A folder, a store, a follower, and the Model that its batches make.
struct World {
    root: TempDir,
    directory: Option<Directory>,
    model: Model,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("manifests")).unwrap();
        fs::create_dir(root.path().join("overlay")).unwrap();
        let mut world = Self { root, directory: None, model: Model::with_builtins() };
        world.open();
        world
    }

    fn open(&mut self) {
        let config = DirectoryConfig {
            manifests: vec![self.manifests()],
            overlay: Some(self.root.path().join("overlay")),
            store: self.store(),
        };
        self.directory = Some(Directory::open(config).unwrap());
    }

    /// A new follower with the same store; its first batch makes a new Model.
    fn restart(&mut self) {
        self.directory = None;
        self.model = Model::with_builtins();
        self.open();
        self.step(Duration::ZERO);
    }

    fn step(&mut self, timeout: Duration) -> bool {
        let Some(batch) = self.directory.as_mut().unwrap().next(timeout).unwrap() else { return false };
        assert!(batch.complete);
        for change in batch.changes {
            match change {
                Change::Upsert(object) => self.model.insert(object),
                Change::Delete(key) => self.model.remove(&key),
                other => panic!("a directory knows nothing of {other:?}"),
            }
        }
        true
    }

    /// Takes everything that is to be had.
    fn settle(&mut self) {
        while self.step(Duration::from_millis(120)) {}
    }

    fn wait_for(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_so(self) {
            assert!(Instant::now() < deadline, "waited for {what}; problems: {:?}", self.problems());
            self.step(Duration::from_millis(500));
        }
    }

    fn problems(&self) -> Vec<Problem> {
        self.directory.as_ref().unwrap().problems().to_vec()
    }

    fn policy(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<std::sync::Arc<margay_policy_engine::model::Policy>> {
        let namespace = Some(namespace.to_owned());
        self.model
            .policies
            .get(&PolicyKey { kind: PolicyKind::NetworkPolicy, namespace, name: name.to_owned() })
            .cloned()
    }

    fn manifests(&self) -> PathBuf {
        self.root.path().join("manifests")
    }

    fn store(&self) -> PathBuf {
        self.root.path().join("store")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.manifests().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        write_whole(&self.path(name), text);
    }

    fn write_overlay(&self, name: &str, text: &str) {
        write_whole(&self.root.path().join("overlay").join(name), text);
    }
}

fn write_whole(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}
