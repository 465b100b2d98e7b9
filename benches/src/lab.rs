//! Nodes with the agent of the release binary, and pods: what `margay lab` makes, taken down with its owner.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Result;
use crate::streams::run;

/// Two pods of one namespace, the second under a policy that lets the first in.
const TWO_PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: a}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: a, labels: {app: two}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-pods, namespace: a}
spec: {podSelector: {matchLabels: {app: two}}, ingress: [{from: [{podSelector: {}}]}]}
";

/// How the agent names the threads that carry packets.
const WORKERS: &str = "margay-worker";

/// What a lab consists of.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// How many nodes.
    pub nodes: usize,
    /// What joins them: `bridge` or `pair`, as `margay lab up --wire` has it.
    pub wire: &'a str,
    /// Files of the manifests' folder, each with its text.
    pub manifests: &'a [(&'a str, &'a str)],
    /// Further arguments of every agent.
    pub told: &'a [&'a str],
}

impl Plan<'_> {
    /// One node with two pods of one namespace, the second under a policy that lets the first in.
    pub const ONE_NODE: Self =
        Self { nodes: 1, wire: "bridge", manifests: &[("cluster.yaml", TWO_PODS)], told: &[] };
}

/// Nodes and pods in namespaces of their own.
#[derive(Debug)]
pub struct Lab {
    binary: PathBuf,
    directory: tempfile::TempDir,
    name: String,
}

impl Lab {
    /// Brings up what `plan` says; `tag` tells it from others of the same bench.
    ///
    /// Errors: what `margay lab up` says.
    pub fn up(binary: &Path, tag: &str, plan: &Plan<'_>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::create_dir(directory.path().join("manifests"))?;
        let name = format!("{tag}{}", std::process::id());
        let lab = Self { binary: binary.to_owned(), directory, name };
        for (file, text) in plan.manifests {
            lab.write_manifest(file, text)?;
        }
        let told = plan.told.iter().map(|word| format!("--agent-arg={word}"));
        let mut call = lab.call("up");
        call.args(["--nodes", &plan.nodes.to_string(), "--wire", plan.wire]).args(told);
        run(call.arg("--manifests").arg(lab.manifests()))?;
        Ok(lab)
    }

    fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// Writes a file of the manifests' folder, which the agents watch.
    ///
    /// Errors: the file system's.
    pub fn write_manifest(&self, file: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.manifests().join(file), text)?)
    }

    /// Asks a node's agent for what one of margay's commands shows, such as `status`.
    ///
    /// Errors: it does not answer, or not in JSON.
    pub fn ask(&self, node: &str, command: &str) -> Result<Value> {
        let labs = self.directory.path().join("labs");
        let socket = labs.join(&self.name).join("nodes").join(node).join("run/admin.sock");
        let text = run(Command::new(&self.binary).args([command, "-o", "json", "--socket"]).arg(socket))?;
        Ok(serde_json::from_str(&text)?)
    }

    fn call(&self, command: &str) -> Command {
        let mut call = Command::new(&self.binary);
        call.args(["lab", command, "--name", &self.name, "--labs-dir"])
            .arg(self.directory.path().join("labs"));
        call
    }

    /// Returns a command that leads into a pod, given as namespace/name; what it runs there is to be added.
    pub fn exec(&self, pod: &str) -> Command {
        let mut call = self.call("exec");
        call.args([pod, "--"]);
        call
    }

    /// Returns the IPv4 address of a pod.
    ///
    /// Errors: no such pod, or it has none.
    pub fn address(&self, pod: &str) -> Result<String> {
        let shown = run(self.exec(pod).args(["ip", "-4", "-o", "addr", "show", "dev", "eth0"]))?;
        let network = shown.split_whitespace().skip_while(|word| *word != "inet").nth(1);
        let address = network.and_then(|net| net.split('/').next());
        Ok(address.ok_or_else(|| format!("pod {pod} has no address"))?.to_owned())
    }

    /// Returns the process of the first node's agent.
    ///
    /// Errors: it has ended.
    pub fn agent(&self) -> Result<i32> {
        let status: Value = serde_json::from_str(&run(self.call("status").args(["-o", "json"]))?)?;
        let pid = status["nodes"][0]["agent"]["pid"].as_i64();
        Ok(i32::try_from(pid.ok_or("the lab has no agent")?)?)
    }

    /// Keeps the threads that carry packets on one processor, as `margay agent --cpu` does.
    ///
    /// Errors: the agent has ended, or there is no such processor.
    pub fn keep_workers_on(&self, processor: usize) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(processor)?;
        let mut found = false;
        for task in fs::read_dir(format!("/proc/{}/task", self.agent()?))? {
            let task = task?;
            // One without a name has ended meanwhile.
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if name.starts_with(WORKERS) {
                let thread = task.file_name().to_string_lossy().parse()?;
                sched_setaffinity(Pid::from_raw(thread), &set)?;
                found = true;
            }
        }
        if found { Ok(()) } else { Err(format!("the agent has no thread {WORKERS}").into()) }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = run(&mut self.call("down")) {
            println!("   the lab {} is not down: {error}", self.name);
        }
    }
}
