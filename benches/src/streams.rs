//! TCP streams by iperf3, between places that a command leads into.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Result;

/// Runs a command to its end and returns what it said.
///
/// Errors: it is not installed, or it failed; what it said is in the error.
pub fn run(call: &mut Command) -> Result<String> {
    let output = call.output().map_err(|e| format!("{call:?}: {e}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        return Err(format!("{call:?}: {}", String::from_utf8_lossy(&said)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Tries until it succeeds, for twenty seconds.
///
/// Errors: the last one.
pub fn patiently<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
            result => return result,
        }
    }
}

/// A process that ends with its owner.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts one, without a word.
    ///
    /// Errors: it is not installed.
    pub fn start(call: &mut Command) -> Result<Self> {
        let child = call.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self(child))
    }

    /// Sends it a signal.
    ///
    /// Errors: it has ended.
    pub fn tell(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.0.id() as i32), signal)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns Gb/s of one stream of `seconds`, after a second that does not count; `client` and `server` make commands that lead to
/// iperf3's two ends.
///
/// Errors: iperf3's.
pub fn stream(
    mut server: Command,
    client: impl Fn() -> Command,
    address: &str,
    seconds: &str,
) -> Result<f64> {
    let _server = Running::start(server.args(["iperf3", "-s"]))?;
    patiently(|| {
        let call = ["iperf3", "-c", address, "-t", seconds, "-O", "1", "-J", "--connect-timeout", "1000"];
        let text = run(client().args(call))?;
        let report: Value = serde_json::from_str(&text)?;
        let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.ok_or_else(|| format!("iperf3: {}", report["error"]))? / 1e9)
    })
}
