//! The programs that the kernel runs for us: loading, attaching, and what they look up.
//!
//! A program hangs on a device through a *link*, and a link is pinned as a file in a bpffs of the agent's own. So it stays when the
//! agent is killed: with the heartbeat silent, pods are closed and the NIC belongs to the kernel. A new agent loads programs with maps
//! of its own and exchanges the program inside each link in one step, so there is no moment without a program. The old maps vanish with
//! the last old program; maps are therefore never pinned, and no new agent reads what an old one wrote.
//!
//! ```text
//!  DIR/native/NAME@IFINDEX      the link, attached in the driver
//!  DIR/generic/NAME@IFINDEX     the link, attached above a driver that has no XDP
//!  DIR/tcx/NAME@IFINDEX         the link of a governed NIC's egress program
//!  DIR/filter/NAME@IFINDEX      that program itself, where it is a tc filter: kernels before 6.6 have no link for it
//! ```

mod egress;
mod maps;

pub use egress::EgressMode;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, Map, MapData, MapError, XskMap};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use ipnet::IpNet;
use margay_core::Nanos;
use nix::mount::MsFlags;

use maps::{Addresses, DoorKey, Prefixes, door_key};

/// The programs, compiled by the build.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ports.o"));

/// Most queues of all devices together; `MAX_SLOTS` of the programs.
const MAX_SLOTS: u32 = 4096;
/// How long a device may still be held by a link that has ended.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
/// Where pins live, below the agent's directory: those of XDP programs, then those of egress programs.
const FOLDERS: [&str; 4] = ["native", "generic", "tcx", "filter"];
const XDP_FOLDERS: [&str; 2] = ["native", "generic"];
const EGRESS_FOLDERS: [&str; 2] = ["tcx", "filter"];
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// A heartbeat older than this is silence; `HEARTBEAT_LIMIT_NS` of the programs.
pub const HEARTBEAT_LIMIT: Nanos = Nanos::from_secs(1);

/// Which program a device gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Our end of a pod's veth: everything to us, or dropped.
    Pod,
    /// Our end of the host's veth: everything to us, or dropped.
    Host,
    /// A NIC: pod traffic and WireGuard to us; everything else, and everything while we are silent, to the kernel.
    Uplink,
    /// A pod's device that the agent has not taken in yet: everything is dropped.
    Closed,
}

impl Role {
    const ALL: [Self; 4] = [Self::Pod, Self::Host, Self::Uplink, Self::Closed];

    /// Returns the names of the role's program, the preferred form first: for packets in fragments, and without.
    fn programs(self) -> [&'static str; 2] {
        match self {
            Self::Pod => ["pod_port", "pod_port_plain"],
            Self::Host => ["host_port", "host_port_plain"],
            Self::Uplink => ["uplink", "uplink_plain"],
            Self::Closed => ["closed_port", "closed_port_plain"],
        }
    }
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// Above a driver that has no XDP.
    Generic,
}

/// Which ways of attaching are tried for a device that has no program of ours yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttachChoice {
    /// In the driver; above it where the driver refuses.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// Above the driver, also where the driver could.
    Generic,
}

impl AttachChoice {
    fn modes(self) -> &'static [AttachMode] {
        match self {
            Self::Auto => &AttachMode::BOTH,
            Self::Native => &[AttachMode::Native],
            Self::Generic => &[AttachMode::Generic],
        }
    }
}

impl AttachMode {
    const BOTH: [Self; 2] = [Self::Native, Self::Generic];

    /// Returns the name used in status and in the pin directory.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    fn flag(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }
}

