//! Network namespaces of a bench's own. They have no names: each lives by the handles and threads in it, so it ends with the process,
//! also after a panic or a kill, and all devices in it end too.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns, unshare};

use crate::Result;

/// Runs a bench on a thread in a network and a mount namespace of its own, with a directory for its bpffs, or says that it could not.
pub fn run(name: &'static str, bench: fn(&Path) -> Result<()>) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {name}: needs root");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let path = directory.path().to_owned();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        bench(&path)
    })?;
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A further network namespace.
#[derive(Debug)]
pub struct NetNs(File);

impl NetNs {
    /// Makes one.
    ///
    /// Errors: no permission.
    pub fn new() -> Result<Self> {
        let maker = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        match maker.join() {
            Ok(file) => Ok(Self(file?)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Returns a path that `ip link … netns PATH` understands.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` with the calling thread in this namespace, and goes back.
    ///
    /// Errors: those of `work`; no way back.
    pub fn inside<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let home = File::open("/proc/thread-self/ns/net")?;
        setns(&self.0, CloneFlags::CLONE_NEWNET)?;
        let result = work();
        setns(&home, CloneFlags::CLONE_NEWNET)?;
        result
    }
}

/// Runs a program in the thread's namespace.
///
/// Errors: it is not installed, or it failed; its message is in the error.
pub fn command(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} {}: {message}", arguments.join(" ")).into());
    }
    Ok(())
}

/// Runs `ip` in the thread's namespace.
///
/// Errors: as [`command`].
pub fn ip(arguments: &str) -> Result<()> {
    command("ip", &arguments.split_whitespace().collect::<Vec<_>>())
}

/// Runs a program with text on its standard input.
///
/// Errors: as [`command`].
pub fn feed(program: &str, arguments: &[&str], text: &str) -> Result<()> {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{program}: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

/// Loads an nftables script in the thread's namespace.
///
/// Errors: as [`command`].
pub fn nft(script: &str) -> Result<()> {
    feed("nft", &["-f", "-"], script)
}

/// Sets a value under `/proc/sys` for the thread's namespace.
///
/// Errors: no such setting here.
pub fn sysctl(name: &str, value: &str) -> Result<()> {
    std::fs::write(format!("/proc/sys/{name}"), value).map_err(|e| format!("{name}: {e}").into())
}

/// Takes a device up without ARP or IPv6 noise.
///
/// Errors: no such device.
pub fn up(device: &str) -> Result<()> {
    // A kernel without IPv6 has nothing to be switched off.
    let _ = sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1");
    ip(&format!("link set {device} arp off up"))
}

/// Waits until the kernel has a device in service: that comes later than "up", and frames sent before are lost.
///
/// Errors: five seconds were not enough.
pub fn wait_for_carrier(device: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let output = Command::new("ip").args(["-o", "link", "show", device]).output()?;
        if String::from_utf8_lossy(&output.stdout).contains("state UP") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!("{device} does not come up").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the kernel's index of a device in the thread's namespace.
///
/// Errors: no such device.
pub fn ifindex(device: &str) -> Result<u32> {
    Ok(nix::net::if_::if_nametoindex(device)?)
}

/// Returns how many packets a device in the thread's namespace has received.
///
/// Errors: no such device.
pub fn received(device: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'));
    let packets = line.and_then(|line| line.split_whitespace().nth(1)).ok_or("no such device")?;
    Ok(packets.parse()?)
}
