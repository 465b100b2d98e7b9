//! What the benches share: worlds to measure in, namespaces to measure in, and how a number is told.
//!
//! Every bench is a program of its own under `benches/` (no harness): it prints where it ran ([`machine`]), its own numbers beside
//! those of a peer of the same run, and what it could not do (`SKIPPED name: why`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub mod cables;
pub mod flow_hit;
pub mod generator;
pub mod lab;
pub mod machine;
pub mod namespaces;
pub mod numbers;
pub mod packages;
pub mod router;
pub mod streams;
pub mod world;

/// What goes wrong ends the bench with its message.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Builds the release binary beside the running bench, unless it is up to date, and returns where it is.
///
/// Errors: not started by cargo; it does not build.
pub fn release_binary() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let release = me.parent().and_then(Path::parent).ok_or("not started by cargo")?;
    let target = release.parent().ok_or("not started by cargo")?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "-p", "margay", "--target-dir"])
        .arg(target)
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err("margay does not build: cargo build --release -p margay".into());
    }
    Ok(target.join("release/margay"))
}
