//! A real etcd and a real kube-apiserver for one test, on loopback or inside a network namespace of the test's own.
//!
//! The programs come from `scripts/kube-assets`: a folder named by `KUBEBUILDER_ASSETS`, or a build that is made once and cached. RBAC
//! is on. There are no controllers: nothing deletes what was in a deleted namespace, and whoever makes a pod also says where it runs.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A cluster's control plane, ended when the test lets go of it.
pub struct ApiServer {
    folder: TempDir,
    netns: Option<String>,
    address: IpAddr,
    port: u16,
    etcd_port: u16,
    etcd: Option<Child>,
    server: Option<Child>,
}

/// One kind of request that an account made, as the server's own record of requests has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Audited {
    /// Verb of RBAC.
    pub verb: String,
    /// API group; empty for the core.
    pub group: String,
    /// Resource, with a subresource after a slash.
    pub resource: String,
    /// Where.
    pub namespace: String,
    /// The server let it through; another answer may have followed.
    pub is_allowed: bool,
}

/// Of whom the server keeps a record.
const RECORDED: &str = "system:serviceaccount:kube-system:margay";

/// What `scripts/kube-assets` exits with where the machine has nothing to take the programs from.
const LACKING: i32 = 3;

/// Where the programs are; builds them the first time. None where this machine has nothing to build them from.
fn found() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kube-assets");
        let output = Command::new(&script).stderr(Stdio::inherit()).output().expect("run scripts/kube-assets");
        if output.status.code() == Some(LACKING) {
            return None;
        }
        assert!(
            output.status.success(),
            "there is no kube-apiserver to test against: scripts/kube-assets says why; set KUBEBUILDER_ASSETS to a folder with \
             kube-apiserver, etcd and kubectl, or make Debian's archive reachable"
        );
        Some(PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim()))
    });
    found.as_deref()
}

fn assets() -> &'static Path {
    found().expect("a test asks skipped() before it starts an API server")
}

/// Says why a test cannot run here: there is no API server, and nothing to build one from.
pub fn skipped(name: &str) -> bool {
    if found().is_none() {
        println!(
            "SKIPPED {name}: needs kube-apiserver: set KUBEBUILDER_ASSETS, or MARGAY_DEBIAN_MIRROR to build it (scripts/kube-assets says more)"
        );
        return true;
    }
    false
}

/// Whether the server is one that drops a second address family unless told otherwise; newer ones do not know the switch any more.
fn wants_dual_stack() -> bool {
    let output =
        Command::new(assets().join("kube-apiserver")).arg("--version").output().expect("run kube-apiserver");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let minor = text.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    minor.is_some_and(|minor| minor < 23)
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a free port").port()
}

impl ApiServer {
    /// Starts a control plane on loopback.
    pub fn start() -> Self {
        let (port, etcd_port) = (free_port(), free_port());
        Self::start_at(None, Ipv4Addr::LOCALHOST.into(), port, etcd_port)
    }

    /// Starts a control plane inside the network namespace `netns`, at `address` of it.
    pub fn start_in(netns: &str, address: IpAddr) -> Self {
        Self::start_at(Some(netns.to_owned()), address, 6443, 2379)
    }

    fn start_at(netns: Option<String>, address: IpAddr, port: u16, etcd_port: u16) -> Self {
        let folder = tempfile::Builder::new().prefix("margay-api").tempdir().expect("temporary folder");
        let mut server = Self { folder, netns, address, port, etcd_port, etcd: None, server: None };
        server.make_keys();
        server.kubeconfig(
            "admin",
            &json!({
                "client-certificate-data": server.encoded("admin.crt"),
                "client-key-data": server.encoded("admin.key"),
            }),
        );
        server.run_etcd();
        server.run_server();
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn encoded(&self, name: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(fs::read(self.path(name)).expect("a key"))
    }

    fn make_keys(&self) {
        let script = r#"
set -e
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=test-ca
mk() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2"
  printf '%s\n' "$3" > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" -extfile "$1.ext"
}
mk server /CN=kube-apiserver "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:$ADDRESS
extendedKeyUsage=serverAuth"
mk admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth
openssl ecparam -name prime256v1 -genkey -noout -out sa.key
openssl ec -in sa.key -pubout -out sa.pub
"#;
        let output = Command::new("bash")
            .args(["-c", script])
            .env("ADDRESS", self.address.to_string())
            .current_dir(self.folder.path())
            .output()
            .expect("run openssl (package openssl)");
        assert!(output.status.success(), "keys: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes a kubeconfig for `user`, and returns its path.
    pub fn kubeconfig(&self, name: &str, user: &Value) -> PathBuf {
        self.kubeconfig_at(name, user, SocketAddr::new(self.address, self.port))
    }

    /// The same, with another way to the server.
    pub fn kubeconfig_at(&self, name: &str, user: &Value, at: SocketAddr) -> PathBuf {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "t",
            "clusters": [{ "name": "t", "cluster": {
                "server": format!("https://{at}"), "certificate-authority-data": self.encoded("ca.crt"),
            } }],
            "users": [{ "name": name, "user": user }],
            "contexts": [{ "name": "t", "context": { "cluster": "t", "user": name } }],
        });
        let path = self.path(&format!("{name}.kubeconfig"));
        fs::write(&path, config.to_string()).expect("kubeconfig");
        path
    }

