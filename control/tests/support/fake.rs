//! An API server that is no server: it answers as one of any version would, with objects made up on the way.
//!
//! For what a real server of 2021 cannot show: streamed lists, answers that are no JSON, and clusters of tens of thousands of pods.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

/// Makes the object of that number.
pub type Make = Arc<dyn Fn(usize) -> Value + Send + Sync>;

/// One collection.
pub struct Collection {
    /// Objects at the start.
    pub count: usize,
    /// How they are made.
    pub make: Make,
}

/// What the server is like.
pub struct Manner {
    /// Minor version of Kubernetes 1.
    pub minor: u32,
    /// Whether it streams lists when asked to; one that does not refuses.
    pub streams: bool,
    /// What it has, by path.
    pub collections: BTreeMap<&'static str, Collection>,
}

/// The server.
pub struct Fake {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    manner: Manner,
    watchers: Mutex<Vec<(String, Sender<String>)>>,
    requests: Mutex<Vec<String>>,
    /// What is still answered to the question whether it is ready.
    starting: Mutex<VecDeque<u16>>,
}

/// Collections that are served, with their kinds.
pub const SERVED: [(&str, &str, &str); 7] = [
    ("/api/v1", "namespaces", "Namespace"),
    ("/api/v1", "serviceaccounts", "ServiceAccount"),
    ("/api/v1", "pods", "Pod"),
    ("/api/v1", "nodes", "Node"),
    ("/apis/discovery.k8s.io/v1", "endpointslices", "EndpointSlice"),
    ("/apis/networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
    ("/apis/projectcalico.org/v3", "networkpolicies", "NetworkPolicy"),
];

impl Fake {
    /// Starts it on loopback.
    pub fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let address = listener.local_addr().expect("address");
        let shared = Arc::new(Shared {
            manner,
            watchers: Mutex::default(),
            requests: Mutex::default(),
            starting: Mutex::default(),
        });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for connection in listener.incoming().flatten() {
                    let shared = Arc::clone(&shared);
                    // An error is a client that went away.
                    thread::spawn(move || drop(shared.serve(connection)));
                }
            }
        });
        Self { address, shared }
    }

    /// Writes a kubeconfig for it.
    pub fn kubeconfig(&self, folder: &std::path::Path) -> PathBuf {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "t",
            "clusters": [{ "name": "t", "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "u", "user": {} }],
            "contexts": [{ "name": "t", "context": { "cluster": "t", "user": "u" } }],
        });
        let path = folder.join("fake.kubeconfig");
        std::fs::write(&path, config.to_string()).expect("kubeconfig");
        path
    }

    /// Makes it one that just began: whether it is ready it answers with these codes first, and does not know its CRDs before the last.
    pub fn begin_with(&self, codes: &[u16]) {
        *self.shared.starting.lock().expect("list") = codes.iter().copied().collect();
    }

    /// Sends a line to everybody who watches `path`.
    pub fn tell(&self, path: &str, line: &str) {
        self.shared
            .watchers
            .lock()
            .expect("list")
            .retain(|(of, ear)| of != path || ear.send(format!("{line}\n")).is_ok());
    }

    /// How many watch `path`.
    pub fn watchers(&self, path: &str) -> usize {
        self.shared.watchers.lock().expect("list").iter().filter(|(of, _)| of == path).count()
    }

    /// Ends every watch.
    pub fn cut(&self) {
        self.shared.watchers.lock().expect("list").clear();
    }

    /// Requests so far, with their queries.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().expect("list").clone()
    }
}

impl Shared {
    fn serve(&self, mut connection: TcpStream) -> std::io::Result<()> {
        connection.set_nodelay(true)?;
        let mut reader = BufReader::new(connection.try_clone()?);
        loop {
            let mut head = String::new();
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
            let mut line = String::new();
            while reader.read_line(&mut line)? > 2 {
                line.clear();
            }
            let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
            self.requests.lock().expect("list").push(target.clone());
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let query: BTreeMap<&str, &str> =
                query.split('&').filter_map(|pair| pair.split_once('=')).collect();
            if !head.starts_with("GET ") {
                answer(
                    &mut connection,
                    403,
                    &json!({ "kind": "Status", "code": 403, "message": "read-only" }),
                )?;
                return Ok(());
            }
            if query.contains_key("watch") {
                return self.watch(&mut connection, path, &query);
            }
            let (code, body) = self.answer(path, &query);
            answer(&mut connection, code, &body)?;
        }
    }

