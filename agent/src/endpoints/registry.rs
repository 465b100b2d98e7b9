//! Which endpoint and which port belong to which (container, interface), on disk so that a restarted agent knows it too.
//!
//! The file is replaced whole (write, sync, rename, sync the directory) before any change takes effect, so it is never older than what
//! the dataplane does. A record whose device has gone is dropped by [`Registry::reconcile`]; a record never outlives its device by more
//! than one restart.
//!
//! Addresses that were given back rest for a minute ([`Registry::resting`]): until the watch delivers, other nodes take who has one for
//! the pod that had it before (PM-D28).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use margay_core::PortIndex;
use margay_policy_engine::packet::EndpointId;
use margay_wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::protocol::{Attach, AttachmentKey, PodRef, mac_text};

/// One attached interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// The name policy knows it by; never used again.
    #[serde(with = "endpoint_number")]
    pub id: EndpointId,
    /// The port of the dataplane; used again only after release.
    #[serde(with = "port_number")]
    pub port: PortIndex,
    /// Which attachment.
    pub key: AttachmentKey,
    /// Name of the CNI network.
    pub network: String,
    /// The pod.
    pub pod: PodRef,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Ethernet address of the pod's end.
    #[serde(with = "mac_text")]
    pub pod_mac: MacAddr,
    /// Ethernet address of the host end.
    #[serde(with = "mac_text")]
    pub host_mac: MacAddr,
    /// Host end, by name.
    pub host_ifname: String,
    /// Host end, by index: tells a device from a later one of the same name.
    pub host_ifindex: u32,
    /// MTU of both ends.
    pub mtu: u32,
    /// What the pod's routes say of packets that leave the node, where that is not the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_mtu: Option<u32>,
    /// Destinations that its routes take larger packets to; empty too where it was attached by a release that did not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<IpNet>,
    /// Name under which the endpoint's program and link are pinned.
    pub pin: String,
    /// Path of the container's network namespace at the time of attachment.
    pub netns: String,
}

impl EndpointRecord {
    /// Returns whether the host end still exists in the calling thread's network namespace.
    pub fn device_exists(&self) -> bool {
        nix::net::if_::if_nametoindex(self.host_ifname.as_str()).is_ok_and(|index| index == self.host_ifindex)
    }
}

/// The list cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The file system refused.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// The file is not one of ours.
    #[error(
        "{path} is not a list of endpoints ({reason}); move it away and restart the agent: the pods it listed stay cut off \
         until they are made again",
        path = .path.display()
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Every port index is taken.
    #[error("no free port on this node: {0} pods are attached; delete some")]
    Full(usize),
    /// Another living attachment has the address.
    #[error("address {address} already belongs to pod {owner}; the delegated IPAM plug-in gave it out twice")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// `namespace/name` of the pod that has it.
        owner: String,
    },
}

const FORMAT: u32 = 1;

/// How long an address rests.
const REST: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    next_endpoint: u32,
    endpoints: Vec<EndpointRecord>,
    /// Addresses that rest, with when they were given back, in seconds since 1970.
    #[serde(default)]
    released: BTreeMap<IpAddr, u64>,
}

/// The list itself.
#[derive(Debug)]
pub struct Registry {
    path: PathBuf,
    first_port: u16,
    next_endpoint: u32,
    records: BTreeMap<AttachmentKey, EndpointRecord>,
    released: BTreeMap<IpAddr, u64>,
}

impl Registry {
    /// Reads the list kept at `path`, or starts an empty one. Pods get ports from `first_port` on.
    pub fn open(path: impl Into<PathBuf>, first_port: PortIndex) -> Result<Self, RegistryError> {
        let path = path.into();
        let mut registry = Self {
            path,
            first_port: first_port.0,
            next_endpoint: 1,
            records: BTreeMap::new(),
            released: BTreeMap::new(),
        };
        let text = match fs::read(&registry.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(registry),
            Err(source) => return Err(registry.failed("read", source)),
        };
        let unreadable = |reason: String| RegistryError::Unreadable { path: registry.path.clone(), reason };
        let stored: Stored = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
        if stored.format != FORMAT {
            return Err(unreadable(format!(
                "format {}, and this margay reads format {FORMAT}",
                stored.format
            )));
        }
        registry.next_endpoint = stored.next_endpoint;
        registry.records = stored.endpoints.into_iter().map(|record| (record.key.clone(), record)).collect();
        registry.released = stored.released;
        Ok(registry)
    }

    /// Returns every record, in order of its key.
    pub fn records(&self) -> impl Iterator<Item = &EndpointRecord> {
        self.records.values()
    }

    /// Returns the addresses that nobody should get while others are free: given back less than a minute before `now`, or of an
    /// attachment whose device went without a word.
    pub fn resting(&self, now: SystemTime) -> BTreeSet<IpAddr> {
        let now = seconds(now);
        let released = self.released.iter().filter(|(_, at)| rests(**at, now)).map(|(address, _)| *address);
        let gone = self.records.values().filter(|record| !record.device_exists());
        released.chain(gone.flat_map(|record| record.addresses.iter().copied())).collect()
    }

