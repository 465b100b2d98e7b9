//! The peers: fetched, built and run here.
//!
//! DPDK comes as unpacked Debian packages ([`benches::packages`]). The two C programs under `peers/` are ours and are compiled at each run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, MapData};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use benches::Result;
use benches::numbers::median;
use benches::packages::{libraries, library_path, unpacked};
use ipnet::Ipv4Net;
use margay_policy_engine::model::Action;
use margay_policy_engine::packet::PacketTuple;

use super::shapes::FlatRule;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");

/// What DPDK's ACL library did with the rules and packets.
pub struct Acl {
    /// Milliseconds of building the tables from nothing, as any change needs.
    pub build: f64,
    /// Nanoseconds per look-up by instruction set.
    pub sets: BTreeMap<String, f64>,
    /// How many of the packets were allowed.
    pub allowed: usize,
}

/// Measures DPDK's ACL library.
///
/// Errors: packages that cannot be fetched, no C compiler, a program that fails; the message says which.
pub fn acl<'a>(rules: &[FlatRule], packets: impl Iterator<Item = &'a PacketTuple>) -> Result<Acl> {
    let tree = dpdk()?;
    let directory = tempfile::tempdir()?;
    let program = directory.path().join("acl");
    let libraries = library_path(&tree);
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-march=native", "-include", "rte_config.h"]);
    for include in ["", "dpdk", "x86_64-linux-gnu", "x86_64-linux-gnu/dpdk"] {
        compiler.arg("-I").arg(tree.join("usr/include").join(include));
    }
    compiler.arg(Path::new(SOURCES).join("acl.c")).arg("-o").arg(&program).arg("-L").arg(&libraries);
    compiler.arg(format!("-Wl,-rpath-link,{}", libraries.display())).args(["-lrte_acl", "-lrte_eal"]);
    run(&mut compiler)?;

    let mut text = String::new();
    for rule in rules {
        writeln!(
            text,
            "{} {} {} {} {} {} {} {}",
            u32::from(rule.source.network()),
            rule.source.prefix_len(),
            u32::from(rule.destination.network()),
            rule.destination.prefix_len(),
            rule.protocol,
            rule.first,
            rule.last,
            if rule.action == Action::Allow { 1 } else { 2 }
        )?;
    }
    let mut bytes = Vec::new();
    for packet in packets {
        bytes.extend([packet.protocol, 0, 0, 0]);
        for address in [packet.source, packet.destination] {
            if let std::net::IpAddr::V4(address) = address {
                bytes.extend(address.octets());
            }
        }
        for port in [packet.source_port, packet.destination_port] {
            bytes.extend(port.unwrap_or(0).to_be_bytes());
        }
    }
    let (rules, packets) = (directory.path().join("rules"), directory.path().join("packets"));
    std::fs::write(&rules, text)?;
    std::fs::write(&packets, bytes)?;
    let said = run(Command::new(&program).arg(&rules).arg(&packets).env("LD_LIBRARY_PATH", &libraries))?;
    let mut acl = Acl { build: f64::NAN, sets: BTreeMap::new(), allowed: 0 };
    for line in said.lines() {
        match line.split_once(' ') {
            Some(("build_ms", value)) => acl.build = value.parse()?,
            Some(("allowed", value)) => acl.allowed = value.parse()?,
            Some((name, value)) => drop(acl.sets.insert(name.to_owned(), value.parse()?)),
            None => {}
        }
    }
    Ok(acl)
}

/// Returns the directory with the unpacked DPDK packages.
fn dpdk() -> Result<PathBuf> {
    let wanted = ["librte-acl", "librte-eal", "librte-kvargs", "librte-telemetry"];
    let mut packages = libraries("libdpdk-dev", &wanted)?;
    let others = ["libdpdk-dev", "libbsd-dev", "libmd-dev", "libnuma1", "libbsd0", "libmd0", "libfdt1"];
    packages.extend(others.map(str::to_owned));
    unpacked("dpdk", &packages)
}

fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned();
        return Err(format!("{program}: {}: {last}", output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Look-ups in one run of the program, and addresses in its array; as in `peers/lpm.c`.
const LOOKUPS: u32 = 256;
const ADDRESSES: usize = 1 << 20;

/// Returns nanoseconds per look-up in the kernel's trie.
///
/// Errors: not root, no clang, a kernel that refuses the program.
pub fn lpm(members: &[Ipv4Net], addresses: &[Ipv4Addr]) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let object = directory.path().join("lpm.o");
    run(Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v2", "-Wall", "-Wextra", "-Werror", "-c"])
        .arg(Path::new(SOURCES).join("lpm.c"))
        .arg("-o")
        .arg(&object))?;
    let mut bpf = EbpfLoader::new().load(&std::fs::read(&object)?)?;
    fill(&mut bpf, members, addresses)?;
    let mut trie = Vec::new();
    let mut empty = Vec::new();
    for _ in 0..5 {
        trie.push(time(&mut bpf, "trie")?);
        empty.push(time(&mut bpf, "empty")?);
    }
    Ok(median(&trie) - median(&empty))
}

fn fill(bpf: &mut Ebpf, members: &[Ipv4Net], addresses: &[Ipv4Addr]) -> Result<()> {
    let map = bpf.map_mut("members").ok_or("no map `members`")?;
    let mut trie: LpmTrie<&mut MapData, [u8; 16], u32> = LpmTrie::try_from(map)?;
    for net in members {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&0x0102_0304_0506_0708u64.to_ne_bytes());
        key[8..12].copy_from_slice(&net.network().octets());
        trie.insert(&Key::new(64 + u32::from(net.prefix_len()), key), 1, 0)?;
    }
    let map = bpf.map_mut("addresses").ok_or("no map `addresses`")?;
    let mut array: Array<&mut MapData, u32> = Array::try_from(map)?;
    for (n, address) in addresses.iter().cycle().take(ADDRESSES).enumerate() {
        array.set(n as u32, u32::from_ne_bytes(address.octets()), 0)?;
    }
    Ok(())
}

/// Returns nanoseconds per turn of the program's loop.
fn time(bpf: &mut Ebpf, name: &str) -> Result<f64> {
    let program: &mut Xdp = bpf.program_mut(name).ok_or("no such program")?.try_into()?;
    if program.fd().is_err() {
        program.load()?;
    }
    let frame = [0; 64];
    let options = TestRunOptions { data_in: Some(&frame), repeat: 4096, ..TestRunOptions::new() };
    let result = program.test_run(options)?;
    Ok(result.duration.as_nanos() as f64 / f64::from(LOOKUPS))
}
