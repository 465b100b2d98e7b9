//! No copy of this process's memory is written by the kernel once there are keys in it.

/// Turns core dumps off for this process and those that it starts (prctl(2) `PR_SET_DUMPABLE`, `RLIMIT_CORE`).
///
/// Errors: the kernel's reason; the agent goes on, and says so.
pub fn turn_off() -> Result<(), String> {
    use nix::sys::prctl;
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| format!("RLIMIT_CORE cannot be set: {error}"))?;
    prctl::set_dumpable(false).map_err(|error| format!("the process stays dumpable: {error}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_says_that_it_would_not_dump() {
        super::turn_off().unwrap();
        assert_eq!(nix::sys::prctl::get_dumpable(), Ok(false));
        let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE).unwrap();
        assert_eq!((soft, hard), (0, 0));
    }
}
