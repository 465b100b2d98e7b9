//! What is so on this node, gathered once; nothing here judges.
//!
//! Whatever cannot be read is absent, and says nothing: a doctor that stops at the first closed door helps nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::admin::client;
use crate::admin::protocol::{Reply, Request};
use crate::admin::report::StatusReport;
use crate::net::{Link, Netlink};
use crate::node::uplinks::{self, Device, Uplink};

/// A network configuration of the container runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Name of the file.
    pub file: String,
    /// `type` of its plug-ins, in order; `None` when it cannot be read.
    pub plugins: Option<Vec<String>>,
}

/// A device beside its place in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// Driver; absent for virtual devices, whose kind says it.
    pub driver: Option<String>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Number of the XDP program on it, and whether it is pinned where ours are.
    pub xdp: Option<(u32, bool)>,
    /// Whether tc programs can hang on it (`clsact`).
    pub has_clsact: bool,
    /// `rp_filter` of IPv4.
    pub rp_filter: Option<u8>,
}

/// Encryption, where it is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encrypted {
    /// Largest packet that fits into the tunnels.
    pub pod_mtu: u32,
    /// Devices of pods, with the MTU of what leaves the node.
    pub pods: Vec<(String, u32)>,
    /// What is wrong with it, in sentences.
    pub findings: Vec<String>,
}

impl Encrypted {
    fn of(report: &StatusReport) -> Option<Self> {
        let on = !["", "off"].contains(&report.wireguard.mode.as_str());
        let pods = report.ports.iter().filter(|port| port.kind == "pod");
        on.then(|| Self {
            pod_mtu: report.wireguard.pod_mtu,
            pods: pods.map(|port| (port.name.clone(), port.route_mtu)).collect(),
            findings: report.wireguard.findings.clone(),
        })
    }
}

/// Pods that were made for larger packets than ports take now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TooLarge {
    /// Largest MTU whose packets ports take.
    pub largest: u32,
    /// Their devices.
    pub pods: Vec<String>,
}

impl TooLarge {
    fn of(report: &StatusReport) -> Option<Self> {
        let largest = report.largest_mtu;
        let pods = report.ports.iter().filter(|port| port.kind == "pod" && port.mtu > largest);
        let pods: Vec<_> = pods.map(|port| port.name.clone()).collect();
        (largest > 0 && !pods.is_empty()).then_some(Self { largest, pods })
    }
}

/// How Services are translated on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubeProxy {
    /// It says so itself: iptables, ipvs, nftables.
    Mode(String),
    /// It runs, and does not say.
    Runs,
    /// Nothing of the kind was found.
    Absent,
}

