//! XDP above the driver, as on devices whose driver has none: traffic goes on, large transfers included, and the status says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
";
const SIZE: usize = 5_000_000;

fn skipped(name: &str) -> bool {
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let why = if !nix::unistd::geteuid().is_root() {
        "root, to make network namespaces"
    } else if !Path::new("/usr/lib/cni/host-local").exists() {
        "/usr/lib/cni/host-local (package containernetworking-plugins)"
    } else if !has("python3") || !has("curl") || !has("ping") {
        "python3, curl and ping"
    } else {
        return false;
    };
    println!("SKIPPED {name}: needs {why}");
    true
}

/// One node with two pods, taken down when the test ends, however it ends.
struct Lab {
    name: String,
    directory: PathBuf,
    servers: Vec<Child>,
}

impl Lab {
    fn up(mark: &str, agent_arg: &str) -> Self {
        let name = format!("m{}{mark}", std::process::id());
        let directory = std::env::temp_dir().join(format!("mgm{name}"));
        fs::create_dir_all(directory.join("manifests")).expect("temporary directory");
        fs::create_dir_all(directory.join("www")).expect("temporary directory");
        fs::write(directory.join("manifests/pods.yaml"), PODS).expect("manifests");
        fs::write(directory.join("www/large"), vec![b'm'; SIZE]).expect("page");
        let lab = Self { name, directory, servers: Vec::new() };
        let manifests = lab.directory.join("manifests");
        let agent_arg = format!("--agent-arg={agent_arg}");
        let output =
            lab.call("up", &["--nodes", "1", "--manifests", &manifests.to_string_lossy(), &agent_arg]);
        assert!(output.status.success(), "up: {}", String::from_utf8_lossy(&output.stderr));
        lab
    }

    fn command(&self, command: &str, rest: &[&str]) -> Command {
        let mut call = Command::new(env!("CARGO_BIN_EXE_margay"));
        call.args(["lab", command, "--name", &self.name, "--labs-dir"])
            .arg(self.directory.join("labs"))
            .args(rest);
        call
    }

    fn call(&self, command: &str, rest: &[&str]) -> Output {
        self.command(command, rest).output().expect("run")
    }

    /// `lab exec` in a pod (`shop/web`) or the node.
    fn exec(&self, place: &str, command: &[&str]) -> Command {
        let mut rest = if place.contains('/') { vec![place, "--"] } else { vec!["--node", place, "--"] };
        rest.extend(command);
        self.command("exec", &rest)
    }

    fn serve(&mut self, place: &str) {
        let www = self.directory.join("www");
        let server = self
            .exec(
                place,
                &[
                    "python3",
                    "-m",
                    "http.server",
                    "8000",
                    "--bind",
                    "::",
                    "--directory",
                    &www.to_string_lossy(),
                ],
            )
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start");
        self.servers.push(server);
    }

