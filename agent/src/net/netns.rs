//! Network namespaces: make one with a name, enter one for the length of a closure, remove one.
//!
//! Entering happens on a thread of its own, which ends with the closure: the calling thread never changes its namespace, and a process
//! started inside the closure inherits the namespace of that thread.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::NetError;

/// Where named namespaces live; `ip netns` looks here too.
pub const NAMED: &str = "/run/netns";

/// An open network namespace; it lives at least as long as this value.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace at `path`, such as `/run/netns/blue` or `/proc/42/ns/net`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, NetError> {
        let path = path.into();
        let file = File::open(&path)
            .map_err(|e| NetError::new(format!("open the network namespace {}", path.display()), e))?;
        Ok(Self { file, path })
    }

    /// Opens the namespace called `name`.
    pub fn named(name: &str) -> Result<Self, NetError> {
        Self::open(Path::new(NAMED).join(name))
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Returns whether this is the namespace of the calling thread.
    pub fn is_current(&self) -> io::Result<bool> {
        let (mine, own) = (self.file.metadata()?, fs::metadata("/proc/thread-self/ns/net")?);
        Ok((mine.dev(), mine.ino()) == (own.dev(), own.ino()))
    }

    /// Runs `work` inside the namespace and returns its result.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| {
                    NetError::new(format!("enter the network namespace {}", self.path.display()), e.into())
                })?;
                Ok(work())
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// Makes a namespace called `name` with its loopback up. Fails when the name is taken.
pub fn create(name: &str) -> Result<NetNs, NetError> {
    let path = Path::new(NAMED).join(name);
    let failed = |e: io::Error| NetError::new(format!("make the network namespace {name}"), e);
    fs::create_dir_all(NAMED).map_err(failed)?;
    File::create_new(&path).map_err(failed)?;
    let made = thread::scope(|scope| {
        let inside = scope.spawn(|| -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    if let Err(error) = made {
        let _ = fs::remove_file(&path);
        return Err(failed(error));
    }
    let netns = NetNs::open(path)?;
    netns.within(|| {
        let mut netlink = super::Netlink::open()?;
        let loopback = netlink.existing("lo")?;
        netlink.set_up(loopback.index, true)
    })??;
    Ok(netns)
}

/// Removes the namespace called `name`; one that does not exist is no error.
pub fn remove(name: &str) -> Result<(), NetError> {
    let path = Path::new(NAMED).join(name);
    let failed = |e: io::Error| NetError::new(format!("remove the network namespace {name}"), e);
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
        Err(nix::errno::Errno::ENOENT) => return Ok(()),
        Err(e) => return Err(failed(e.into())),
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}
