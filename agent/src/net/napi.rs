//! How the kernel polls a device for received packets (NAPI), and how long it gathers what it may join (GRO).
//!
//! Both are files below `/sys/class/net`, and a mounted sysfs shows the devices of the network namespace that it was mounted in. So the
//! work happens on a thread of its own, in the wanted network namespace and in a mount namespace with a sysfs of its own; both end with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::NetError;
use super::netns::NetNs;

/// What a device is told about receiving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Napi {
    /// Polled by kernel threads of its own instead of by whoever happens to be interrupted, or sends to it.
    pub threaded: bool,
    /// How long segments of a stream wait in GRO for the next one; none are kept beyond a poll when zero.
    pub gather: Duration,
}

const THREADED: &str = "threaded";
const GATHER: &str = "gro_flush_timeout";

/// Returns what `device` of `netns` (of the calling thread's when absent) is told. A kernel without threaded polling (before 5.12) polls
/// without.
///
/// Errors: no such device; no permission to mount.
pub fn read(netns: Option<&NetNs>, device: &str) -> Result<Napi, NetError> {
    in_sysfs(netns, device, |folder| {
        let number = |file: &str| -> io::Result<u64> {
            match fs::read_to_string(folder.join(file)) {
                Ok(text) => text.trim().parse().map_err(io::Error::other),
                Err(e) if e.kind() == io::ErrorKind::NotFound && file == THREADED => Ok(0),
                Err(e) => Err(e),
            }
        };
        Ok(Napi { threaded: number(THREADED)? != 0, gather: Duration::from_nanos(number(GATHER)?) })
    })
}

/// Tells `device` of `netns` (of the calling thread's when absent). What is so already is not written.
///
/// Errors: no such device; no permission; threads are wanted and the kernel has none, or the device has nothing to poll (EOPNOTSUPP).
pub fn set(netns: Option<&NetNs>, device: &str, wanted: Napi) -> Result<(), NetError> {
    let there = read(netns, device)?;
    if there == wanted {
        return Ok(());
    }
    in_sysfs(netns, device, |folder| {
        if there.threaded != wanted.threaded {
            fs::write(folder.join(THREADED), if wanted.threaded { "1" } else { "0" })?;
        }
        if there.gather != wanted.gather {
            fs::write(folder.join(GATHER), wanted.gather.as_nanos().to_string())?;
        }
        Ok(())
    })
}

/// Runs `work` with the folder of `device` in a sysfs of `netns`.
fn in_sysfs<T: Send>(
    netns: Option<&NetNs>,
    device: &str,
    work: impl FnOnce(&Path) -> io::Result<T> + Send,
) -> Result<T, NetError> {
    let failed = |e: io::Error| NetError::new(format!("tell {device} how to receive"), e);
    thread::scope(|scope| {
        let inside = scope.spawn(|| -> io::Result<T> {
            if let Some(netns) = netns {
                setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            }
            unshare(CloneFlags::CLONE_NEWNS)?;
            // What is mounted from here on is this thread's alone.
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>)?;
            work(&PathBuf::from("/sys/class/net").join(device))
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
    .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Netlink, VethEnd, netns};
    use margay_wire::MacAddr;

    #[test]
    fn a_device_is_told_in_its_own_namespace_and_nowhere_else() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED a_device_is_told_in_its_own_namespace_and_nowhere_else: needs root");
            return;
        }
        let name = format!("mgn{}", std::process::id());
        let inside = netns::create(&name).expect("a namespace");
        let made = inside
            .within(|| {
                let mut netlink = Netlink::open()?;
                let end = |name, last| VethEnd {
                    name,
                    mac: MacAddr([2, 0, 0, 0, 0, last]),
                    netns: None,
                    no_arp: false,
                };
                netlink.add_veth(&end("told", 1), &end("other", 2), 1500)
            })
            .expect("to enter");
        made.expect("a pair");
        // A veth has something to poll once packets may be joined at it.
        inside
            .within(|| crate::net::ethtool::set_features("told", &[("rx-gro", true)]))
            .expect("to enter")
            .expect("GRO");
        let before = read(Some(&inside), "told").expect("to read");
        assert_eq!(before, Napi::default());
        let wanted = Napi { threaded: false, gather: Duration::from_micros(30) };
        set(Some(&inside), "told", wanted).expect("to write");
        assert_eq!(read(Some(&inside), "told").expect("to read"), wanted);
        assert_eq!(read(Some(&inside), "other").expect("to read"), Napi::default());
        let missing = read(None, "told").expect_err("it is not in this namespace");
        assert!(missing.to_string().contains("told"), "{missing}");
        netns::remove(&name).expect("to remove it");
    }
}