    /// Returns the record of one attachment.
    pub fn get(&self, key: &AttachmentKey) -> Option<&EndpointRecord> {
        self.records.get(key)
    }

    /// Drops every record for which `alive` says no, and returns them.
    pub fn reconcile(
        &mut self,
        alive: impl Fn(&EndpointRecord) -> bool,
    ) -> Result<Vec<EndpointRecord>, RegistryError> {
        let gone: Vec<EndpointRecord> = self.records.values().filter(|r| !alive(r)).cloned().collect();
        if !gone.is_empty() {
            self.commit(|records| gone.iter().for_each(|r| drop(records.remove(&r.key))))?;
        }
        Ok(gone)
    }

    /// Records an attachment under a new endpoint id and the smallest free port. The key must not be in the list.
    ///
    /// Records in the way whose device has gone are dropped first and returned, for the caller to release what they held.
    pub fn insert(
        &mut self,
        attach: &Attach,
    ) -> Result<(EndpointRecord, Vec<EndpointRecord>), RegistryError> {
        let in_the_way = |r: &EndpointRecord| r.addresses.iter().any(|a| attach.addresses.contains(a));
        let dropped = self.reconcile(|r| !in_the_way(r) || r.device_exists())?;
        if let Some(owner) = self.records.values().find(|r| r.key != attach.key && in_the_way(r)) {
            let address = owner.addresses.iter().find(|a| attach.addresses.contains(a));
            return Err(RegistryError::AddressTaken {
                address: address.copied().unwrap_or(IpAddr::from([0, 0, 0, 0])),
                owner: format!("{}/{}", owner.pod.namespace, owner.pod.name),
            });
        }
        let taken: BTreeSet<u16> = self.records.values().map(|r| r.port.0).collect();
        let port = (self.first_port..=u16::MAX)
            .find(|port| !taken.contains(port))
            .ok_or(RegistryError::Full(self.records.len()))?;
        let id = EndpointId(self.next_endpoint);
        let record = EndpointRecord {
            id,
            port: PortIndex(port),
            key: attach.key.clone(),
            network: attach.network.clone(),
            pod: attach.pod.clone(),
            addresses: attach.addresses.clone(),
            pod_mac: attach.pod_mac,
            host_mac: attach.host_mac,
            host_ifname: attach.host_ifname.clone(),
            host_ifindex: attach.host_ifindex,
            mtu: attach.mtu,
            route_mtu: attach.route_mtu,
            within: attach.within.clone(),
            pin: format!("ep-{}", id.0),
            netns: attach.netns.clone(),
        };
        self.next_endpoint += 1;
        self.commit(|records| drop(records.insert(record.key.clone(), record.clone())))?;
        Ok((record, dropped))
    }

    /// Forgets one attachment and returns what was known of it.
    pub fn remove(&mut self, key: &AttachmentKey) -> Result<Option<EndpointRecord>, RegistryError> {
        let Some(record) = self.records.get(key).cloned() else { return Ok(None) };
        self.commit(|records| drop(records.remove(key)))?;
        Ok(Some(record))
    }

    /// Writes the changed list, and adopts it only when it is on disk.
    fn commit(
        &mut self,
        change: impl FnOnce(&mut BTreeMap<AttachmentKey, EndpointRecord>),
    ) -> Result<(), RegistryError> {
        let mut records = self.records.clone();
        change(&mut records);
        let now = seconds(SystemTime::now());
        let held = |records: &BTreeMap<AttachmentKey, EndpointRecord>| -> BTreeSet<IpAddr> {
            records.values().flat_map(|record| record.addresses.iter().copied()).collect()
        };
        let (before, after) = (held(&self.records), held(&records));
        let mut released = self.released.clone();
        released.extend(before.difference(&after).map(|address| (*address, now)));
        released.retain(|address, at| rests(*at, now) && !after.contains(address));
        let stored = Stored {
            format: FORMAT,
            next_endpoint: self.next_endpoint,
            endpoints: records.values().cloned().collect(),
            released: released.clone(),
        };
        write_private(&self.path, &stored).map_err(|source| self.failed("write", source))?;
        (self.records, self.released) = (records, released);
        Ok(())
    }