    fn addresses(&self, of: &str) -> Vec<String> {
        let output = self.call("status", &["-o", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let lists = [&status["pods"], &status["nodes"]];
        let all = lists.iter().flat_map(|list| list.as_array().expect("list"));
        let found =
            all.filter(|entry| entry["name"] == of).flat_map(|e| e["addresses"].as_array().expect("list"));
        found.map(|a| a.as_str().expect("text").to_owned()).collect()
    }

    fn agent_status(&self, form: &[&str]) -> Vec<u8> {
        let socket = self.directory.join("labs").join(&self.name).join("nodes/node1/run/admin.sock");
        let mut call = Command::new(env!("CARGO_BIN_EXE_margay"));
        call.arg("status").args(form).arg("--socket").arg(socket).output().expect("run").stdout
    }

    /// Bytes of the large page that `place` gets from `address`, tried while the server is not there yet.
    fn download(&self, place: &str, address: &str) -> usize {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let url = format!("http://{host}:8000/large");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let output = self
                .exec(place, &["curl", "-g", "-s", "--noproxy", "*", "--max-time", "20", &url])
                .output()
                .expect("run");
            // 7: nobody listens yet.
            if output.status.code() != Some(7) || Instant::now() > deadline {
                return output.stdout.len();
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the kernel says of a device: `file` below its folder in sysfs, seen from `place`.
    fn sysfs(&self, place: &str, device: &str, file: &str) -> String {
        let script = format!("mount -t sysfs sysfs /sys && cat /sys/class/net/{device}/{file}");
        let output = self.exec(place, &["unshare", "-m", "sh", "-c", &script]).output().expect("run");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The ports of pods, as the agent's status has them.
    fn pod_ports(&self) -> Vec<Value> {
        let status: Value = serde_json::from_slice(&self.agent_status(&["-o", "json"])).expect("JSON");
        let ports = status["ports"].as_array().expect("ports").iter();
        ports.filter(|port| port["kind"] == "pod").cloned().collect()
    }

    /// The agent's own words since its start.
    fn log(&self) -> String {
        let file = self.directory.join("labs").join(&self.name).join("nodes/node1.log");
        fs::read_to_string(file).expect("a log")
    }

    /// Every port with how its program is attached.
    fn modes(&self) -> Vec<(String, String)> {
        let status: Value = serde_json::from_slice(&self.agent_status(&["-o", "json"])).expect("JSON");
        let text = |v: &Value| v.as_str().expect("text").to_owned();
        let ports = status["ports"].as_array().expect("ports").iter();
        ports.map(|port| (text(&port["name"]), text(&port["mode"]))).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = self.call("down", &[]);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn carries_large_transfers(lab: &mut Lab) {
    let places = ["shop/db", "node1"];
    places.iter().for_each(|place| lab.serve(place));
    // To another pod, from the host's end of the host port, and into it.
    for (from, to) in [("shop/web", "shop/db"), ("shop/web", "node1"), ("node1", "shop/db")] {
        for address in lab.addresses(to) {
            let ping = lab.exec(from, &["ping", "-n", "-c", "2", "-W", "2", &address]).output().expect("run");
            assert!(ping.status.success(), "{from} to {to} at {address}");
            assert_eq!(lab.download(from, &address), SIZE, "{from} from {to} at {address}");
        }
    }
}

#[test]
fn generic_mode_carries_large_transfers_and_is_shown() {
    if skipped("generic_mode_carries_large_transfers_and_is_shown") {
        return;
    }
    let mut lab = Lab::up("g", "--xdp-mode=generic");
    let modes = lab.modes();
    assert!(modes.len() >= 4 && modes.iter().all(|(_, mode)| mode == "generic"), "{modes:?}");
    let shown = String::from_utf8_lossy(&lab.agent_status(&[])).into_owned();
    assert!(shown.contains("generic"), "{shown}");
    // Towards pods as the kernel lets us, elsewhere never (docs/decisions/0027).
    let left = lab.log().contains("checksums_left_to_pods=true");
    let status: Value = serde_json::from_slice(&lab.agent_status(&["-o", "json"])).expect("JSON");
    for port in status["ports"].as_array().expect("ports") {
        let told = if left && port["kind"] == "pod" { "left" } else { "completed" };
        assert_eq!(port["manner"]["checksums"], told, "{port}");
    }
    assert!(shown.contains("CHECKSUMS") && shown.contains(" left ") == left, "{shown}");
    carries_large_transfers(&mut lab);
}

#[test]
fn native_mode_can_be_demanded_where_the_driver_has_it() {
    if skipped("native_mode_can_be_demanded_where_the_driver_has_it") {
        return;
    }
    let mut lab = Lab::up("n", "--xdp-mode=native");
    let modes = lab.modes();
    assert!(modes.len() >= 4 && modes.iter().all(|(_, mode)| mode == "native"), "{modes:?}");
    carries_large_transfers(&mut lab);
}

#[test]
fn the_way_of_pods_interfaces_is_probed_told_and_shown() {
    if skipped("the_way_of_pods_interfaces_is_probed_told_and_shown") {
        return;
    }
    let mut lab = Lab::up("p", "--pod-gather=40us");
    let ports = lab.pod_ports();
    assert_eq!(ports.len(), 2, "{ports:?}");
    let log = lab.log();
    let line =
        log.lines().find(|line| line.contains("how pods' interfaces are crossed")).expect("it is logged");
    for port in &ports {
        let manner = &port["manner"];
        // Numbers of what was tried, unless the kernel refused to try.
        let why = manner["why"].as_str().expect("text");
        assert!(why.contains("ns/kB") && line.contains(why), "{manner} {line}");
        assert_eq!(manner["gather_micros"], 40);
        assert_eq!(
            (&manner["zero_copy"], &manner["need_wakeup"]),
            (&Value::from("none"), &Value::from(true))
        );
        let threaded = if manner["polling"] == "threaded" { "1" } else { "0" };
        assert_eq!(lab.sysfs("node1", port["name"].as_str().expect("text"), "threaded"), threaded);
        for pod in ["shop/web", "shop/db"] {
            assert_eq!(lab.sysfs(pod, "eth0", "threaded"), threaded);
            assert_eq!(lab.sysfs(pod, "eth0", "gro_flush_timeout"), "40000");
        }
    }
    let metrics = lab.exec("node1", &["curl", "-s", "--noproxy", "*", "http://127.0.0.1:9100/metrics"]);
    let page = { metrics }.output().expect("run").stdout;
    let page = String::from_utf8_lossy(&page).into_owned();
    assert_eq!(page.matches("margay_port_mode{").count(), 4, "two pods, the host, its uplink: {page}");
    carries_large_transfers(&mut lab);
}

#[test]
fn threads_of_the_kernel_can_be_demanded() {
    if skipped("threads_of_the_kernel_can_be_demanded") {
        return;
    }
    let mut lab = Lab::up("t", "--polling=threaded");
    for port in lab.pod_ports() {
        assert_eq!(port["manner"]["polling"], "threaded");
        assert_eq!(lab.sysfs("node1", port["name"].as_str().expect("text"), "threaded"), "1");
    }
    assert_eq!(lab.sysfs("shop/web", "eth0", "threaded"), "1");
    carries_large_transfers(&mut lab);
}
