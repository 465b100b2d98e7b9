//! The file system a machine starts with: an uncompressed `newc` archive, written here byte by byte.
//!
//! It holds dash, busybox with a link per applet, modules, the programs a scenario asks for with the shared libraries that
//! `ldd` names, an `/init` of ours and the script. `/init` mounts what a Linux program expects, loads the modules, runs
//! the script and prints its status on the console between two marks. Whatever the script does, the machine then
//! powers off.

use crate::{Error, Kernel, Unavailable, find_program, run};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The console line that reports the script's status is this, a blank and the number.
pub const STATUS_MARK: &str = "MARGAY-VM-STATUS";

enum Entry {
    Directory,
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
}

/// An initramfs being put together.
pub struct Initramfs {
    entries: BTreeMap<String, Entry>,
    modules: Vec<String>,
}

impl Initramfs {
    /// Starts with busybox and its applets.
    ///
    /// Errors: [`Unavailable::Program`] when there is no statically linked busybox.
    pub fn new() -> Result<Self, Error> {
        let missing = Unavailable::Program { program: "busybox", package: "busybox-static" };
        let busybox = find_program("busybox").ok_or(missing)?;
        let mut this = Self { entries: BTreeMap::new(), modules: Vec::new() };
        for directory in ["dev", "proc", "sys", "run", "tmp", "etc", "var/lib", "root", "usr/sbin", "sbin"] {
            this.directory(directory);
        }
        for library in libraries(&busybox)? {
            this.copy(&library, &library.display().to_string())?;
        }
        this.copy(&busybox, "/bin/busybox")?;
        for applet in run(Command::new(&busybox).arg("--list"))?.lines() {
            if applet != "busybox" {
                this.entries
                    .insert(format!("bin/{applet}"), Entry::Link { target: "/bin/busybox".to_owned() });
            }
        }
        // Busybox's own shell prefers its applets to programs of the same name; `ip` must be iproute2's where one is given.
        let shell = find_program("dash").ok_or(Unavailable::Program { program: "dash", package: "dash" })?;
        this.program_as(&shell, "/bin/sh")?;
        this.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n".to_vec());
        this.file("/etc/group", 0o644, b"root:x:0:\n".to_vec());
        this.file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n".to_vec());
        Ok(this)
    }

    /// Adds modules and what they depend on; `/init` loads them in that order.
    pub fn modules(&mut self, kernel: &Kernel, names: &[&str]) -> Result<&mut Self, Error> {
        for (name, object) in kernel.modules(names)? {
            if !self.modules.contains(&name) {
                self.file(&format!("/lib/modules/{name}.ko"), 0o644, object);
                self.modules.push(name);
            }
        }
        Ok(self)
    }

