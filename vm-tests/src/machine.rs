//! One boot: QEMU with a kernel and an initramfs, its console read to the end, its time limited.
//!
//! KVM is tried once per process by booting a kernel that only reports success; where that does not work within its
//! time (nested virtualisation that hangs is common) everything runs under QEMU's emulator.

use crate::initramfs::STATUS_MARK;
use crate::{Error, Initramfs, Kernel, Unavailable, find_program};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's emulator.
    Tcg,
}

/// How a machine ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The script's exit status.
    pub status: i32,
    /// Everything the console showed, kernel messages included.
    pub console: String,
    /// What executed it.
    pub accelerator: Accelerator,
    /// From the start of QEMU to its end.
    pub took: Duration,
}

/// A machine to boot.
pub struct Machine<'k> {
    kernel: &'k Kernel,
    memory_mib: u32,
    processors: u32,
    limit: Duration,
    wire: Option<(WireEnd, PathBuf)>,
}

/// An end of a wire between two machines. The one that waits has to be started first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireEnd {
    /// Makes the socket and waits for the other.
    Waits,
    /// Calls the other.
    Calls,
}

impl<'k> Machine<'k> {
    /// Describes a machine with 1 GiB, two processors and four minutes (forty seconds are usual with the emulator).
    pub fn new(kernel: &'k Kernel) -> Self {
        Self { kernel, memory_mib: 1024, processors: 2, limit: Duration::from_secs(240), wire: None }
    }

    /// Sets the memory, MiB.
    pub fn memory_mib(mut self, memory: u32) -> Self {
        self.memory_mib = memory;
        self
    }

    /// Sets the number of processors.
    pub fn processors(mut self, processors: u32) -> Self {
        self.processors = processors;
        self
    }

    /// Sets the time after which the machine is stopped.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Gives the machine a virtio-net card, `eth0`, on a wire to another machine: a socket at `path`, outside of any network.
    pub fn wire(mut self, end: WireEnd, path: &Path) -> Self {
        self.wire = Some((end, path.to_owned()));
        self
    }

    /// The arguments for the card.
    fn card(&self) -> Vec<String> {
        let Some((end, path)) = &self.wire else { return Vec::new() };
        let (server, mac) = match end {
            WireEnd::Waits => ("on", "02:00:00:00:01:01"),
            WireEnd::Calls => ("off", "02:00:00:00:01:02"),
        };
        vec![
            "-netdev".into(),
            format!("stream,id=wire,server={server},addr.type=unix,addr.path={}", path.display()),
            "-device".into(),
            // With the platform's addresses the driver maps memory for the device itself, which zero-copy builds on.
            format!("virtio-net-pci,netdev=wire,mac={mac},disable-legacy=on,iommu_platform=on"),
        ]
    }

    /// Boots, runs `script` inside and waits for its end.
    ///
    /// Errors: [`Unavailable::Program`] without QEMU; [`Error::Deadline`] when it takes too long;
    /// [`Error::NoStatus`] when the machine stopped before the script ended. A script that fails is not an error:
    /// see [`Outcome::status`].
    pub fn run(&self, initramfs: Initramfs, script: &str) -> Result<Outcome, Error> {
        let accelerator = accelerator(self.kernel)?;
        self.boot(accelerator, initramfs.build(script))
    }

    fn boot(&self, accelerator: Accelerator, archive: Vec<u8>) -> Result<Outcome, Error> {
        let qemu = qemu()?;
        let scratch = tempfile::tempdir().map_err(|e| Error::file(&std::env::temp_dir(), e))?;
        let initrd = scratch.path().join("initramfs");
        std::fs::write(&initrd, archive).map_err(|e| Error::file(&initrd, e))?;
        let console = scratch.path().join("console");
        let command_line = format!("{qemu:?} -kernel {}", self.kernel.image().display());
        let begin = Instant::now();
        let mut child = Command::new(&qemu)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none"])
            .args(match accelerator {
                Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
                Accelerator::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
            })
            .args(["-m", &self.memory_mib.to_string(), "-smp", &self.processors.to_string()])
            .args(self.card())
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-kernel")
            .arg(self.kernel.image())
            .arg("-initrd")
            .arg(&initrd)
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 rdinit=/init net.ifnames=0 random.trust_cpu=on mitigations=off",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Error::Command { command: command_line.clone(), reason: e.to_string() })?;
        let ended = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if begin.elapsed() > self.limit => break None,
                Ok(None) => std::thread::sleep(Duration::from_millis(50)),
                Err(e) => return Err(Error::Command { command: command_line, reason: e.to_string() }),
            }
        };
        if ended.is_none() {
            // It may have ended just now; either way it is gone afterwards.
            let _ = child.kill();
        }
        let said = child
            .wait_with_output()
            .map(|o| String::from_utf8_lossy(&o.stderr).into_owned())
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).into_owned();
        match (ended, status(&text)) {
            (None, _) => Err(Error::Deadline { seconds: self.limit.as_secs(), tail: tail(&text) }),
            (Some(_), Some(status)) => {
                Ok(Outcome { status, console: text, accelerator, took: begin.elapsed() })
            }
            (Some(code), None) if !code.success() => {
                Err(Error::Command { command: command_line, reason: said })
            }
            (Some(_), None) => Err(Error::NoStatus { tail: tail(&text) }),
        }
    }
}

fn qemu() -> Result<PathBuf, Error> {
    let missing = Unavailable::Program { program: "qemu-system-x86_64", package: "qemu-system-x86" };
    Ok(find_program("qemu-system-x86_64").ok_or(missing)?)
}

/// Chooses the accelerator once per process.
fn accelerator(kernel: &Kernel) -> Result<Accelerator, Error> {
    static CHOSEN: OnceLock<Accelerator> = OnceLock::new();
    if let Some(chosen) = CHOSEN.get() {
        return Ok(*chosen);
    }
    qemu()?;
    let usable = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let chosen = if usable && trial(kernel)? { Accelerator::Kvm } else { Accelerator::Tcg };
    Ok(*CHOSEN.get_or_init(|| chosen))
}

fn trial(kernel: &Kernel) -> Result<bool, Error> {
    let machine = Machine::new(kernel).memory_mib(512).limit(Duration::from_secs(25));
    let archive = Initramfs::new()?.build("true");
    Ok(machine.boot(Accelerator::Kvm, archive).is_ok_and(|o| o.status == 0))
}

/// Finds the status that `/init` printed. The console ends its lines with CR LF.
fn status(console: &str) -> Option<i32> {
    let line = console.lines().rfind(|l| l.starts_with(STATUS_MARK))?;
    line[STATUS_MARK.len()..].trim().parse().ok()
}

/// Returns the last forty lines.
fn tail(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_status_on_the_console_counts() {
        assert_eq!(status("boot\r\nMARGAY-VM-STATUS 7\r\n[    1.0] reboot: Power down\r\n"), Some(7));
        assert_eq!(status("MARGAY-VM-STATUS"), None);
        assert_eq!(status("Kernel panic"), None);
    }
}
