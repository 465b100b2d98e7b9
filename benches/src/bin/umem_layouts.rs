//! What each candidate layout of packet memory costs, in kernel memory and per packet.
//!
//! ```text
//! umem_layouts            the whole table, for 2, 30, 110 and 250 pods (needs root)
//! ```
//!
//! Everything happens in an unnamed network namespace of the program's own, which ends with it. Every layout runs in a process
//! of its own, so the memory of one is given back before the next is measured.

use std::process::Command;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One way to lay out packet memory. `umems` are (chunks, chunk size); socket `i` belongs to UMEM `i % umems`.
struct Layout {
    name: &'static str,
    umems: fn(usize) -> Vec<(u64, u32)>,
    sockets: fn(usize) -> usize,
}

const LAYOUTS: &[Layout] = &[
    Layout { name: "a: one UMEM 16384 x 4096", umems: |_| vec![(16_384, 4096)], sockets: |pods| pods },
    Layout { name: "a: one UMEM 16384 x 2048", umems: |_| vec![(16_384, 2048)], sockets: |pods| pods },
    Layout { name: "a: one UMEM 8192 x 4096", umems: |_| vec![(8192, 4096)], sockets: |pods| pods },
    Layout { name: "a: one UMEM 8192 x 2048", umems: |_| vec![(8192, 2048)], sockets: |pods| pods },
    Layout { name: "b: two UMEMs 8192 x 4096", umems: |_| vec![(8192, 4096); 2], sockets: |pods| pods },
    Layout {
        name: "c: a UMEM 512 x 4096 per pod",
        umems: |pods| vec![(512, 4096); pods],
        sockets: |pods| pods,
    },
    Layout { name: "d: two sockets, UMEM 16384 x 4096", umems: |_| vec![(16_384, 4096)], sockets: |_| 2 },
];
const PODS: [usize; 4] = [2, 30, 110, 250];
const RING: u32 = 512;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    if let [_, mode, layout, pods] = words.as_slice()
        && mode == "one"
    {
        return one(&LAYOUTS[layout.parse::<usize>()?], pods.parse()?);
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    let most = PODS[PODS.len() - 1];
    for i in 0..most {
        ip(&format!("link add p{i} type veth peer name q{i}"))?;
        ip(&format!("link set p{i} up"))?;
    }
    println!(
        "{:36} {:>4} {:>12} {:>12} {:>9} {:>9} {:>9}",
        "layout", "pods", "kernel KiB", "avail-RSS", "RSS KiB", "B/chunk/s", "bind ms"
    );
    for pods in PODS {
        for layout in 0..LAYOUTS.len() {
            let me = std::env::current_exe()?;
            let status = Command::new(me).args(["one", &layout.to_string(), &pods.to_string()]).status()?;
            if !status.success() {
                return Err(format!("layout {layout} with {pods} pods failed").into());
            }
            std::thread::sleep(Duration::from_millis(150));
        }
    }
    copies();
    hops()
}

fn ip(command: &str) -> Result<()> {
    let out = Command::new("ip").args(command.split_whitespace()).output()?;
    if !out.status.success() {
        return Err(format!("ip {command}: {}", String::from_utf8_lossy(&out.stderr)).into());
    }
    Ok(())
}

fn number(path: &str, key: &str) -> Result<i64> {
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)).ok_or("no such key")?;
    Ok(line.split_whitespace().next().ok_or("no value")?.parse()?)
}

/// Memory in KiB, by three counters.
#[derive(Clone, Copy)]
struct Reading {
    /// What the kernel itself holds: vmalloc and slab. Unlike MemAvailable it does not depend on pages that wait in per-CPU lists.
    kernel: i64,
    available: i64,
    resident: i64,
}