    /// Adds a program at `/usr/local/bin/NAME`, with the shared libraries it needs.
    pub fn program(&mut self, path: &Path) -> Result<&mut Self, Error> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.program_as(path, &format!("/usr/local/bin/{name}"))
    }

    /// Adds a program under a path of its own, with the shared libraries it needs.
    pub fn program_as(&mut self, path: &Path, inside: &str) -> Result<&mut Self, Error> {
        for library in libraries(path)? {
            let place = library.display().to_string();
            self.copy(&library, &place)?;
        }
        self.copy(path, inside)?;
        Ok(self)
    }

    /// Adds a program found in `PATH`.
    ///
    /// Errors: [`Unavailable::Program`] when the machine has none.
    pub fn tool(&mut self, program: &'static str, package: &'static str) -> Result<&mut Self, Error> {
        let path = find_program(program).ok_or(Unavailable::Program { program, package })?;
        self.program(&path)
    }

    /// Adds a file with the given content. `inside` is an absolute path.
    pub fn file(&mut self, inside: &str, mode: u32, content: Vec<u8>) -> &mut Self {
        let inside = inside.trim_start_matches('/').to_owned();
        if let Some((parent, _)) = inside.rsplit_once('/') {
            self.directory(parent);
        }
        self.entries.insert(inside, Entry::File { mode, content });
        self
    }

    fn copy(&mut self, from: &Path, inside: &str) -> Result<(), Error> {
        let content = std::fs::read(from).map_err(|e| Error::file(from, e))?;
        self.file(inside, 0o755, content);
        Ok(())
    }

    fn directory(&mut self, path: &str) {
        let mut whole = String::new();
        for part in path.split('/').filter(|p| !p.is_empty()) {
            if !whole.is_empty() {
                whole.push('/');
            }
            whole.push_str(part);
            self.entries.entry(whole.clone()).or_insert(Entry::Directory);
        }
    }

    /// Finishes the archive with `script` as the thing to run (by `dash -eu`).
    pub fn build(mut self, script: &str) -> Vec<u8> {
        self.file("/script", 0o755, script.as_bytes().to_vec());
        let load: String = self
            .modules
            .iter()
            .map(|m| format!("insmod /lib/modules/{m}.ko || echo \"init: {m} did not load\"\n"))
            .collect();
        let init = format!(
            "#!/bin/sh\n\
             export PATH=/usr/local/bin:/usr/sbin:/sbin:/usr/bin:/bin HOME=/root TERM=dumb\n\
             mount -t proc proc /proc\n\
             mount -t sysfs sys /sys\n\
             mount -t devtmpfs dev /dev 2>/dev/null\n\
             mkdir -p /dev/pts /dev/shm /sys/fs/bpf /sys/fs/cgroup /var/run /run/netns\n\
             mount -t devpts devpts /dev/pts\n\
             mount -t tmpfs tmpfs /dev/shm\n\
             mount -t tmpfs tmpfs /run\n\
             mount -t tmpfs tmpfs /tmp\n\
             mount -t bpf bpf /sys/fs/bpf\n\
             mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
             ulimit -l unlimited 2>/dev/null\n\
             {load}\
             ip link set lo up\n\
             cd /root\n\
             sh -eu /script\n\
             status=$?\n\
             echo\n\
             echo {STATUS_MARK} $status\n\
             sync\n\
             poweroff -f\n"
        );
        self.file("/init", 0o755, init.into_bytes());
        self.archive()
    }

    fn archive(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            let (mode, content): (u32, &[u8]) = match entry {
                Entry::Directory => (0o040_755, &[]),
                Entry::File { mode, content } => (0o100_000 | mode, content),
                Entry::Link { target } => (0o120_777, target.as_bytes()),
            };
            member(&mut out, inode, mode, path, content);
        }
        member(&mut out, 0, 0, "TRAILER!!!", &[]);
        out
    }
}

/// One archive member: thirteen eight-digit hexadecimal fields after the magic, then name and content, each padded to 4.
/// Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
fn member(out: &mut Vec<u8>, inode: u32, mode: u32, path: &str, content: &[u8]) {
    let links = 1;
    let fields = [inode, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    while !out.len().is_multiple_of(4) {
        out.push(0);
    }
}

/// Returns the shared libraries and the loader that `ldd` names for a program; none for a static one or a script.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let ldd = find_program("ldd").ok_or(Unavailable::Program { program: "ldd", package: "libc-bin" })?;
    let output = Command::new(ldd).arg(program).output().map_err(|e| Error::Command {
        command: format!("ldd {}", program.display()),
        reason: e.to_string(),
    })?;
    // `ldd` ends with an error for what is not dynamic: that is an answer, not a failure.
    Ok(parse_ldd(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_ldd(text: &str) -> BTreeSet<PathBuf> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .filter(|p| !p.display().to_string().ends_with(':'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_lines_become_paths_and_the_rest_is_ignored() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibelf.so.1 => /lib/x86_64-linux-gnu/libelf.so.1 (0x7f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n\tnot a dynamic executable\n";
        let expected =
            ["/lib/x86_64-linux-gnu/libelf.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse_ldd(text), expected.into_iter().collect());
    }

    #[test]
    fn a_member_is_padded_to_four_bytes_and_ends_its_name_with_nul() {
        let mut out = Vec::new();
        member(&mut out, 1, 0o100_644, "ab", b"hello");
        assert_eq!(out.len() % 4, 0);
        assert_eq!(&out[..6], b"070701");
        assert_eq!(&out[110..113], b"ab\0");
        assert_eq!(&out[116..121], b"hello");
    }
}
