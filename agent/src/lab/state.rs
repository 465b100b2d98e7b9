//! Where a lab keeps its files, and what it knows about itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::LabError;
use super::process::Process;

/// The files of one lab.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Name of the lab.
    pub lab: String,
    /// Its own folder.
    pub directory: PathBuf,
}

impl Paths {
    /// Generated Node manifests.
    pub fn objects(&self) -> PathBuf {
        self.directory.join("objects")
    }

    /// Partial Pods: who runs where, under which address.
    pub fn overlay(&self) -> PathBuf {
        self.directory.join("overlay")
    }

    /// A node's state folder.
    pub fn node(&self, node: &str) -> PathBuf {
        self.directory.join("nodes").join(node)
    }

    /// A node's folder of sockets.
    pub fn run_dir(&self, node: &str) -> PathBuf {
        self.node(node).join("run")
    }

    /// A node's agent's log.
    pub fn log(&self, node: &str) -> PathBuf {
        self.directory.join("nodes").join(format!("{node}.log"))
    }

    /// What was made.
    pub fn journal(&self) -> PathBuf {
        self.directory.join("journal")
    }

    /// Makes the lab's folder and holds it against other `up` and `down` until the file is dropped.
    pub fn lock(&self) -> Result<File, LabError> {
        fs::create_dir_all(&self.directory).map_err(|e| LabError::file("make", &self.directory, e))?;
        let path = self.directory.join("lock");
        let file = File::create(&path).map_err(|e| LabError::file("make", &path, e))?;
        file.try_lock().map_err(|_| {
            LabError::Input(format!("another `margay lab` works on {} at this moment; wait for it", self.lab))
        })?;
        Ok(file)
    }
}

/// One node as it was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeState {
    /// Its namespace.
    pub netns: String,
    /// Its addresses on the wire.
    pub addresses: Vec<IpAddr>,
    /// Its pods' prefixes.
    pub pod_cidrs: Vec<IpNet>,
    /// The device that leads to the others.
    pub uplink: String,
    /// Its agent, once started.
    pub agent: Option<Process>,
}

/// One pod as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// The node it is on.
    pub node: String,
    /// Its namespace; the node's for a host-networked pod.
    pub netns: String,
    /// Its uid.
    pub uid: String,
    /// Its container id, for CNI.
    pub container_id: String,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// Its addresses, once joined.
    pub addresses: Vec<IpAddr>,
    /// Whether CNI ADD has succeeded.
    pub joined: bool,
}

/// Everything a running lab knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabState {
    /// The user's manifests.
    pub manifests: PathBuf,
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeState>,
    /// Pods by `namespace/name`.
    pub pods: BTreeMap<String, PodState>,
}

impl LabState {
    /// Reads the state, when the lab exists.
    pub fn load(paths: &Paths) -> Result<Option<Self>, LabError> {
        let path = paths.directory.join("lab.json");
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).map_err(|e| LabError::file("read", path, e.into()))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(LabError::file("read", path, e)),
        }
    }

    /// Writes the state.
    pub fn save(&self, paths: &Paths) -> Result<(), LabError> {
        replace(&paths.directory.join("lab.json"), self)
    }
}

/// Replaces the JSON file `path` in one step; readers see the old text or the new.
pub fn replace<T: Serialize>(path: &Path, value: &T) -> Result<(), LabError> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = path.with_file_name(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        fs::rename(&beside, path)
    };
    write().map_err(|e| LabError::file("write", path, e))
}