/// Why a program or map could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// No bpffs.
    #[error(
        "cannot use {path} as the agent's bpffs: {source}; mount one there (mount -t bpf bpf {path}), or run with CAP_SYS_ADMIN so that the agent can"
    )]
    BpfFs {
        /// The directory.
        path: String,
        /// What failed.
        source: io::Error,
    },
    /// The kernel did not take the programs.
    #[error(
        "the kernel refused the XDP programs: {0}; they need Linux 5.18 or newer with CONFIG_XDP_SOCKETS, and CAP_BPF with CAP_NET_ADMIN"
    )]
    Load(#[from] Box<aya::EbpfError>),
    /// A program or map is not in the object.
    #[error("the compiled programs have no {0:?}; rebuild the agent")]
    Missing(&'static str),
    /// A program could not be loaded or exchanged.
    #[error(
        "XDP program {program} on {name} (index {ifindex}): {source}; is another XDP program on the device? (ip -d link show)"
    )]
    Attach {
        /// The program.
        program: &'static str,
        /// The pin's name.
        name: String,
        /// The device.
        ifindex: u32,
        /// The kernel's answer.
        source: Box<ProgramError>,
    },
    /// The link could not be pinned.
    #[error(
        "cannot pin the link of {name} at {path}: {why}; the directory must be a bpffs and the name free of '/' and '@'"
    )]
    Pin {
        /// The pin's name.
        name: String,
        /// The file.
        path: String,
        /// What failed.
        why: String,
    },
    /// The egress program of a governed NIC could not be attached.
    #[error(
        "cannot govern {name} (index {ifindex}): {why}; it needs tcx (Linux 6.6) or CONFIG_NET_SCH_INGRESS with CONFIG_NET_CLS_BPF, and CAP_NET_ADMIN"
    )]
    Egress {
        /// The pin's name.
        name: String,
        /// The device.
        ifindex: u32,
        /// The kernel's answers.
        why: String,
    },
    /// A map refused an entry.
    #[error("map {map}: {source}; too many ports or prefixes, or CAP_BPF is missing")]
    Map {
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: Box<MapError>,
    },
    /// All slots are in use.
    #[error("all {MAX_SLOTS} receive queues are in use; remove ports")]
    Full,
}

/// Key of the `owners` map: device index, queue.
type QueueKey = [u32; 2];
/// Value of the `owners` map: slot, worker.
type Owner = [u32; 2];

/// Value of the `governed` map: the kernel's end of the host port, ours.
type HostPair = [u32; 2];

/// Index into the kernel's map of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(u32);

/// The heartbeat of one worker: the worker's thread owns it and stamps it.
pub struct Heartbeat {
    map: Array<MapData, u64>,
    worker: u32,
}

impl Heartbeat {
    /// Says "alive at `now`" to the programs. `now` is CLOCK_MONOTONIC, which is what they read.
    ///
    /// Errors: the kernel refuses the map update.
    pub fn stamp(&mut self, now: Nanos) -> Result<(), SteerError> {
        self.map
            .set(self.worker, now.0, 0)
            .map_err(|e| SteerError::Map { map: "heartbeat", source: Box::new(e) })
    }
}

/// Makes sure that `directory` exists and is a bpffs; mounts one, readable by its owner only, when it is not.
///
/// Errors: no permission, or the kernel has no bpffs.
pub fn mount_bpffs(directory: &Path) -> Result<(), SteerError> {
    let failed = |source: io::Error| SteerError::BpfFs { path: directory.display().to_string(), source };
    fs::create_dir_all(directory).map_err(failed)?;
    let is_bpffs =
        || nix::sys::statfs::statfs(directory).is_ok_and(|s| s.filesystem_type().0 == BPF_FS_MAGIC);
    if is_bpffs() {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("bpf"), directory, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|e| failed(e.into()))
}

/// Loaded programs, their maps, and the pinned links.
pub struct Steer {
    programs: Ebpf,
    directory: PathBuf,
    sockets: XskMap<MapData>,
    owners: HashMap<MapData, QueueKey, Owner>,
    governed: HashMap<MapData, u32, HostPair>,
    choice: AttachChoice,
    local: Prefixes,
    cluster: Prefixes,
    doors: HashMap<MapData, DoorKey, u8>,
    open_doors: BTreeSet<SocketAddr>,
    sealing: Addresses,
    own_addresses: Addresses,
    slots: BTreeSet<u32>,
    owned: BTreeMap<(u32, u32), Owner>,
}