/// Everything that is looked at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Release of the kernel, such as `6.12.48+deb13-amd64`.
    pub kernel: String,
    /// Whether we are root.
    pub is_root: bool,
    /// Whether limits of locked memory do not concern us (`CAP_IPC_LOCK`).
    pub may_lock: bool,
    /// Limit of locked memory in bytes; `None` is none.
    pub memlock: Option<u64>,
    /// Whether the kernel has AF_XDP sockets.
    pub has_af_xdp: bool,
    /// Whether the kernel has the bpf system call.
    pub has_bpf: bool,
    /// File systems that the kernel knows.
    pub filesystems: BTreeSet<String>,
    /// Whether the agent's own bpffs is mounted.
    pub bpffs_is_mounted: bool,
    /// Whether an agent answers.
    pub agent_answers: bool,
    /// What the agent says about encryption; `None` where it is off.
    pub encryption: Option<Encrypted>,
    /// Pods that were made for larger packets than ports take now.
    pub too_large: Option<TooLarge>,
    /// Folder of network configurations; `None` when it is not there.
    pub configurations: Option<Vec<Configuration>>,
    /// CNI programs that are there.
    pub programs: BTreeSet<String>,
    /// The plug-in that gives addresses.
    pub ipam: String,
    /// Devices.
    pub devices: Vec<Device>,
    /// What else is known of them, by name.
    pub cards: BTreeMap<String, Card>,
    /// The uplinks that would be taken, or why none.
    pub uplinks: Result<Vec<Uplink>, String>,
    /// `rp_filter` for all devices.
    pub rp_filter_all: Option<u8>,
    /// Whether packets are forwarded, IPv4 and IPv6; `None` where a family is not there.
    pub forwarding: [Option<bool>; 2],
    /// Who translates Services.
    pub kube_proxy: KubeProxy,
    /// Names of processes.
    pub processes: BTreeSet<String>,
    /// NetworkManager was told to leave our devices alone.
    pub networkmanager_spares_us: bool,
    /// The time, in seconds since 1970.
    pub now: u64,
    /// A program keeps the time, and says that it is right (`Some(true)`), or not yet.
    pub is_synchronized: Option<bool>,
    /// What the kernel reads the time from.
    pub clocksource: Option<String>,
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// The agent's folder of sockets and programs.
    pub run_dir: PathBuf,
    /// Folder of network configurations.
    pub cni_conf_dir: PathBuf,
    /// Folder of CNI programs.
    pub cni_bin_dir: PathBuf,
    /// The plug-in that gives addresses.
    pub ipam: String,
    /// Uplinks, as the agent would be told.
    pub uplink: Vec<String>,
    /// An address of this node.
    pub node_address: Option<IpAddr>,
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn names(folder: impl AsRef<Path>) -> Option<BTreeSet<String>> {
    let entries = fs::read_dir(folder).ok()?;
    Some(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// Looks at everything.
pub fn gather(places: &Places) -> Facts {
    let links = Netlink::open().and_then(|mut netlink| netlink.links()).unwrap_or_default();
    let devices = uplinks::devices(&links);
    let clsact = Netlink::open().and_then(|mut netlink| netlink.devices_with_clsact()).unwrap_or_default();
    let bpffs = places.run_dir.join("bpf");
    let pins = pinned(&bpffs);
    let status = text("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let cards = links.iter().map(|link| (link.name.clone(), card(link, &clsact, &pins))).collect();
    let flag = |path: &str| text(path).map(|value| value == "1");
    let report = asked(&places.run_dir.join("admin.sock"));
    Facts {
        kernel: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        is_root: nix::unistd::geteuid().is_root(),
        may_lock: capabilities & CAP_IPC_LOCK != 0,
        memlock: memlock(),
        has_af_xdp: text("/proc/net/protocols")
            .is_some_and(|all| all.lines().any(|line| line.starts_with("XDP"))),
        has_bpf: Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists(),
        filesystems: text("/proc/filesystems")
            .map(|all| {
                all.lines().filter_map(|line| line.split_whitespace().last().map(str::to_owned)).collect()
            })
            .unwrap_or_default(),
        bpffs_is_mounted: is_mounted(&bpffs),
        agent_answers: std::os::unix::net::UnixStream::connect(places.run_dir.join("admin.sock")).is_ok(),
        encryption: report.as_ref().and_then(Encrypted::of),
        too_large: report.as_ref().and_then(TooLarge::of),
        configurations: configurations(&places.cni_conf_dir),
        programs: names(&places.cni_bin_dir).unwrap_or_default(),
        ipam: places.ipam.clone(),
        uplinks: uplinks::find(&places.uplink, places.node_address),
        devices,
        cards,
        rp_filter_all: text("/proc/sys/net/ipv4/conf/all/rp_filter").and_then(|value| value.parse().ok()),
        forwarding: [flag("/proc/sys/net/ipv4/ip_forward"), flag("/proc/sys/net/ipv6/conf/all/forwarding")],
        kube_proxy: kube_proxy(&links),
        processes: processes(),
        networkmanager_spares_us: networkmanager_spares_us(),
        now: SystemTime::now().duration_since(UNIX_EPOCH).map(|now| now.as_secs()).unwrap_or(0),
        is_synchronized: synchronized(),
        clocksource: text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
    }
}

fn memlock() -> Option<u64> {
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != nix::libc::RLIM_INFINITY).then_some(soft)
}

fn is_mounted(folder: &Path) -> bool {
    let mounts = text("/proc/self/mounts").unwrap_or_default();
    let folder = folder.to_string_lossy();
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(&*folder) && words.next() == Some("bpf")
    })
}