/// Reads the counters when the kernel's share has stopped moving.
fn memory() -> Result<Reading> {
    let read = || -> Result<Reading> {
        Ok(Reading {
            kernel: number("/proc/meminfo", "VmallocUsed:")? + number("/proc/meminfo", "Slab:")?,
            available: number("/proc/meminfo", "MemAvailable:")?,
            resident: number("/proc/self/status", "VmRSS:")?,
        })
    };
    let mut last = read()?;
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(50));
        let now = read()?;
        if (now.kernel - last.kernel).abs() < 64 {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

/// Opens the sockets of `layout` for `pods` pods and prints what that cost.
fn one(layout: &Layout, pods: usize) -> Result<()> {
    let before = memory()?;
    let umems = (layout.umems)(pods);
    let areas: Vec<Vec<u8>> =
        umems.iter().map(|(chunks, size)| vec![1; (chunks * u64::from(*size)) as usize + 4096]).collect();
    let began = Instant::now();
    let mut sockets: Vec<i32> = Vec::new();
    for i in 0..(layout.sockets)(pods) {
        let at = i % umems.len();
        let anchor = if i < umems.len() { None } else { Some(sockets[at]) };
        let area = areas[at].as_ptr().align_offset(4096) + areas[at].as_ptr() as usize;
        sockets.push(xsk(&format!("p{i}"), area as u64, umems[at], anchor)?);
    }
    let bind = began.elapsed();
    let after = memory()?;
    let kernel = after.kernel - before.kernel;
    let rss = after.resident - before.resident;
    let available = before.available - after.available - rss;
    let chunk_sockets: u64 = (0..sockets.len()).map(|i| umems[i % umems.len()].0).sum();
    println!(
        "{:36} {:>4} {:>12} {:>12} {:>9} {:>9.0} {:>9.1}",
        layout.name,
        pods,
        kernel,
        available,
        rss,
        kernel as f64 * 1024.0 / chunk_sockets as f64,
        bind.as_secs_f64() * 1e3
    );
    Ok(())
}

fn check(value: i64, what: &str) -> Result<i32> {
    if value < 0 {
        return Err(format!("{what}: {}", std::io::Error::last_os_error()).into());
    }
    Ok(value as i32)
}

fn option<T>(fd: i32, name: i32, value: &T) -> Result<()> {
    // SAFETY: `value` is live for the call and its size is passed with it.
    let code = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_XDP,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(code.into(), "setsockopt").map(|_| ())
}

/// Opens a copy-mode socket on queue 0 of `device`; the first of a UMEM registers the area, later ones name it by `anchor`.
fn xsk(device: &str, area: u64, (chunks, size): (u64, u32), anchor: Option<i32>) -> Result<i32> {
    // SAFETY: a system call without pointers.
    let fd = check(
        unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) }.into(),
        "socket",
    )?;
    if anchor.is_none() {
        /// `struct xdp_umem_reg` as of 5.4.
        #[repr(C)]
        struct Registration {
            area: u64,
            length: u64,
            chunk_size: u32,
            headroom: u32,
            flags: u32,
        }
        let length = chunks * u64::from(size);
        option(
            fd,
            libc::XDP_UMEM_REG,
            &Registration { area, length, chunk_size: size, headroom: 0, flags: 0 },
        )?;
    }
    for ring in
        [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING, libc::XDP_TX_RING]
    {
        option(fd, ring, &RING)?;
    }
    let flags = if anchor.is_some() { libc::XDP_SHARED_UMEM } else { libc::XDP_COPY };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: nix::net::if_::if_nametoindex(device)?,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: anchor.unwrap_or(0) as u32,
    };
    // SAFETY: `address` is live for the call and its size is passed with it.
    let code = unsafe {
        libc::bind(fd, std::ptr::from_ref(&address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    check(code.into(), "bind")?;
    Ok(fd)
}

/// What layout c pays per forwarded packet: a copy between chunks that no cache holds.
fn copies() {
    const CHUNK: usize = 4096;
    const CHUNKS: usize = 16_384;
    let mut memory = vec![1u8; 2 * CHUNK * CHUNKS];
    let (from, to) = memory.split_at_mut(CHUNK * CHUNKS);
    for length in [64, 512, 1514, 3840] {
        let mut samples: Vec<f64> = (0..21)
            .map(|round| {
                let began = Instant::now();
                for i in 0..4096usize {
                    let source = (i * 7919 + round * 31) % CHUNKS * CHUNK;
                    let target = (i * 6151 + round * 17) % CHUNKS * CHUNK;
                    to[target..target + length].copy_from_slice(&from[source..source + length]);
                }
                began.elapsed().as_nanos() as f64 / 4096.0
            })
            .collect();
        std::hint::black_box(&to);
        samples.sort_by(f64::total_cmp);
        println!("copy of {length} bytes between cold chunks: {:.0} ns", samples[10]);
    }
}

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_TEST_RUN: i32 = 10;
const BPF_LINK_CREATE: i32 = 28;

fn bpf(command: i32, attribute: &mut [u64; 18], what: &str) -> Result<i32> {
    // SAFETY: `attribute` is a `union bpf_attr` of the size passed; the addresses in it are live for the call.
    let code =
        unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(attribute)) };
    check(code, what)
}

