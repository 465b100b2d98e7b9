//! A kernel as the distribution ships it: found by series, downloaded, unpacked, never installed.
//!
//! Modules are read from the unpacked package and their dependencies from each module's own `.modinfo` section, so
//! neither `depmod` nor a matching running kernel is needed.

use crate::{Error, Unavailable, cache, find_program, run};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A series of kernels that margay is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Series {
    /// 6.1, the oldest that must run (Debian 12).
    Linux6_1,
    /// 6.12, with multi-buffer AF_XDP, tcx and TX metadata (Debian 13, and Debian 12 by its security updates).
    Linux6_12,
    /// 6.18, whose virtio-net has zero-copy (Debian 13's backports; as yet no machine is held to it otherwise).
    Linux6_18,
}

impl Series {
    /// Every series, oldest first.
    pub const ALL: [Self; 3] = [Self::Linux6_1, Self::Linux6_12, Self::Linux6_18];

    /// Returns the series as people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
            Self::Linux6_18 => "6.18",
        }
    }

    /// Regular expression over package names. Signed images carry modules; `-unsigned` and `-dbg` do not end so.
    fn pattern(self) -> &'static str {
        match self {
            Self::Linux6_1 => r"^linux-image-6\.1\.[0-9.]+-[0-9]+-cloud-amd64$",
            Self::Linux6_12 => r"^linux-image-6\.12\.[0-9]+[^ ]*-cloud-amd64$",
            Self::Linux6_18 => r"^linux-image-6\.18\.[0-9]+[^ ]*-cloud-amd64$",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Linux6_1 => "linux-image-6.1.",
            Self::Linux6_12 => "linux-image-6.12.",
            Self::Linux6_18 => "linux-image-6.18.",
        }
    }
}

/// An unpacked kernel package.
#[derive(Clone, Debug)]
pub struct Kernel {
    root: PathBuf,
    release: String,
}

impl Kernel {
    /// Returns a kernel of `series`, from the cache or else from the machine's package sources.
    ///
    /// Errors: [`Unavailable`] when neither has one; [`Error::File`] or [`Error::Command`] when unpacking fails.
    pub fn obtain(series: Series) -> Result<Self, Error> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(Unavailable::Architecture(std::env::consts::ARCH).into());
        }
        let cache = cache::directory();
        if let Some(found) = newest(directories(&cache), series) {
            return Self::unpacked(&cache.join(found));
        }
        let package = offered(series, &cache)?;
        fetch(&package, &cache)?;
        Self::unpacked(&cache.join(&package))
    }

    fn unpacked(root: &Path) -> Result<Self, Error> {
        let boot = root.join("boot");
        let release = std::fs::read_dir(&boot)
            .map_err(|e| Error::file(&boot, e))?
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .find_map(|n| n.strip_prefix("vmlinuz-").map(str::to_owned))
            .ok_or_else(|| Error::file(&boot.join("vmlinuz-*"), std::io::ErrorKind::NotFound.into()))?;
        Ok(Self { root: root.to_owned(), release })
    }

    /// Returns the release, as `uname -r` prints it inside.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Returns the path of the compressed kernel image.
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// Returns the named modules and what they depend on, dependencies first, each as (name, bytes of the object).
    ///
    /// Modules that the kernel has built in are left out.
    /// Errors: [`Error::Module`] when a name is neither a module nor built in.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let base = [self.root.join("lib/modules"), self.root.join("usr/lib/modules")]
            .into_iter()
            .map(|d| d.join(&self.release))
            .find(|d| d.is_dir())
            .ok_or_else(|| {
                Error::file(&self.root.join("lib/modules"), std::io::ErrorKind::NotFound.into())
            })?;
        let mut files = BTreeMap::new();
        index(&base, &mut files)?;
        let builtin = std::fs::read_to_string(base.join("modules.builtin")).unwrap_or_default();
        let builtin: Vec<String> = builtin.lines().filter_map(|l| module_name(Path::new(l))).collect();
        let mut done = Vec::new();
        for name in names {
            self.collect(name, &files, &builtin, &mut done)?;
        }
        Ok(done)
    }

    fn collect(
        &self,
        name: &str,
        files: &BTreeMap<String, PathBuf>,
        builtin: &[String],
        done: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<(), Error> {
        let name = name.replace('-', "_");
        if done.iter().any(|(n, _)| *n == name) || builtin.contains(&name) {
            return Ok(());
        }
        let path = files
            .get(&name)
            .ok_or_else(|| Error::Module { module: name.clone(), release: self.release.clone() })?;
        let object = read_module(path)?;
        for dependency in dependencies(&object) {
            self.collect(&dependency, files, builtin, done)?;
        }
        done.push((name, object));
        Ok(())
    }
}

