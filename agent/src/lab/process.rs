//! Processes told by pid *and* start time, so that a pid used again is never mistaken for ours.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How long a process may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// When it was started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub started: u64,
}

impl Process {
    /// Returns the process that has `pid` now.
    pub fn of(pid: i32) -> Option<Self> {
        let (state, started) = stat(pid)?;
        (state != 'Z').then_some(Self { pid, started })
    }

    /// Returns whether it still runs. A zombie does not.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    fn signal(self, signal: Signal) {
        if self.is_alive() {
            // It may end between the look and the signal, which is what we want anyway.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may contain anything; what follows its last parenthesis is regular.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Ends every process in `processes`: asked first, forced after a while. Returns those that would not go.
pub fn end(processes: &BTreeSet<Process>) -> Vec<Process> {
    for (signal, patience) in [(Signal::SIGTERM, PATIENCE), (Signal::SIGKILL, PATIENCE)] {
        // A stopped process hears nothing until it continues.
        processes.iter().for_each(|p| p.signal(signal));
        processes.iter().for_each(|p| p.signal(Signal::SIGCONT));
        let deadline = Instant::now() + patience;
        while processes.iter().any(|p| p.is_alive()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
    processes.iter().copied().filter(|p| p.is_alive()).collect()
}

/// Returns the processes that live in one of the network namespaces bound at `paths`, ourselves not counted.
pub fn inside<'a>(paths: impl Iterator<Item = &'a Path>) -> BTreeSet<Process> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let own = identity(Path::new("/proc/self/ns/net"));
    let namespaces: BTreeSet<_> = paths.filter_map(identity).filter(|id| Some(*id) != own).collect();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        if identity(&entry.path().join("ns/net")).is_some_and(|id| namespaces.contains(&id)) {
            found.extend(Process::of(pid));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_start_time_too() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("sleep");
        let process = Process::of(child.id().cast_signed()).expect("alive");
        assert!(process.is_alive());
        let impostor = Process { started: process.started + 1, ..process };
        assert!(!impostor.is_alive());
        assert_eq!(end(&BTreeSet::from([impostor])), []);
        assert!(process.is_alive(), "a pid used again is left alone");
        assert_eq!(end(&BTreeSet::from([process])), []);
        assert!(!process.is_alive());
        child.wait().expect("reaped");
    }
}
