//! A network and a mount namespace per test, veth pairs in it, and raw sockets at their far ends.
//!
//! The namespaces belong to the test's thread alone, so everything in them (devices, the bpffs) vanishes with it, after a panic too.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use margay_core::{Counters, Frame, Nanos, Output, PortIndex, View};
use margay_io::engine::Processor;
use margay_io::{DataplaneConfig, PortSpec, Role};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, bind, recv, send,
    socket,
};

/// Runs a test in namespaces of its own, or says that it could not.
pub fn in_namespaces(name: &'static str, test: fn(&Path)) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {name}: needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        test(&path);
    });
    let result = thread.unwrap().join();
    drop(directory);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the test's namespace.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a veth pair NAME and NAME-far, without any IP stack noise, both up.
pub fn veth(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}-far"));
    for end in [name.to_owned(), format!("{name}-far")] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{end}/disable_ipv6"), "1");
        ip(&format!("link set {end} arp off up"));
    }
    wait_for_carrier(name);
}

/// Waits until the kernel has both ends of a pair in service: that comes later than "up", and frames sent before are lost.
pub fn wait_for_carrier(name: &str) {
    for end in [name.to_owned(), format!("{name}-far")] {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let output = Command::new("ip").args(["-o", "link", "show", &end]).output().unwrap();
            if String::from_utf8_lossy(&output.stdout).contains("state UP") {
                break;
            }
            assert!(Instant::now() < deadline, "{end} does not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// A packet socket on a device: sends and receives whole frames.
pub struct Far {
    fd: OwnedFd,
}

impl Far {
    pub fn new(device: &str) -> Self {
        // Without a protocol it hears nothing before it is bound, else it would hear every device of the namespace.
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None).unwrap();
        let address = packet_address(ifindex(device));
        bind(fd.as_raw_fd(), &address).unwrap();
        Self { fd }
    }

    pub fn send(&self, frame: &[u8]) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = send(self.fd.as_raw_fd(), frame, MsgFlags::empty()) {
            assert!(Instant::now() < deadline, "send: {error}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Receives the next frame that carries our mark, or nothing within the time.
    pub fn receive(&self, patience: Duration) -> Option<Vec<u8>> {
        self.receive_where(patience, is_ours)
    }

    /// Receives the next frame that is `wanted`, or nothing within the time.
    pub fn receive_where(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0u8; 65_536];
        loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(count) if wanted(&buffer[..count]) => return Some(buffer[..count].to_vec()),
                Ok(_) => {}
                Err(_) if Instant::now() >= deadline => return None,
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    /// Forgets what has arrived.
    pub fn drain(&self) {
        while self.receive(Duration::from_millis(20)).is_some() {}
    }
}

fn packet_address(ifindex: u32) -> LinkAddr {
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let size = std::mem::size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: `raw` is a whole sockaddr_ll and `size` is its size.
    unsafe { SockaddrStorage::from_raw((&raw const raw).cast(), Some(size)) }
        .and_then(|storage| storage.as_link_addr().copied())
        .unwrap()
}

const MARK: &[u8] = b"margay-io test frame";

fn is_ours(frame: &[u8]) -> bool {
    frame.len() >= 14 + 20 + MARK.len() && frame.windows(MARK.len()).any(|w| w == MARK)
}

/// An IPv4 frame (UDP's number, our mark) with a number in it.
pub fn frame(source: [u8; 4], destination: [u8; 4], number: u32) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let total = (20 + 8 + MARK.len() + 4) as u16;
    f.extend([0x45, 0]);
    f.extend(total.to_be_bytes());
    f.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    f.extend(source);
    f.extend(destination);
    f.extend([0x10, 0, 0x20, 0]);
    f.extend((total - 20).to_be_bytes());
    f.extend([0, 0]);
    f.extend(MARK);
    f.extend(number.to_be_bytes());
    f
}

/// Joins ports pairwise and counts; hangs when told to.
pub struct Patch {
    pub pairs: BTreeMap<PortIndex, PortIndex>,
    pub hang: Arc<AtomicBool>,
    pub counters: Counters,
}

impl Patch {
    pub fn new(pairs: &[(u16, u16)], hang: Arc<AtomicBool>) -> Self {
        let both =
            pairs.iter().flat_map(|(a, b)| [(PortIndex(*a), PortIndex(*b)), (PortIndex(*b), PortIndex(*a))]);
        Self { pairs: both.collect(), hang, counters: Counters::default() }
    }
}

impl<F: Frame> Processor<F> for Patch {
    fn handle_burst(
        &mut self,
        _: View<'_>,
        _: Nanos,
        port: PortIndex,
        frames: &mut Vec<F>,
        out: &mut Output<F>,
    ) {
        while self.hang.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        for frame in frames.drain(..) {
            self.counters.received += 1;
            match self.pairs.get(&port) {
                Some(to) => {
                    self.counters.forwarded += 1;
                    out.transmit.push((*to, frame));
                }
                None => {
                    self.counters.drops[margay_core::DropReason::NoPort as usize] += 1;
                    out.recycle.push(frame);
                }
            }
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

pub fn config(directory: &Path) -> DataplaneConfig {
    DataplaneConfig {
        bpffs: PathBuf::from(directory).join("bpf"),
        chunks: 4096,
        ..DataplaneConfig::default()
    }
}

pub fn spec(index: u16, device: &str, role: Role) -> PortSpec {
    PortSpec {
        index: PortIndex(index),
        device: device.to_owned(),
        role,
        pin: format!("pin-{device}"),
        queues: None,
    }
}