    fn answer(&self, path: &str, query: &BTreeMap<&str, &str>) -> (u16, Value) {
        let resources = |root: &str| -> Vec<Value> {
            let of_root = SERVED.iter().filter(|(of, ..)| *of == root);
            of_root
                .map(|(_, plural, kind)| json!({
                    "name": plural, "kind": kind, "namespaced": true, "singularName": "", "verbs": ["list", "watch"],
                }))
                .collect()
        };
        match path {
            "/readyz" => match self.starting.lock().expect("list").pop_front() {
                Some(code) => (
                    code,
                    json!({ "kind": "Status", "status": "Failure", "code": code, "message": "starting" }),
                ),
                None => (200, json!("ok")),
            },
            "/version" => (
                200,
                json!({
                    "major": "1", "minor": self.manner.minor.to_string(), "gitVersion": "", "gitCommit": "", "gitTreeState": "",
                    "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
                }),
            ),
            "/apis" => {
                let is_starting = !self.starting.lock().expect("list").is_empty();
                let all = ["discovery.k8s.io/v1", "networking.k8s.io/v1", "projectcalico.org/v3"];
                let offered = &all[..if is_starting { 2 } else { 3 }];
                let group = |at: &&str| {
                    let (group, version) = at.split_once('/').expect("a version");
                    let version = json!({ "groupVersion": at, "version": version });
                    json!({ "name": group, "versions": [version], "preferredVersion": version })
                };
                let groups: Vec<Value> = offered.iter().map(group).collect();
                (200, json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
            }
            root if SERVED.iter().any(|(of, ..)| *of == root) => {
                (200, json!({ "kind": "APIResourceList", "groupVersion": "", "resources": resources(root) }))
            }
            path => match self.manner.collections.get(path) {
                None if SERVED.iter().any(|(root, plural, _)| path == format!("{root}/{plural}")) => {
                    (200, json!({ "metadata": { "resourceVersion": "1000000" }, "items": [] }))
                }
                None => (
                    404,
                    json!({ "kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "no such path" }),
                ),
                Some(collection) => {
                    let limit: usize =
                        query.get("limit").map_or(collection.count, |limit| limit.parse().expect("a number"));
                    let from: usize =
                        query.get("continue").map_or(0, |token| token.parse().expect("our token"));
                    let to = collection.count.min(from + limit);
                    let items: Vec<Value> = (from..to).map(|n| (collection.make)(n)).collect();
                    let more = if to < collection.count { to.to_string() } else { String::new() };
                    (
                        200,
                        json!({ "metadata": { "resourceVersion": "1000000", "continue": more }, "items": items }),
                    )
                }
            },
        }
    }

    fn watch(
        &self,
        connection: &mut TcpStream,
        path: &str,
        query: &BTreeMap<&str, &str>,
    ) -> std::io::Result<()> {
        let initial = query.contains_key("sendInitialEvents");
        if initial && !self.manner.streams {
            let message =
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return answer(
                connection,
                422,
                &json!({ "kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid", "message": message }),
            );
        }
        connection
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")?;
        let (ear, lines): (Sender<String>, Receiver<String>) = channel();
        self.watchers.lock().expect("list").push((path.to_owned(), ear));
        if initial {
            if let Some(collection) = self.manner.collections.get(path) {
                for n in 0..collection.count {
                    let event = json!({ "type": "ADDED", "object": (collection.make)(n) });
                    connection.write_all(format!("{event}\n").as_bytes())?;
                }
            }
            let end = json!({ "type": "BOOKMARK", "object": { "metadata": {
                "resourceVersion": "1000000", "annotations": { "k8s.io/initial-events-end": "true" },
            } } });
            connection.write_all(format!("{end}\n").as_bytes())?;
        }
        for line in lines {
            connection.write_all(line.as_bytes())?;
        }
        Ok(())
    }
}

fn answer(connection: &mut TcpStream, code: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes())?;
    connection.write_all(body.as_bytes())
}