    fn failed(&self, what: &'static str, source: io::Error) -> RegistryError {
        RegistryError::File { what, path: self.path.clone(), source }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whether what was given back `at` rests still. What is in the future was written by a clock that was wrong.
fn rests(at: u64, now: u64) -> bool {
    at <= now && now - at < REST.as_secs()
}

/// Replaces `path` by `value` as JSON, mode 0600, in one step.
fn write_private<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(directory)?.sync_all()
}

mod endpoint_number {
    use margay_policy_engine::packet::EndpointId;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(id: &EndpointId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(id.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EndpointId, D::Error> {
        u32::deserialize(deserializer).map(EndpointId)
    }
}

mod port_number {
    use margay_core::PortIndex;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(port: &PortIndex, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(port.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortIndex, D::Error> {
        u16::deserialize(deserializer).map(PortIndex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// An attachment whose device is this machine's loopback, which always exists, or one that never does.
    fn attach(id: &str, address: &str, device: (&str, u32)) -> Attach {
        Attach {
            key: AttachmentKey { container_id: id.to_owned(), ifname: "eth0".to_owned() },
            network: "pods".to_owned(),
            netns: "/run/netns/none".to_owned(),
            pod: PodRef { namespace: "default".to_owned(), name: id.to_owned(), uid: None },
            host_ifname: device.0.to_owned(),
            host_ifindex: device.1,
            pod_mac: MacAddr([2; 6]),
            host_mac: MacAddr([0xee; 6]),
            addresses: vec![address.parse().expect("address")],
            mtu: 1500,
            route_mtu: None,
            within: Vec::new(),
            timeout_ms: 1000,
        }
    }

    const ALIVE: (&str, u32) = ("lo", 1);
    const GONE: (&str, u32) = ("lo", 999_999);

    fn file() -> (PathBuf, PathBuf) {
        let directory = std::env::temp_dir().join(format!(
            "mgreg{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        (directory.join("endpoints.json"), directory)
    }

    #[test]
    fn what_is_written_is_read_back_by_its_owner_alone() {
        let (path, directory) = file();
        let mut registry = Registry::open(&path, PortIndex(4)).expect("open");
        let (a, _) = registry.insert(&attach("a", "10.0.0.1", ALIVE)).expect("a");
        let (b, _) = registry.insert(&attach("b", "10.0.0.2", ALIVE)).expect("b");
        assert_eq!((a.port, b.port, a.id == b.id), (PortIndex(4), PortIndex(5), false));
        registry.remove(&a.key).expect("remove");
        let (c, _) = registry.insert(&attach("c", "10.0.0.3", ALIVE)).expect("c");
        assert_eq!(c.port, PortIndex(4), "a port is free after release");
        assert!(c.id > b.id, "an endpoint id is not");
        let again = Registry::open(&path, PortIndex(4)).expect("open again");
        assert!(again.records().eq([&b, &c]));
        assert_eq!(fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(directory).expect("clean up");
    }

    #[test]
    fn an_address_has_one_living_owner() {
        let (path, directory) = file();
        let mut registry = Registry::open(&path, PortIndex(4)).expect("open");
        registry.insert(&attach("a", "10.0.0.1", ALIVE)).expect("a");
        let error = registry.insert(&attach("b", "10.0.0.1", ALIVE)).expect_err("taken");
        assert!(matches!(error, RegistryError::AddressTaken { .. }), "{error}");
        let (gone, _) = registry.insert(&attach("c", "10.0.0.2", GONE)).expect("c");
        let (_, dropped) = registry.insert(&attach("d", "10.0.0.2", ALIVE)).expect("its device is gone");
        assert_eq!(dropped, [gone]);
        fs::remove_dir_all(directory).expect("clean up");
    }

    #[test]
    fn an_address_rests_for_a_minute_after_it_was_given_back_also_over_a_restart() {
        let (path, directory) = file();
        let mut registry = Registry::open(&path, PortIndex(4)).expect("open");
        let (a, _) = registry.insert(&attach("a", "10.0.0.1", ALIVE)).expect("a");
        assert!(registry.resting(SystemTime::now()).is_empty());
        registry.remove(&a.key).expect("remove");
        let after = |seconds: u64| SystemTime::now() + Duration::from_secs(seconds);
        let again = Registry::open(&path, PortIndex(4)).expect("open again");
        for registry in [&registry, &again] {
            assert_eq!(registry.resting(after(50)), BTreeSet::from(["10.0.0.1".parse().expect("address")]));
            assert!(registry.resting(after(61)).is_empty());
            assert!(registry.resting(UNIX_EPOCH).is_empty(), "a clock that was set back");
        }
        // Given out all the same, it rests no more; without its device nobody else should get it.
        let (b, _) = registry.insert(&attach("b", "10.0.0.1", ALIVE)).expect("b");
        assert!(registry.resting(SystemTime::now()).is_empty());
        registry.remove(&b.key).expect("remove");
        registry.insert(&attach("c", "10.0.0.2", GONE)).expect("c");
        assert_eq!(registry.resting(after(3_600)), BTreeSet::from(["10.0.0.2".parse().expect("address")]));
        fs::remove_dir_all(directory).expect("clean up");
    }

    #[test]
    fn a_foreign_file_is_left_alone_and_named() {
        let (path, directory) = file();
        fs::create_dir_all(&directory).expect("folder");
        for text in ["", "{", r#"{"format":2,"next_endpoint":1,"endpoints":[]}"#] {
            fs::write(&path, text).expect("write");
            let error = Registry::open(&path, PortIndex(4)).expect_err("not ours").to_string();
            assert!(error.contains("endpoints.json") && error.contains("move it away"), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("read"), text);
        }
        fs::remove_dir_all(directory).expect("clean up");
    }
}
