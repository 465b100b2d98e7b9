//! Kernel settings under `/proc/sys/net`, which shows the network namespace of the thread that reads it.

use std::fs;
use std::path::PathBuf;

use super::NetError;

/// Writes the setting at `path`, parts below `/proc/sys/net`, such as `["ipv4", "conf", "eth0", "forwarding"]`.
///
/// A part is one directory level: interface names with dots stay whole.
pub fn set(path: &[&str], value: &str) -> Result<(), NetError> {
    let file = file(path);
    fs::write(&file, value).map_err(|e| NetError::new(format!("write {value} to {}", file.display()), e))
}

/// As [`set`], and a setting that this kernel does not have is no error.
pub fn set_if_present(path: &[&str], value: &str) -> Result<(), NetError> {
    match set(path, value) {
        Err(e) if e.is(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn file(path: &[&str]) -> PathBuf {
    let mut file = PathBuf::from("/proc/sys/net");
    file.extend(path);
    file
}