/// Names of the complete packages in the cache.
fn directories(cache: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(cache) else { return Vec::new() };
    entries
        .filter_map(|e| e.ok())
        .filter(|e| e.path().join("boot").is_dir())
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

/// Picks the newest package of a series by comparing the numbers in the names.
fn newest(names: Vec<String>, series: Series) -> Option<String> {
    names
        .into_iter()
        .filter(|n| n.starts_with(series.prefix()) && n.ends_with("-cloud-amd64"))
        .max_by_key(|n| numbers(n))
}

fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|p| p.parse().ok()).collect()
}

/// Asks the package manager which kernels of the series it knows and returns the newest.
fn offered(series: Series, cache: &Path) -> Result<String, Error> {
    let apt =
        find_program("apt-cache").ok_or(Unavailable::Program { program: "apt-cache", package: "apt" })?;
    let listed = run(Command::new(apt).args(["search", "--names-only", series.pattern()]))?;
    let names = listed.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect();
    newest(names, series).ok_or_else(|| {
        Unavailable::Package { pattern: series.pattern(), cache: cache.display().to_string() }.into()
    })
}

/// Downloads and unpacks a package beside its final place, then renames it there.
fn fetch(package: &str, cache: &Path) -> Result<(), Error> {
    let apt = find_program("apt-get").ok_or(Unavailable::Program { program: "apt-get", package: "apt" })?;
    let dpkg =
        find_program("dpkg-deb").ok_or(Unavailable::Program { program: "dpkg-deb", package: "dpkg" })?;
    std::fs::create_dir_all(cache).map_err(|e| Error::file(cache, e))?;
    let scratch =
        tempfile::Builder::new().prefix(".fetch-").tempdir_in(cache).map_err(|e| Error::file(cache, e))?;
    let fetched = run(Command::new(apt)
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", package])
        .current_dir(scratch.path()));
    if let Err(Error::Command { reason, .. }) = fetched {
        return Err(Unavailable::Fetch { package: package.to_owned(), reason }.into());
    }
    let deb = std::fs::read_dir(scratch.path())
        .map_err(|e| Error::file(scratch.path(), e))?
        .filter_map(|e| Some(e.ok()?.path()))
        .find(|p| p.extension().is_some_and(|x| x == "deb"))
        .ok_or_else(|| Unavailable::Fetch {
            package: package.to_owned(),
            reason: "no file arrived".to_owned(),
        })?;
    let tree = scratch.path().join("tree");
    run(Command::new(dpkg).arg("-x").arg(&deb).arg(&tree))?;
    let place = cache.join(package);
    match std::fs::rename(&tree, &place) {
        // Another test was quicker; its copy is as good.
        Err(_) if place.join("boot").is_dir() => Ok(()),
        result => result.map_err(|e| Error::file(&place, e)),
    }
}

fn index(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), Error> {
    for entry in std::fs::read_dir(directory).map_err(|e| Error::file(directory, e))? {
        let path = entry.map_err(|e| Error::file(directory, e))?.path();
        if path.is_dir() && !path.is_symlink() {
            index(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/net/sctp/sctp.ko.xz` is the module `sctp`; dashes count as underscores.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

fn read_module(path: &Path) -> Result<Vec<u8>, Error> {
    let unpacker = match path.extension().and_then(|x| x.to_str()) {
        Some("xz") => Some(("xz", "xz-utils")),
        Some("zst") => Some(("zstd", "zstd")),
        Some("gz") => Some(("gzip", "gzip")),
        _ => None,
    };
    let Some((program, package)) = unpacker else {
        return std::fs::read(path).map_err(|e| Error::file(path, e));
    };
    let program = find_program(program).ok_or(Unavailable::Program { program, package })?;
    let output = Command::new(&program)
        .arg("-dc")
        .arg(path)
        .output()
        .map_err(|e| Error::Command { command: program.display().to_string(), reason: e.to_string() })?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Command {
            command: format!("{} -dc {}", program.display(), path.display()),
            reason,
        });
    }
    Ok(output.stdout)
}

/// Reads `depends=a,b` out of a module's `.modinfo` strings (NUL-terminated `key=value`).
fn dependencies(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = object.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let value = &object[at + KEY.len()..];
    let value = &value[..value.iter().position(|b| *b == 0).unwrap_or(0)];
    String::from_utf8_lossy(value).split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_chosen_by_number_not_by_text() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.12.1-cloud-amd64",
        ];
        let names = names.map(str::to_owned).to_vec();
        assert_eq!(
            newest(names.clone(), Series::Linux6_1).as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(newest(names, Series::Linux6_12).as_deref(), Some("linux-image-6.12.1-cloud-amd64"));
    }

    #[test]
    fn module_names_ignore_compression_and_dashes() {
        assert_eq!(module_name(Path::new("a/veth.ko")).as_deref(), Some("veth"));
        assert_eq!(module_name(Path::new("a/nf-tables.ko.xz")).as_deref(), Some("nf_tables"));
        assert_eq!(module_name(Path::new("a/modules.builtin")), None);
    }

    #[test]
    fn dependencies_come_from_modinfo() {
        assert_eq!(dependencies(b"x\0license=GPL\0depends=a,b_c\0name=d\0"), ["a", "b_c"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