impl Steer {
    /// Loads the programs with fresh maps. `directory` must be a bpffs ([`mount_bpffs`]); links of earlier agents in it keep their old
    /// programs until [`Steer::attach`] or [`Steer::retain_links`].
    ///
    /// Errors: the kernel refuses; the directory is no bpffs.
    pub fn load(directory: &Path) -> Result<Self, SteerError> {
        for folder in FOLDERS {
            let path = directory.join(folder);
            fs::create_dir_all(&path)
                .map_err(|source| SteerError::BpfFs { path: directory.display().to_string(), source })?;
        }
        let mut programs = EbpfLoader::new().load(OBJECT).map_err(Box::new)?;
        for name in Role::ALL.iter().flat_map(|role| role.programs()) {
            let failed =
                |source| SteerError::Attach { program: name, name: "loading".to_owned(), ifindex: 0, source };
            program(&mut programs, name)?.load().map_err(|e| failed(Box::new(e)))?;
        }
        egress::load(&mut programs)?;
        let prefixes = |programs: &mut Ebpf, name: &'static str| -> Result<Prefixes, SteerError> {
            Ok(Prefixes::new(take(programs, name)?, name))
        };
        Ok(Self {
            sockets: take(&mut programs, "sockets")?,
            owners: take(&mut programs, "owners")?,
            governed: take(&mut programs, "governed")?,
            choice: AttachChoice::Auto,
            local: prefixes(&mut programs, "local_pods")?,
            cluster: prefixes(&mut programs, "cluster_pods")?,
            doors: take(&mut programs, "doors")?,
            open_doors: BTreeSet::new(),
            sealing: Addresses::new(take(&mut programs, "sealing_nodes")?, "sealing_nodes"),
            own_addresses: Addresses::new(take(&mut programs, "own_addresses")?, "own_addresses"),
            programs,
            directory: directory.to_owned(),
            slots: BTreeSet::new(),
            owned: BTreeMap::new(),
        })
    }

    /// Sets which ways of attaching [`Steer::attach`] tries.
    pub fn choose(&mut self, choice: AttachChoice) {
        self.choice = choice;
    }

    /// Returns the heartbeat for the thread of one worker.
    ///
    /// Errors: there is no such map, or the process has no file descriptor left.
    pub fn take_heartbeat(&mut self, worker: u32) -> Result<Heartbeat, SteerError> {
        let map = self.programs.map("heartbeat").ok_or(SteerError::Missing("heartbeat"))?;
        let Map::Array(data) = map else { return Err(SteerError::Missing("heartbeat")) };
        let failed = |source| SteerError::Map { map: "heartbeat", source: Box::new(source) };
        let own = data.fd().as_fd().try_clone_to_owned().map_err(|e| failed(MapError::IoError(e)))?;
        let data = MapData::from_fd(own).map_err(failed)?;
        Ok(Heartbeat { map: Array::try_from(Map::Array(data)).map_err(failed)?, worker })
    }

    /// Sends frames of (device, queue) to a socket, as soon as a program is attached.
    ///
    /// Errors: no slot left; the kernel refuses the socket.
    pub fn own(
        &mut self,
        ifindex: u32,
        queue: u32,
        worker: u32,
        socket: &impl AsRawFd,
    ) -> Result<Slot, SteerError> {
        let slot = (0..MAX_SLOTS).find(|slot| !self.slots.contains(slot)).ok_or(SteerError::Full)?;
        self.sockets
            .set(slot, socket.as_raw_fd(), 0)
            .map_err(|e| SteerError::Map { map: "sockets", source: Box::new(e) })?;
        self.owners
            .insert([ifindex, queue], [slot, worker], 0)
            .map_err(|e| SteerError::Map { map: "owners", source: Box::new(e) })?;
        self.slots.insert(slot);
        self.owned.insert((ifindex, queue), [slot, worker]);
        Ok(Slot(slot))
    }

    /// Has the program of a device drop (pod, host) or pass (uplink) everything while its sockets stay, until [`Steer::open`].
    pub fn close(&mut self, ifindex: u32) {
        for (ifindex, queue) in self.queues_of(ifindex) {
            // What is not there is closed.
            let _ = self.owners.remove(&[ifindex, queue]);
        }
    }

    /// Ends [`Steer::close`].
    ///
    /// Errors: the kernel refuses the map update.
    pub fn open(&mut self, ifindex: u32) -> Result<(), SteerError> {
        for key in self.queues_of(ifindex) {
            let Some(owner) = self.owned.get(&key) else { continue };
            self.owners
                .insert([key.0, key.1], *owner, 0)
                .map_err(|e| SteerError::Map { map: "owners", source: Box::new(e) })?;
        }
        Ok(())
    }

    /// Returns the (device, queue) pairs of a device that we own.
    fn queues_of(&self, ifindex: u32) -> Vec<(u32, u32)> {
        self.owned.range((ifindex, 0)..=(ifindex, u32::MAX)).map(|(key, _)| *key).collect()
    }

    /// Ends what [`Steer::own`] began for every queue of a device. Its program, still attached, now drops (pod, host) or passes (uplink).
    pub fn disown(&mut self, ifindex: u32) {
        for key in self.queues_of(ifindex) {
            let Some([slot, _]) = self.owned.remove(&key) else { continue };
            let (ifindex, queue) = key;
            // Either entry may be gone already: the kernel takes a closed socket out by itself.
            let _ = self.owners.remove(&[ifindex, queue]);
            let _ = self.sockets.unset(slot);
            self.slots.remove(&slot);
        }
    }

    /// Puts the role's program on a device, whether the device is up or down, and pins the link under `name`. Where a link of that
    /// name is already on the device, its program is exchanged in one step; it keeps its way of attaching whatever [`Steer::choose`]
    /// was told, because a change of that would leave the device without a program for a moment.
    ///
    /// Errors: the device does not exist, carries a foreign program, or takes none.
    pub fn attach(&mut self, role: Role, ifindex: u32, name: &str) -> Result<AttachMode, SteerError> {
        self.check_name(name)?;
        for mode in AttachMode::BOTH {
            let path = self.pin_path(mode, name, ifindex);
            if path.exists() && self.exchange(role, &path) {
                return Ok(mode);
            }
        }
        // Links of that name on other devices: the name has moved on, so they end.
        self.unpin(name, &XDP_FOLDERS);
        let deadline = Instant::now() + RELEASE_PATIENCE;
        let modes = self.choice.modes().iter();
        let forms = modes.flat_map(|mode| role.programs().map(|form| (*mode, form)));
        let mut refused = ProgramError::NotAttached;
        for (mode, form) in forms {
            let program = program(&mut self.programs, form)?;
            let path = self.directory.join(mode.as_str()).join(format!("{name}@{ifindex}"));
            let pinned = |why: String| SteerError::Pin {
                name: name.to_owned(),
                path: path.display().to_string(),
                why,
            };
            loop {
                match program.attach_to_if_index(ifindex, mode.flag()) {
                    Ok(id) => {
                        let link = program.take_link(id).map_err(|e| pinned(e.to_string()))?;
                        // A kernel without XDP links fell back to netlink; such an attachment cannot outlive us, and is refused.
                        let link: FdLink =
                            link.try_into().map_err(|_| pinned("the kernel has no XDP links".to_owned()))?;
                        link.pin(&path).map_err(|e| pinned(e.to_string()))?;
                        return Ok(mode);
                    }
                    // A link whose pin was removed a moment ago still holds the device: the kernel frees it later.
                    Err(error) if is_occupied(&error) && Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Err(error) => {
                        refused = error;
                        break;
                    }
                }
            }
            if is_occupied(&refused) {
                break;
            }
        }
        let [program, _] = role.programs();
        Err(SteerError::Attach { program, name: name.to_owned(), ifindex, source: Box::new(refused) })
    }

    /// Exchanges the program in a pinned link; `false` when the link is dead (its device is gone) or not a link.
    fn exchange(&mut self, role: Role, path: &Path) -> bool {
        role.programs().into_iter().any(|form| {
            let Ok(program) = program(&mut self.programs, form) else { return false };
            let Ok(pinned) = PinnedLink::from_pin(path) else { return false };
            let Ok(link) = XdpLink::try_from(FdLink::from(pinned)) else { return false };
            // Taken out again and closed: the pin keeps the link.
            program.attach_to_link(link).is_ok_and(|id| program.take_link(id).is_ok())
        })
    }

    fn check_name(&self, name: &str) -> Result<(), SteerError> {
        if !name.is_empty() && !name.contains(['/', '@']) {
            return Ok(());
        }
        Err(SteerError::Pin {
            name: name.to_owned(),
            path: self.directory.display().to_string(),
            why: "not a usable file name".to_owned(),
        })
    }

    fn pin_path(&self, mode: AttachMode, name: &str, ifindex: u32) -> PathBuf {
        self.directory.join(mode.as_str()).join(format!("{name}@{ifindex}"))
    }

    /// Returns every pin in these folders: name, folder, path.
    fn pins(&self, folders: &[&'static str]) -> Vec<(String, &'static str, PathBuf)> {
        let mut found = Vec::new();
        for folder in folders {
            let Ok(entries) = fs::read_dir(self.directory.join(folder)) else { continue };
            for entry in entries.flatten() {
                let file = entry.file_name().to_string_lossy().into_owned();
                if let Some((name, _)) = file.rsplit_once('@') {
                    found.push((name.to_owned(), *folder, entry.path()));
                }
            }
        }
        found.sort();
        found
    }

    /// Returns the names under which links are pinned, in order.
    pub fn link_names(&self) -> BTreeSet<String> {
        self.pins(&FOLDERS).into_iter().map(|(name, ..)| name).collect()
    }

    /// Takes the programs of that name off their devices, which the kernel does a moment later. Returns whether there was one.
    pub fn detach(&mut self, name: &str) -> bool {
        self.unpin(name, &FOLDERS)
    }

    fn unpin(&mut self, name: &str, folders: &[&'static str]) -> bool {
        let mut any = false;
        for (pinned, folder, path) in self.pins(folders) {
            if pinned == name {
                if folder == EgressMode::Filter.as_str() {
                    egress::remove_filter(&path);
                }
                any |= fs::remove_file(path).is_ok();
            }
        }
        any
    }

    /// Takes off every program whose name is not in `names`, and returns the names that ended: what a killed agent left for
    /// devices that are no longer ours.
    pub fn retain_links(&mut self, names: &BTreeSet<String>) -> Vec<String> {
        let stale: BTreeSet<String> = self.link_names().difference(names).cloned().collect();
        for name in &stale {
            self.detach(name);
        }
        stale.into_iter().collect()
    }

    /// Returns the actions (`enum xdp_action`) that both forms of the role's program take on a frame from queue 0 of the namespace's
    /// loopback device, without sending anything anywhere.
    ///
    /// Errors: a frame without a whole Ethernet header; no permission.
    pub fn dry_run(&mut self, role: Role, frame: &[u8]) -> Result<io::Result<[u32; 2]>, SteerError> {
        let mut actions = [0; 2];
        for (action, name) in actions.iter_mut().zip(role.programs()) {
            let fd = program(&mut self.programs, name)?.fd().map_err(|_| SteerError::Missing(name))?;
            match crate::xsk::dry_run(fd.as_fd(), frame) {
                Ok(value) => *action = value,
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(actions))
    }

    /// Makes uplinks send us what goes to `local` and what comes from `cluster`.
    ///
    /// Errors: too many prefixes.
    pub fn set_uplink_prefixes(&mut self, local: &[IpNet], cluster: &[IpNet]) -> Result<(), SteerError> {
        self.cluster.set(cluster)?;
        self.local.set(local)
    }

    /// Makes uplinks send us UDP datagrams to these addresses and ports, and to no others; see [`margay_core::tunnel`].
    ///
    /// Errors: too many.
    pub fn set_doors(&mut self, wanted: &BTreeSet<SocketAddr>) -> Result<(), SteerError> {
        let failed = |source| SteerError::Map { map: "doors", source: Box::new(source) };
        for door in wanted.difference(&self.open_doors.clone()) {
            self.doors.insert(door_key(*door), 1, 0).map_err(failed)?;
            self.open_doors.insert(*door);
        }
        for door in self.open_doors.clone().difference(wanted) {
            self.doors.remove(&door_key(*door)).map_err(failed)?;
            self.open_doors.remove(door);
        }
        Ok(())
    }

    /// Says which nodes seal what they say to this one, and which addresses this node has: what goes from the former to the latter in clear
    /// comes to the workers, which may refuse it, and so does nothing else between nodes.
    ///
    /// Errors: the kernel refuses an entry.
    pub fn set_nodes(
        &mut self,
        sealing: &BTreeSet<IpAddr>,
        own: &BTreeSet<IpAddr>,
    ) -> Result<(), SteerError> {
        // Nobody asks for an own address before there is a node that seals.
        self.own_addresses.set(own)?;
        self.sealing.set(sealing)
    }
}

/// Returns an error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// Whether another program is on the device.
fn is_occupied(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else { return false };
    matches!(error.io_error.raw_os_error(), Some(libc::EEXIST | libc::EBUSY))
}

fn program<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, SteerError> {
    let program = programs.program_mut(name).ok_or(SteerError::Missing(name))?;
    program.try_into().map_err(|_| SteerError::Missing(name))
}

fn take<M: TryFrom<aya::maps::Map>>(programs: &mut Ebpf, name: &'static str) -> Result<M, SteerError> {
    programs.take_map(name).and_then(|map| M::try_from(map).ok()).ok_or(SteerError::Missing(name))
}