/// The devices on which a program of ours is pinned: the files are named after pin and interface index.
fn pinned(bpffs: &Path) -> BTreeSet<u32> {
    let folders = names(bpffs).unwrap_or_default();
    let files = folders.iter().filter_map(|folder| names(bpffs.join(folder))).flatten();
    files.filter_map(|file| file.rsplit_once('@')?.1.parse().ok()).collect()
}

/// What the agent says about itself, if one answers.
fn asked(socket: &Path) -> Option<StatusReport> {
    let mut found = None;
    let asked = client::ask(socket, &Request::Status, |reply| {
        if let Reply::Status(report) = reply {
            found = Some(*report);
        }
        Ok(())
    });
    asked.ok().and(found)
}

fn card(link: &Link, clsact: &BTreeSet<u32>, pins: &BTreeSet<u32>) -> Card {
    let driver = fs::read_link(format!("/sys/class/net/{}/device/driver", link.name)).ok();
    Card {
        driver: driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())),
        mtu: link.mtu,
        xdp: link.xdp.map(|program| (program, pins.contains(&link.index))),
        has_clsact: clsact.contains(&link.index),
        rp_filter: text(format!("/proc/sys/net/ipv4/conf/{}/rp_filter", link.name))
            .and_then(|value| value.parse().ok()),
    }
}

fn configurations(folder: &Path) -> Option<Vec<Configuration>> {
    let files = names(folder)?;
    let is_read = |file: &String| [".conf", ".conflist", ".json"].iter().any(|end| file.ends_with(end));
    let read = |file: String| {
        let value: Option<Value> = text(folder.join(&file)).and_then(|text| serde_json::from_str(&text).ok());
        let plugins = value.map(|value| {
            let listed = value["plugins"].as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            listed.iter().filter_map(|plugin| plugin["type"].as_str().map(str::to_owned)).collect()
        });
        Configuration { file, plugins }
    };
    Some(files.into_iter().filter(is_read).map(read).collect())
}

fn processes() -> BTreeSet<String> {
    let numbers = names("/proc").unwrap_or_default();
    let is_process = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
    numbers
        .into_iter()
        .filter(is_process)
        .filter_map(|process| text(format!("/proc/{process}/comm")))
        .collect()
}

/// kube-proxy tells its mode on the loopback; who it does not answer goes by the process and its device.
fn kube_proxy(links: &[Link]) -> KubeProxy {
    let ask = || -> Option<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], 10_249));
        let patience = Duration::from_millis(300);
        let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        stream.write_all(b"GET /proxyMode HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer).ok()?;
        let (head, mode) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.")
            .then(|| mode.trim().to_owned())
            .filter(|mode| head.contains(" 200 ") && !mode.is_empty())
    };
    if let Some(mode) = ask() {
        return KubeProxy::Mode(mode);
    }
    if links.iter().any(|link| link.name == "kube-ipvs0") {
        return KubeProxy::Mode("ipvs".to_owned());
    }
    if processes().contains("kube-proxy") { KubeProxy::Runs } else { KubeProxy::Absent }
}

fn networkmanager_spares_us() -> bool {
    let folders =
        ["/etc/NetworkManager/conf.d", "/run/NetworkManager/conf.d", "/usr/lib/NetworkManager/conf.d"];
    folders.iter().any(|folder| {
        let files = names(folder).unwrap_or_default();
        files.iter().filter_map(|file| text(Path::new(folder).join(file))).any(|file| {
            file.lines()
                .any(|line| line.trim_start().starts_with("unmanaged-devices") && line.contains("mgy*"))
        })
    })
}

/// systemd's and chrony's ways of saying it.
fn synchronized() -> Option<bool> {
    let running = processes();
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    if running.contains("systemd-timesyn") {
        return Some(false);
    }
    let others = ["chronyd", "ntpd", "ptp4l", "phc2sys", "openntpd"];
    others.iter().any(|name| running.contains(*name)).then_some(true)
}
