//! Where downloaded kernels live: a directory outside the source tree, kept between runs.
//!
//! `MARGAY_VM_CACHE` names it; without that it is `$XDG_CACHE_HOME/margay/vm`, else `/var/cache/margay/vm` for root and
//! `~/.cache/margay/vm` for others. Each kernel is a directory named like its package; it appears by a rename when it is
//! complete, so an interrupted download is never taken for a kernel, and two tests that fetch at once do no harm.

use std::path::PathBuf;

/// Returns the cache directory; it need not exist yet.
pub fn directory() -> PathBuf {
    choose(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
}

fn choose(variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    if let Some(given) = variable("MARGAY_VM_CACHE") {
        return PathBuf::from(given);
    }
    if let Some(xdg) = variable("XDG_CACHE_HOME") {
        return PathBuf::from(xdg).join("margay/vm");
    }
    match variable("HOME") {
        Some(home) if home != "/root" => PathBuf::from(home).join(".cache/margay/vm"),
        _ => PathBuf::from("/var/cache/margay/vm"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_directory_wins_over_xdg_and_home() {
        let all = |n: &str| Some(format!("/{n}"));
        assert_eq!(choose(all), PathBuf::from("/MARGAY_VM_CACHE"));
        let xdg = |n: &str| (n == "XDG_CACHE_HOME").then(|| "/x".to_owned());
        assert_eq!(choose(xdg), PathBuf::from("/x/margay/vm"));
        assert_eq!(choose(|_| None), PathBuf::from("/var/cache/margay/vm"));
        let home = |n: &str| (n == "HOME").then(|| "/home/u".to_owned());
        assert_eq!(choose(home), PathBuf::from("/home/u/.cache/margay/vm"));
    }
}