    /// The kubeconfig of one who may do everything.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.path("admin.kubeconfig")
    }

    /// The admin's kubeconfig by way of `at`, such as a proxy.
    pub fn admin_kubeconfig_at(&self, at: SocketAddr) -> PathBuf {
        let user = json!({
            "client-certificate-data": self.encoded("admin.crt"), "client-key-data": self.encoded("admin.key"),
        });
        self.kubeconfig_at("admin-at", &user, at)
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Its network namespace, where it is not the test's.
    pub fn netns(&self) -> Option<&str> {
        self.netns.as_deref()
    }

    /// What the account of the agents asked for so far, by the server's record.
    pub fn audited(&self) -> BTreeSet<Audited> {
        let text = fs::read_to_string(self.path("audit.log")).unwrap_or_default();
        let read = |line: &str| -> Option<Audited> {
            // The last line may be half written.
            let event: Value = serde_json::from_str(line).ok()?;
            let word =
                |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            let mut resource = word("/objectRef/resource");
            if event["objectRef"]["subresource"].is_string() {
                resource = format!("{resource}/{}", word("/objectRef/subresource"));
            }
            (word("/user/username") == RECORDED && !resource.is_empty()).then(|| Audited {
                verb: word("/verb"),
                group: word("/objectRef/apiGroup"),
                resource,
                namespace: word("/objectRef/namespace"),
                is_allowed: event["annotations"]["authorization.k8s.io/decision"] == "allow"
                    && event["responseStatus"]["code"] != 403,
            })
        };
        text.lines().filter_map(read).collect()
    }

    /// Runs kubectl as the admin, where the server is, with `input` for `-f -`; it must succeed. Returns what it says.
    pub fn kubectl(&self, arguments: &[&str], input: Option<&Value>) -> String {
        let mut command = self.command("kubectl");
        command.arg("--kubeconfig").arg(self.admin_kubeconfig()).arg("--cache-dir").arg(self.path("kubectl"));
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(proxy).env_remove(proxy.to_lowercase());
        }
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run kubectl");
        let mut pipe = child.stdin.take().expect("input");
        if let Some(input) = input {
            pipe.write_all(input.to_string().as_bytes()).expect("input");
        }
        drop(pipe);
        let output = child.wait_with_output().expect("kubectl ends");
        let [out, err] =
            [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        assert!(output.status.success(), "kubectl {arguments:?}: {out}{err}");
        out
    }

    fn command(&self, program: &str) -> Command {
        let program_path = assets().join(program);
        match &self.netns {
            Some(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns]).arg(program_path);
                command
            }
            None => Command::new(program_path),
        }
    }

    fn spawn(&self, mut command: Command, log: &str) -> Child {
        let log = File::options().create(true).append(true).open(self.path(log)).expect("log");
        let errors = log.try_clone().expect("log");
        command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("start")
    }

    fn run_etcd(&mut self) {
        let client = format!("http://127.0.0.1:{}", self.etcd_port);
        let peer = format!("http://127.0.0.1:{}", if self.netns.is_some() { 2380 } else { free_port() });
        let mut command = self.command("etcd");
        command.arg("--data-dir").arg(self.path("etcd")).args([
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync".to_owned(),
        ]);
        self.etcd = Some(self.spawn(command, "etcd.log"));
    }

    /// Starts the API server (again) and waits until it serves.
    pub fn run_server(&mut self) {
        let recorded = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [{ "level": "Metadata", "users": [RECORDED] }, { "level": "None" }],
        });
        fs::write(self.path("audit-policy.json"), recorded.to_string()).expect("policy");
        let file = |name: &str| self.path(name).display().to_string();
        let mut command = self.command("kube-apiserver");
        command.args([
            format!("--bind-address={}", self.address),
            format!("--advertise-address={}", self.address),
            format!("--secure-port={}", self.port),
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--cert-dir={}", self.folder.path().display()),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--anonymous-auth=false".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--audit-policy-file={}", file("audit-policy.json")),
            format!("--audit-log-path={}", file("audit.log")),
        ]);
        if wants_dual_stack() {
            command.arg("--feature-gates=IPv6DualStack=true");
        }
        self.server = Some(self.spawn(command, "apiserver.log"));
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let answer = self.curl(&["-f", "-o", "/dev/null", &format!("https://{}/readyz", self.address())]);
            if answer.is_some() {
                return;
            }
            let log = || {
                let text = fs::read_to_string(self.path("apiserver.log")).unwrap_or_default();
                text.lines().rev().take(20).map(|line| format!("{line}\n")).collect::<String>()
            };
            assert!(Instant::now() < deadline, "the API server is not ready: {}", log());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends the API server at once; etcd stays.
    pub fn kill_server(&mut self) {
        end(&mut self.server);
    }

    /// Runs curl as the admin, where the server is; `None` when it fails.
    fn curl(&self, args: &[&str]) -> Option<String> {
        let mut command = match &self.netns {
            Some(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns, "curl"]);
                command
            }
            None => Command::new("curl"),
        };
        command.args(["-s", "--noproxy", "*", "--max-time", "60", "--cacert"]).arg(self.path("ca.crt"));
        command.arg("--cert").arg(self.path("admin.crt")).arg("--key").arg(self.path("admin.key")).args(args);
        let output = command.output().expect("run curl");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Forgets etcd's history: versions known so far cannot be continued from after the server starts anew.
    pub fn compact(&self) {
        let post = |path: &str, body: Value| {
            let url = format!("http://127.0.0.1:{}/v3/kv/{path}", self.etcd_port);
            let text = self.curl(&["-X", "POST", "-d", &body.to_string(), &url]).expect("etcd answers");
            serde_json::from_str::<Value>(&text).expect("JSON")
        };
        let now = post("range", json!({ "key": "AA==" }));
        let revision = now["header"]["revision"].as_str().expect("a revision").to_owned();
        post("compaction", json!({ "revision": revision, "physical": true }));
    }

    /// One request as the admin. Returns the status code and the answer.
    pub fn request(&self, verb: &str, path: &str, kind: &str, body: Option<&Value>) -> (u16, Value) {
        let url = format!("https://{}{path}", self.address());
        let content = format!("Content-Type: {kind}");
        let mut args = vec!["-X", verb, "-w", "\n%{http_code}", &url];
        let text = body.map(Value::to_string);
        let file = self.path(&format!("body-{:?}", thread::current().id()));
        let at = format!("@{}", file.display());
        if let Some(text) = &text {
            fs::write(&file, text).expect("body");
            args.extend(["-H", &content, "--data-binary", &at]);
        }
        let answer = self.curl(&args).unwrap_or_else(|| panic!("{verb} {path}: no answer"));
        let (body, code) = answer.rsplit_once('\n').expect("a code");
        (
            code.parse().expect("a number"),
            serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())),
        )
    }

    /// Makes an object; the collection's path is said.
    pub fn create(&self, path: &str, object: &Value) -> Value {
        let (code, answer) = self.request("POST", path, "application/json", Some(object));
        assert!((200..300).contains(&code), "create at {path}: {code} {answer}");
        answer
    }

    /// Changes an object by a merge patch.
    pub fn patch(&self, path: &str, patch: &Value) -> Value {
        let (code, answer) = self.request("PATCH", path, "application/merge-patch+json", Some(patch));
        assert!((200..300).contains(&code), "patch of {path}: {code} {answer}");
        answer
    }

    /// Reads an object or a collection.
    pub fn get(&self, path: &str) -> Value {
        let (code, answer) = self.request("GET", path, "application/json", None);
        assert_eq!(code, 200, "get of {path}: {answer}");
        answer
    }

    /// Takes an object away, at once.
    pub fn delete(&self, path: &str) {
        let (code, answer) =
            self.request("DELETE", &format!("{path}?gracePeriodSeconds=0"), "application/json", None);
        assert!((200..300).contains(&code), "delete of {path}: {code} {answer}");
    }

    /// Makes many objects, as fast as the server takes them; each comes with its collection's path. Only on loopback.
    pub fn flood(&self, objects: Vec<(String, Value)>) {
        use futures::StreamExt;
        use kube::config::{Config, KubeConfigOptions, Kubeconfig};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(self.admin_kubeconfig()).expect("kubeconfig");
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("config");
            let client = kube::Client::try_from(config).expect("client");
            let post = |(path, object): (String, Value)| {
                let client = client.clone();
                async move {
                    let request = http::Request::post(&path)
                        .header("Content-Type", "application/json")
                        .body(object.to_string().into_bytes())
                        .expect("request");
                    client.request_text(request).await.unwrap_or_else(|error| panic!("{path}: {error}"));
                }
            };
            futures::stream::iter(objects).map(post).buffer_unordered(32).collect::<Vec<()>>().await;
        });
    }

    /// Makes a ServiceAccount and returns the path of a kubeconfig with a token of it.
    pub fn service_account(&self, namespace: &str, name: &str) -> PathBuf {
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        self.create(&accounts, &json!({ "metadata": { "name": name } }));
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "audiences": [] } });
        let answer = self.create(&format!("{accounts}/{name}/token"), &request);
        self.kubeconfig(name, &json!({ "token": answer["status"]["token"] }))
    }

    /// Requests that the server counts so far, by verb: lists and watches, of `resource`.
    pub fn counted(&self, resource: &str, verb: &str) -> u64 {
        let (_, text) = self.request("GET", "/metrics", "text/plain", None);
        let text = text.as_str().expect("text");
        let ours = |line: &&str| {
            line.starts_with("apiserver_request_total{")
                && line.contains(&format!("resource=\"{resource}\""))
                && line.contains(&format!("verb=\"{verb}\""))
        };
        let value = |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let count = text.lines().filter(ours).map(value).sum::<f64>() as u64;
        count
    }
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        end(&mut self.server);
        end(&mut self.etcd);
    }
}
