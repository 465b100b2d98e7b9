//! Peers that come as Debian packages: downloaded and unpacked beside the bench's own build, once. Nothing is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::streams::run;

/// Returns the names of the libraries that a package depends on and that begin with one of `wanted`. Their names carry versions, which the
/// package knows.
///
/// Errors: no such package is known here.
pub fn libraries(package: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let listed = run(Command::new("apt-cache").args(["depends", package]))?;
    let names: Vec<String> = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| wanted.iter().any(|wanted| name.starts_with(wanted)))
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return Err(format!("no package {package} is known; run apt-get update").into());
    }
    Ok(names)
}

/// Returns the directory `name` with the files of `packages`.
///
/// Errors: not started by cargo; packages that cannot be fetched.
pub fn unpacked(name: &str, packages: &[String]) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let target = me.ancestors().nth(3).ok_or("not started by cargo")?;
    let tree = target.join("peers").join(name);
    let done = tree.join("complete");
    if done.exists() {
        return Ok(tree);
    }
    std::fs::create_dir_all(&tree)?;
    let scratch = tempfile::tempdir()?;
    run(Command::new("apt-get")
        .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
        .args(packages)
        .current_dir(scratch.path()))?;
    for file in std::fs::read_dir(scratch.path())? {
        run(Command::new("dpkg-deb").arg("-x").arg(file?.path()).arg(&tree))?;
    }
    std::fs::write(done, "")?;
    Ok(tree)
}

/// Returns where the libraries of an unpacked tree are.
pub fn library_path(tree: &Path) -> PathBuf {
    tree.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
}
