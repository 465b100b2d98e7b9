//! The network configuration that tells the container runtime of this node to call margay.
//!
//! The runtime takes the first file of its folder, and from then on sends pods; so the file appears when ADD can be served, whole or not at
//! all, and it stays when the agent stops: a node without any configuration reports itself not ready, and pods that start meanwhile are
//! told to try again. Only `margay uninstall` takes it away.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::cni::VERSIONS;

/// Name of the file; earlier in the alphabet than what others are installed as.
pub const FILE: &str = "05-margay.conflist";
/// Name of the plug-in's file.
pub const PLUGIN: &str = "margay-cni";
/// How often somebody else's removal is looked for.
const LOOK: Duration = Duration::from_secs(5);

/// The file, kept as wanted.
#[derive(Debug)]
pub struct Conflist {
    path: PathBuf,
    ipam: String,
    socket: PathBuf,
    written: Option<String>,
    looked: Option<Instant>,
}

impl Conflist {
    /// The file in `directory` that leads to the agent at `socket` and has addresses given by the plug-in `ipam`.
    pub fn new(directory: &Path, ipam: &str, socket: PathBuf) -> Self {
        Self { path: directory.join(FILE), ipam: ipam.to_owned(), socket, written: None, looked: None }
    }

    /// Returns the text of the file for a node with the pod prefixes `cidrs`.
    fn render(&self, cidrs: &[IpNet]) -> String {
        let mut ipam = json!({ "type": self.ipam });
        if self.ipam == "host-local" {
            // One address of each prefix, so of each family.
            ipam["ranges"] = cidrs.iter().map(|cidr| json!([{ "subnet": cidr.to_string() }])).collect();
        }
        let plugin: Value = json!({ "type": PLUGIN, "agentSocket": self.socket, "ipam": ipam });
        // The oldest version is what every runtime reads; newer ones choose from the list.
        let list = json!({ "cniVersion": VERSIONS[0], "cniVersions": VERSIONS, "name": "margay", "plugins": [plugin] });
        format!("{list:#}\n")
    }

    /// Writes the file when ADD can be served and it is not as it should be. Returns whether it was written.
    ///
    /// Errors: the folder cannot be written to; the next call tries again.
    pub fn keep(&mut self, can_serve: bool, cidrs: &[IpNet], now: Instant) -> io::Result<bool> {
        if !can_serve || cidrs.is_empty() {
            return Ok(false);
        }
        let wanted = self.render(cidrs);
        let is_known = self.written.as_ref() == Some(&wanted);
        if is_known && self.looked.is_some_and(|looked| now.duration_since(looked) < LOOK) {
            return Ok(false);
        }
        self.looked = Some(now);
        if fs::read(&self.path).is_ok_and(|there| there == wanted.as_bytes()) {
            self.written = Some(wanted);
            return Ok(false);
        }
        replace_file(&self.path, wanted.as_bytes(), 0o644)?;
        self.written = Some(wanted);
        Ok(true)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Puts `content` at `path` in one step: who looks finds the old file or the new one, whole, also after a crash.
///
/// Errors: the folder is not there or cannot be written to.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Begins with a dot and has no ending that a runtime looks for.
    let fresh = folder.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs() -> Vec<IpNet> {
        ["10.244.1.0/24", "fd00:1::/64"].map(|text| text.parse().unwrap()).to_vec()
    }

    #[test]
    fn it_appears_when_pods_can_be_served_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut conflist = Conflist::new(folder.path(), "host-local", "/run/margay/agent.sock".into());
        let start = Instant::now();
        assert!(!conflist.keep(false, &cidrs(), start).unwrap(), "not ready");
        assert!(!conflist.keep(true, &[], start).unwrap(), "no prefixes of this node yet");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(conflist.keep(true, &cidrs(), start).unwrap());
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["plugins"][0]["type"], "margay-cni");
        assert_eq!(
            read["plugins"][0]["ipam"]["ranges"],
            json!([[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:1::/64" }]])
        );
        assert_eq!((&read["cniVersion"], &read["cniVersions"][2]), (&json!("0.4.0"), &json!("1.1.0")));
        // Losing readiness does not take it away.
        assert!(!conflist.keep(false, &cidrs(), start + LOOK * 2).unwrap());
        assert!(folder.path().join(FILE).exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn it_comes_back_when_somebody_removes_it_and_follows_the_node() {
        let folder = tempfile::tempdir().unwrap();
        let mut conflist = Conflist::new(folder.path(), "host-local", "/s".into());
        let start = Instant::now();
        assert!(conflist.keep(true, &cidrs(), start).unwrap());
        assert!(!conflist.keep(true, &cidrs(), start + LOOK * 2).unwrap(), "as it was");
        fs::remove_file(folder.path().join(FILE)).unwrap();
        assert!(
            !conflist.keep(true, &cidrs(), start + LOOK * 2 + LOOK / 2).unwrap(),
            "not looked at every time"
        );
        assert!(conflist.keep(true, &cidrs(), start + LOOK * 4).unwrap());
        assert!(conflist.keep(true, &cidrs()[..1], start + LOOK * 4).unwrap(), "other prefixes at once");
        // A new agent finds it as it is.
        let mut next = Conflist::new(folder.path(), "host-local", "/s".into());
        assert!(!next.keep(true, &cidrs()[..1], start).unwrap());
        let mut other = Conflist::new(folder.path(), "whereabouts", "/s".into());
        assert!(other.keep(true, &cidrs(), start).unwrap());
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(text.contains("whereabouts") && !text.contains("ranges"));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("net.d");
        let mut conflist = Conflist::new(&gone, "host-local", "/s".into());
        let start = Instant::now();
        assert!(conflist.keep(true, &cidrs(), start).is_err());
        fs::create_dir(&gone).unwrap();
        assert!(conflist.keep(true, &cidrs(), start).unwrap());
    }
}