/// Loads an XDP program that drops, or redirects everything to `device`.
fn program(device: Option<&str>) -> Result<i32> {
    let instruction = |code: u8, registers: u8, value: u32| {
        u64::from(code) | u64::from(registers) << 8 | u64::from(value) << 32
    };
    let code = match device {
        // r0 = XDP_DROP; exit
        None => vec![instruction(0xb7, 0, 1), instruction(0x95, 0, 0)],
        // r1 = ifindex; r2 = 0; call bpf_redirect; exit
        Some(device) => vec![
            instruction(0xb7, 1, nix::net::if_::if_nametoindex(device)?),
            instruction(0xb7, 2, 0),
            instruction(0x85, 0, 23),
            instruction(0x95, 0, 0),
        ],
    };
    let mut attribute = [0u64; 18];
    attribute[0] = 6 | (code.len() as u64) << 32; // BPF_PROG_TYPE_XDP, instructions
    attribute[1] = code.as_ptr() as u64;
    attribute[2] = c"GPL".as_ptr() as u64;
    let fd = bpf(BPF_PROG_LOAD, &mut attribute, "BPF_PROG_LOAD")?;
    Ok(fd)
}

/// Attaches for as long as this process lives.
fn attach(program: i32, device: &str) -> Result<()> {
    let mut attribute = [0u64; 18];
    attribute[0] = program as u64 | u64::from(nix::net::if_::if_nametoindex(device)?) << 32;
    attribute[1] = 37; // BPF_XDP
    bpf(BPF_LINK_CREATE, &mut attribute, "BPF_LINK_CREATE").map(|_| ())
}

/// What layout d pays per packet and direction: one more redirect from veth to veth, with its NAPI turn.
///
/// Frames are made by BPF_PROG_TEST_RUN in live mode (5.18): q0 ─▶ p0 drops, against q1 ─▶ p1 ─redirect─▶ q2 ─▶ p2 drops.
fn hops() -> Result<()> {
    const PACKETS: u64 = 200_000;
    for i in 0..3 {
        ip(&format!("link set q{i} up"))?;
    }
    attach(program(None)?, "p0")?;
    attach(program(Some("q2"))?, "p1")?;
    attach(program(None)?, "p2")?;
    for length in [64usize, 1500] {
        let frame = vec![2u8; length];
        let mut medians = Vec::new();
        for (entry, exit) in [("q0", "p0"), ("q1", "p2")] {
            let sender = program(Some(entry))?;
            let received = || -> Result<i64> {
                let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
                let line = text
                    .lines()
                    .find(|line| line.trim_start().starts_with(&format!("{exit}:")))
                    .ok_or("no device")?;
                Ok(line.split_whitespace().nth(2).ok_or("no counter")?.parse()?)
            };
            let before = received()?;
            let mut samples = Vec::new();
            for _ in 0..9 {
                let mut attribute = [0u64; 18];
                attribute[0] = sender as u64;
                attribute[1] = frame.len() as u64; // data_size_in
                attribute[2] = frame.as_ptr() as u64;
                attribute[4] = PACKETS; // repeat
                attribute[8] = 2; // BPF_F_TEST_XDP_LIVE_FRAMES
                let began = Instant::now();
                bpf(BPF_PROG_TEST_RUN, &mut attribute, "BPF_PROG_TEST_RUN")?;
                samples.push(began.elapsed().as_nanos() as f64 / PACKETS as f64);
            }
            samples.sort_by(f64::total_cmp);
            let arrived = (received()? - before) as f64 / (9 * PACKETS) as f64;
            println!(
                "{length} bytes, {entry} to {exit}: {:.0} ns per packet, {:.1} % arrived",
                samples[4],
                arrived * 100.0
            );
            medians.push(samples[4]);
        }
        println!("{length} bytes: one more redirect costs {:.0} ns", medians[1] - medians[0]);
    }
    Ok(())
}
