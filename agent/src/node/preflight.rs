//! What the agent needs from the machine, checked first and named when missing.

use std::path::Path;

/// Something that the agent cannot run without.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// Not root.
    #[error("the agent needs root (it is user {0}); run it with sudo, or as a privileged container")]
    Root(u32),
    /// No AF_XDP.
    #[error(
        "this kernel has no AF_XDP sockets ({0}); it needs CONFIG_XDP_SOCKETS, kernel 5.11 or newer, best 6.6"
    )]
    AfXdp(std::io::Error),
    /// A file of the kernel is not there.
    #[error("{path} is not there: {what}")]
    Path {
        /// The path.
        path: &'static str,
        /// What it is for and how to get it.
        what: &'static str,
    },
}

/// Returns the first thing that is missing.
pub fn check() -> Result<(), Missing> {
    let user = nix::unistd::geteuid();
    if !user.is_root() {
        return Err(Missing::Root(user.as_raw()));
    }
    let bpf = "/proc/sys/kernel/unprivileged_bpf_disabled";
    if !Path::new(bpf).exists() {
        return Err(Missing::Path {
            path: bpf,
            what: "the kernel has no bpf system call (CONFIG_BPF_SYSCALL)",
        });
    }
    let xdp = std::fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    if !xdp.lines().any(|line| line.starts_with("XDP")) {
        return Err(Missing::AfXdp(std::io::Error::other("no XDP in /proc/net/protocols")));
    }
    Ok(())
}
