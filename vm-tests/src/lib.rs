//! Boots a real kernel with a script of ours inside, and brings back what it printed and how it ended.
//!
//! ```text
//!  Debian package ──unpack──▶ vmlinuz, modules ┐
//!  busybox, given programs and their libraries ├─▶ initramfs ─▶ QEMU ─▶ console ─▶ Outcome
//!  the script                                  ┘
//! ```
//!
//! A kernel package is downloaded and unpacked, never installed; it lives in a cache outside the source tree (see
//! [`cache`]). The machine has no disk and no network device: everything a scenario needs is in the initramfs, and
//! what it does on a wire happens between namespaces inside. KVM is used where a trial boot works, else QEMU's own
//! emulator, which is about twenty times slower.
//!
//! Invariants: nothing outside the cache and a temporary directory is written; the only process ever ended is the QEMU
//! that was started here; what cannot be had on a machine is an [`Unavailable`] with the way to get it, which a test
//! prints as `SKIPPED name: why`.
//!
//! Deliberately absent: disks, systemd, networks between machines. One scenario is one boot.

#![forbid(unsafe_code)]

pub mod cache;
pub mod initramfs;
pub mod kernel;
pub mod machine;

pub use initramfs::Initramfs;
pub use kernel::Kernel;
pub use machine::{Accelerator, Machine, Outcome, WireEnd};

use std::io::Write as _;

/// Why a scenario cannot run on this machine. Not a failure of what is tested; each says what would make it run.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// A program that the harness calls is not installed.
    #[error("{program} is not installed; install it with: apt-get install {package}")]
    Program {
        /// The program's name.
        program: &'static str,
        /// The Debian package that holds it.
        package: &'static str,
    },
    /// No configured package source has the kernel, and the cache does not hold it.
    #[error(
        "no package source of this machine offers a package like {pattern}; add Debian's, or put the unpacked package into {cache}"
    )]
    Package {
        /// The regular expression that was searched for.
        pattern: &'static str,
        /// The cache directory that was looked at first.
        cache: String,
    },
    /// The package is known and could not be fetched.
    #[error(
        "the kernel package {package} could not be fetched: {reason}; run apt-get update and look at the network"
    )]
    Fetch {
        /// The package's name.
        package: String,
        /// What the package manager said, last line.
        reason: String,
    },
    /// Kernels are chosen for x86-64 only.
    #[error("kernels are packaged here for x86_64; this machine is {0}")]
    Architecture(&'static str),
}

/// What went wrong while preparing or running a machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The scenario cannot run here.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// A file could not be read or written.
    #[error(
        "{path}: {source}; check that the file is there and that the cache directory may be written (MARGAY_VM_CACHE)"
    )]
    File {
        /// The path, as given.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A program could not be started, or ended with an error.
    #[error("{command} failed: {reason}; run it by hand to see more")]
    Command {
        /// The command line.
        command: String,
        /// Its last words.
        reason: String,
    },
    /// A module that a scenario asked for is not in the kernel package.
    #[error("module {module} is not in kernel {release}; choose another kernel or build it in")]
    Module {
        /// The module's name.
        module: String,
        /// The kernel's release.
        release: String,
    },
    /// The machine did not finish in its time.
    #[error("the machine did not finish in {seconds} s; its console ends with:\n{tail}")]
    Deadline {
        /// The time it had, seconds.
        seconds: u64,
        /// The last lines of its console.
        tail: String,
    },
    /// The machine stopped before the script reported its status: the kernel did not start, or it died.
    #[error("the machine stopped without reporting a status; its console ends with:\n{tail}")]
    NoStatus {
        /// The last lines of its console.
        tail: String,
    },
}

impl Error {
    pub(crate) fn file(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::File { path: path.display().to_string(), source }
    }
}

/// Prints `SKIPPED name: why` where the test runner's capture does not hide it.
pub fn skip(name: &str, why: &Unavailable) {
    // The runner has begun a line with the test's name by then.
    let line = format!("\nSKIPPED {name}: {why}\n");
    // A closed standard output leaves nobody to tell.
    let _ = std::io::stdout().write_all(line.as_bytes());
}

/// Runs a command to its end and returns its standard output.
///
/// Errors: [`Error::Command`] when it cannot be started or ends with a status other than zero.
pub(crate) fn run(command: &mut std::process::Command) -> Result<String, Error> {
    let line = format!("{command:?}");
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|e| Error::Command { command: line.clone(), reason: e.to_string() })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no message").to_owned();
        return Err(Error::Command { command: line, reason: last });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Looks a program up in `PATH` and in the directories of the superuser.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"])
        .map(|dir| std::path::Path::new(dir).join(name))
        .find(|p| p.is_file())
}
