//! How long processors may take to wake up.
//!
//! A processor that has nothing to do halts, and is woken by an interrupt of another one; in a virtual machine that is an exit to its
//! host on either side. Who answers a small packet pays for it twice: the worker on one processor wakes the pod's program on another. The
//! kernel lets a process bound that for as long as it holds a file open (PM QoS, `Documentation/power/pm_qos_interface.rst`): with zero
//! an idle processor looks for work in a loop, and wakes up without an interrupt, where its first idle state is such a loop. It is on x86
//! with an idle driver (`drivers/cpuidle/poll_state.c`); elsewhere the kernel takes the bound, and halts all the same.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

const DEVICE: &str = "/dev/cpu_dma_latency";

/// The bound is in force until this is dropped.
#[derive(Debug)]
pub struct Bound(#[allow(dead_code, reason = "held open")] File);

/// Has every processor of this node wake up within `most`, in whole microseconds.
///
/// Errors: the kernel has no such file, or does not let us; it says what to do.
pub fn bound(most: Duration) -> Result<Bound, String> {
    bound_by(Path::new(DEVICE), most).map_err(|error| {
        format!(
            "--cpu-latency {most:?}: cannot hold {DEVICE}: {error}; it needs a kernel with CPU idle management and the device of that name \
             in this mount namespace (a privileged container has it), or leave the option out"
        )
    })
}

/// Returns why a bound changes nothing, where it does not. `root` is sysfs's folder of processors.
fn why_in_vain(root: &Path, most: Duration) -> Option<String> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).map(|text| text.trim().to_owned());
    match (read("cpuidle/current_driver").as_deref(), read("cpu0/cpuidle/state0/name").as_deref()) {
        (Ok("none") | Err(_), _) => Some("the kernel has no driver for idle processors".to_owned()),
        (_, Ok("POLL")) => None,
        _ if !most.is_zero() => None,
        (Ok(driver), state) => Some(format!(
            "the first idle state of driver {driver} is {}, which halts",
            state.unwrap_or("unknown")
        )),
    }
}

/// Says in the log what the bound is worth here.
pub fn log(most: Duration) {
    match why_in_vain(Path::new("/sys/devices/system/cpu"), most) {
        Some(why) => tracing::warn!(?most, why, "--cpu-latency is held, but the kernel does nothing for it"),
        None => tracing::info!(?most, "processors wake up within this while the agent runs"),
    }
}

fn bound_by(device: &Path, most: Duration) -> io::Result<Bound> {
    let microseconds = i32::try_from(most.as_micros()).map_err(io::Error::other)?;
    let mut file = OpenOptions::new().write(true).open(device)?;
    file.write_all(&microseconds.to_ne_bytes())?;
    Ok(Bound(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_a_number_of_microseconds_in_four_bytes() {
        let directory = tempfile::tempdir().expect("a directory");
        let device = directory.path().join("device");
        for (most, bytes) in [(0, 0i32), (1_999, 1), (10_000_000, 10_000)] {
            std::fs::write(&device, "").expect("a file");
            let _held = bound_by(&device, Duration::from_nanos(most)).expect("held");
            assert_eq!(std::fs::read(&device).expect("a file"), bytes.to_ne_bytes());
        }
        let missing = bound_by(&directory.path().join("missing"), Duration::ZERO);
        assert_eq!(missing.expect_err("no device").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn where_a_bound_changes_nothing_is_known() {
        let in_vain = |driver: Option<&str>, state: Option<&str>, most: Duration| {
            let root = tempfile::tempdir().expect("a directory");
            for (file, text) in [("cpuidle/current_driver", driver), ("cpu0/cpuidle/state0/name", state)] {
                let path = root.path().join(file);
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
                text.into_iter()
                    .for_each(|text| std::fs::write(&path, format!("{text}\n")).expect("written"));
            }
            why_in_vain(root.path(), most).is_some()
        };
        // Driver, first state, whether a bound of 0 and one of 1 ms are in vain.
        for (driver, state, wanted) in [
            (Some("haltpoll"), Some("POLL"), [false, false]),
            (None, None, [true, true]),
            (Some("none"), None, [true, true]),
            (Some("psci_idle"), Some("WFI"), [true, false]),
        ] {
            let told = [Duration::ZERO, Duration::from_millis(1)].map(|most| in_vain(driver, state, most));
            assert_eq!(told, wanted, "{driver:?} {state:?}");
        }
    }
}
