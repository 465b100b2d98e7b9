//! What the facts mean: findings, each with what follows from it and how to mend it. Pure, so every one of them has a row in the tests.

use margay_policy_engine::lint::Severity;
use serde::Serialize;

use super::drivers::{self, Xdp};
use super::facts::{Encrypted, Facts, KubeProxy, TooLarge};
use crate::node::{CONFLIST, KERNEL_END, OUR_END, PLUGIN};

/// Something worth knowing about a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name; stays the same in later versions.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is so.
    pub what: String,
    /// What follows from it.
    pub follows: &'static str,
    /// How to mend it; empty where there is nothing to mend.
    pub mend: String,
}

/// Oldest kernel that must run the agent.
const OLDEST: (u32, u32) = (6, 1);
/// From here on packets in several frames and tcx exist.
const GOOD: (u32, u32) = (6, 6);
/// Largest MTU whose frames fit one chunk, in the driver and above it.
const LARGEST_MTU: (u32, u32) = (3_800, 3_498);
/// Where the UMEM alone is 64 MiB.
const LEAST_MEMLOCK: u64 = 256 << 20;
/// 2025-01-01: this program is younger than that.
const LONG_AGO: u64 = 1_735_689_600;

fn error(
    id: &'static str,
    what: impl Into<String>,
    follows: &'static str,
    mend: impl Into<String>,
) -> Finding {
    Finding { id, severity: Severity::Error, what: what.into(), follows, mend: mend.into() }
}

fn warning(
    id: &'static str,
    what: impl Into<String>,
    follows: &'static str,
    mend: impl Into<String>,
) -> Finding {
    Finding { severity: Severity::Warning, ..error(id, what, follows, mend) }
}

fn info(
    id: &'static str,
    what: impl Into<String>,
    follows: &'static str,
    mend: impl Into<String>,
) -> Finding {
    Finding { severity: Severity::Info, ..error(id, what, follows, mend) }
}

/// Judges `facts`; what matters most comes first.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    kernel(facts, &mut findings);
    memory(facts, &mut findings);
    container_runtime(facts, &mut findings);
    uplinks(facts, &mut findings);
    encryption(facts, &mut findings);
    too_large(facts, &mut findings);
    neighbours(facts, &mut findings);
    network(facts, &mut findings);
    clock(facts, &mut findings);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// Returns major and minor of a release such as `6.12.48+deb13-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(facts: &Facts, findings: &mut Vec<Finding>) {
    match version(&facts.kernel) {
        Some(found) if found < OLDEST => findings.push(error(
            "kernel-old",
            format!("the kernel is {}", facts.kernel),
            "the agent is not tested below 6.1 and may not start: programs that stay without it, large frames or managed neighbours are missing",
            "install a kernel 6.1 or newer (docs/kernels.md)",
        )),
        Some(found) if found < GOOD => findings.push(info(
            "kernel-before-6.6",
            format!("the kernel is {}", facts.kernel),
            "policy is enforced in full; packets in several frames and tcx come with 6.6",
            "",
        )),
        _ => {}
    }
    if !facts.is_root {
        findings.push(error(
            "not-root",
            "this is not root",
            "the agent cannot run, and some of what is said here may be incomplete",
            "run it with sudo, or as a privileged container",
        ));
    }
    if !facts.has_af_xdp {
        findings.push(error(
            "no-af-xdp",
            "the kernel has no AF_XDP sockets",
            "the agent does not start",
            "use a kernel with CONFIG_XDP_SOCKETS",
        ));
    }
    if !facts.has_bpf {
        findings.push(error(
            "no-bpf",
            "the kernel has no bpf system call",
            "the agent does not start",
            "use a kernel with CONFIG_BPF_SYSCALL",
        ));
    }
    if !facts.filesystems.contains("bpf") {
        findings.push(error(
            "no-bpffs",
            "the kernel has no bpf file system",
            "programs cannot be pinned, so nothing would keep pods closed while the agent restarts; it does not start",
            "use a kernel with CONFIG_BPF_SYSCALL, and boot without lockdown",
        ));
    } else if facts.agent_answers && !facts.bpffs_is_mounted {
        findings.push(warning(
            "bpffs-elsewhere",
            "the agent runs, and its bpf file system is not mounted here",
            "its programs end with its container: pods are open to nobody, and uplinks pass, until the next agent; live connections stall",
            "mount /run/margay into the agent's container with mountPropagation: Bidirectional, as the manifests do",
        ));
    }
}

fn memory(facts: &Facts, findings: &mut Vec<Finding>) {
    if let Some(limit) = facts.memlock.filter(|limit| !facts.may_lock && *limit < LEAST_MEMLOCK) {
        findings.push(warning(
            "memlock",
            format!("at most {} KiB of memory may be locked, and CAP_IPC_LOCK is missing", limit >> 10),
            "the agent's packet memory is locked: it does not start",
            "run it privileged, or raise the limit (LimitMEMLOCK=infinity, ulimit -l unlimited)",
        ));
    }
}

fn container_runtime(facts: &Facts, findings: &mut Vec<Finding>) {
    let Some(listed) = &facts.configurations else {
        findings.push(warning(
            "cni-folder",
            "the folder of network configurations is not there",
            "the container runtime is not told about margay, and sends no pods",
            "install a container runtime first, or name its folder (--cni-conf-dir)",
        ));
        return;
    };
    // The runtime takes the first by name that it can read.
    let ours = listed.iter().position(|one| one.file == CONFLIST);
    let others = |range: &[super::facts::Configuration]| {
        let named = range.iter().filter(|one| one.file != CONFLIST);
        named
            .map(|one| format!("{} ({})", one.file, one.plugins.clone().unwrap_or_default().join(", ")))
            .collect::<Vec<_>>()
    };
    let first = ours.unwrap_or(listed.len());
    let before = others(&listed[..first]);
    let after = others(listed.get(first + 1..).unwrap_or_default());
    if !before.is_empty() {
        let (severity, follows) = match ours {
            Some(_) => (
                Severity::Error,
                "the container runtime takes the first by name: pods go there and past every policy of margay",
            ),
            None => (
                Severity::Warning,
                "another network serves this node's pods; once margay's configuration is written, those that sort before it win",
            ),
        };
        let mend = "remove the other network as its own documentation says, then its file; pods that it started have to be made anew";
        findings.push(Finding {
            severity,
            ..error("cni-conflict", format!("other networks: {}", before.join(", ")), follows, mend)
        });
    }
    if !after.is_empty() {
        findings.push(info(
            "cni-other",
            format!("other networks, later in the alphabet: {}", after.join(", ")),
            "they are not used while margay's configuration is there",
            "",
        ));
    }
    if facts.agent_answers && ours.is_none() {
        findings.push(warning(
            "cni-not-told",
            format!("the agent runs, and there is no {CONFLIST}"),
            "new pods of this node do not come to margay",
            "see `margay status`: it is written once policy is in force and the Node has podCIDRs (and --cni-conf-dir is given)",
        ));
    }
    if let Some(one) = listed.iter().find(|one| one.plugins.is_none()) {
        findings.push(warning(
            "cni-unreadable",
            format!("{} is no network configuration", one.file),
            "some container runtimes stop at it",
            "mend or remove the file",
        ));
    }
    for (id, program, follows) in [
        ("cni-plugin-missing", PLUGIN, "pods cannot be added nor taken down"),
        ("cni-ipam-missing", facts.ipam.as_str(), "pods get no addresses"),
    ] {
        if ours.is_some() && !facts.programs.contains(program) {
            let mend = format!(
                "put {program} into the folder of CNI programs (margay cni-install; package containernetworking-plugins)"
            );
            findings.push(error(id, format!("there is no CNI program {program}"), follows, mend));
        }
    }
}

fn uplinks(facts: &Facts, findings: &mut Vec<Finding>) {
    let uplinks = match &facts.uplinks {
        Ok(uplinks) if uplinks.is_empty() => return,
        Ok(uplinks) => uplinks,
        Err(why) => {
            findings.push(error(
                "no-uplink",
                why.clone(),
                "pods reach no other node; the agent does not start with --uplink auto",
                "name the NIC with --uplink",
            ));
            return;
        }
    };
    let mut sizes = Vec::new();
    for uplink in uplinks {
        let is_stacked = uplink.choice == margay_io::AttachChoice::Generic;
        let card = facts.cards.get(&uplink.name).cloned().unwrap_or_default();
        sizes.push((card.mtu, uplink.name.as_str()));
        if uplink.nics != [uplink.name.clone()] {
            findings.push(info(
                "uplink-stacked",
                format!("{} stands on {}: {}", uplink.name, uplink.nics.join(", "), uplink.why),
                "XDP goes on the upper device, above its driver: right, and slower than in a driver",
                "",
            ));
        }
        for name in &uplink.nics {
            let nic = facts.cards.get(name).cloned().unwrap_or_default();
            let virtual_kind = facts
                .devices
                .iter()
                .find(|device| device.name == *name)
                .and_then(|device| device.kind.clone());
            let Some(driver) = nic.driver.or(virtual_kind) else { continue };
            match drivers::find(&driver) {
                Some(known) if known.xdp == Xdp::Driver && known.tested.is_empty() => findings.push(info(
                    "driver-untested",
                    format!(
                        "{name}: driver {driver} has XDP, and margay has not been tested on it{}",
                        known.note()
                    ),
                    "it should work; what was tested is in docs/doctor.md",
                    "",
                )),
                Some(known) if known.xdp == Xdp::Driver => {}
                _ => findings.push(info(
                    "driver-without-xdp",
                    format!("{name}: driver {driver} has no XDP that is known of"),
                    "XDP runs above the driver: right, and slower",
                    "",
                )),
            }
        }
        let largest = if is_stacked { LARGEST_MTU.1 } else { LARGEST_MTU.0 };
        if card.mtu > largest {
            findings.push(error(
                "mtu-large",
                format!("{} has MTU {}", uplink.name, card.mtu),
                "frames have to fit one chunk of packet memory: larger ones are lost, or the kernel refuses the program",
                format!("set an MTU of at most {largest} on it and on its peers"),
            ));
        }
        if let Some((program, false)) = card.xdp {
            findings.push(error(
                "xdp-occupied",
                format!("XDP program {program} of somebody else is on {}", uplink.name),
                "a device has one: the agent cannot take the uplink and does not start",
                format!("stop what put it there (`bpftool link`), or `ip link set {} xdp off`", uplink.name),
            ));
        }
        if card.has_clsact {
            findings.push(info(
                "tc-programs",
                format!("{} has clsact: tc programs may hang there", uplink.name),
                "what XDP takes for pods never passes them; the node's own traffic does",
                format!("`tc filter show dev {} ingress` lists them", uplink.name),
            ));
        }
        if card.rp_filter.max(facts.rp_filter_all) == Some(1) && uplinks.len() > 1 {
            findings.push(warning(
                "rp-filter",
                format!("{} checks sources strictly (rp_filter 1), and there are {} uplinks", uplink.name, uplinks.len()),
                "the kernel drops the node's own traffic that comes by another NIC than it would leave by; pods' traffic is not concerned",
                format!("sysctl net.ipv4.conf.{}.rp_filter=2", uplink.name),
            ));
        }
    }
    sizes.sort_unstable();
    sizes.dedup_by_key(|(mtu, _)| *mtu);
    if let ([(small, one), .., (large, other)], true) = (&sizes[..], sizes.len() > 1) {
        findings.push(warning(
            "mtu-differs",
            format!("{one} has MTU {small}, {other} has {large}"),
            "pods get the smallest; a path that carries more stays unused",
            "give all uplinks one MTU",
        ));
    }
}

/// Pods keep their MTU when an agent follows that takes packets of one frame only.
fn too_large(facts: &Facts, findings: &mut Vec<Finding>) {
    let Some(TooLarge { largest, pods }) = &facts.too_large else { return };
    let names = pods.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    findings.push(error(
        "mtu-pods",
        format!("{} pods have an MTU above {largest}, which is what ports take: {names}", pods.len()),
        "what they send to each other in larger packets is lost",
        "make these pods anew, or run the release and the kernel that they were made under",
    ));
}

/// Pods that were there before encryption keep their MTU; a wrong one is the most frequent complaint (policy model 25.10).
fn encryption(facts: &Facts, findings: &mut Vec<Finding>) {
    let Some(encrypted) = &facts.encryption else { return };
    let Encrypted { pod_mtu, pods, findings: told } = encrypted;
    let larger: Vec<&str> =
        pods.iter().filter(|(_, mtu)| *pod_mtu > 0 && mtu > pod_mtu).map(|(name, _)| name.as_str()).collect();
    if !larger.is_empty() {
        let names = larger.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        findings.push(warning(
            "mtu-encryption",
            format!("{} pods have an MTU above {pod_mtu}, which is what fits into the tunnels: {names}", larger.len()),
            "large packets to other nodes are refused with the right size, and whoever does not listen to that hangs",
            "restart the pods: new ones get the right MTU; if --pod-mtu is given, lower or remove it",
        ));
    }
    if !told.is_empty() {
        findings.push(warning(
            "encryption",
            told.join("; "),
            "some traffic between nodes is in clear, or refused in Strict",
            "see `margay wireguard`",
        ));
    }
}

fn neighbours(facts: &Facts, findings: &mut Vec<Finding>) {
    match &facts.kube_proxy {
        KubeProxy::Mode(mode) if mode == "ipvs" => findings.push(warning(
            "kube-proxy-ipvs",
            "kube-proxy runs in mode ipvs",
            "every service address is an address of this node (kube-ipvs0): a pod that reaches one is judged as reaching its own node",
            "use mode nftables or iptables",
        )),
        KubeProxy::Mode(_) | KubeProxy::Runs => {}
        KubeProxy::Absent => findings.push(info(
            "kube-proxy-absent",
            "no kube-proxy was found",
            "if nothing else translates service addresses, the node itself reaches none; the agent needs the API server's",
            "run kube-proxy, or give the agent a kubeconfig that names the API server's own address",
        )),
    }
    if facts.processes.contains("NetworkManager") && !facts.networkmanager_spares_us {
        findings.push(warning(
            "networkmanager",
            "NetworkManager runs and was not told to leave margay's devices alone",
            "it may take addresses, routes or the state of mgy0 and of pods' interfaces in hand",
            "write /etc/NetworkManager/conf.d/margay.conf: [keyfile] unmanaged-devices=interface-name:mgy*",
        ));
    }
    if facts.processes.contains("firewalld") {
        findings.push(warning(
            "firewalld",
            "firewalld runs",
            "it drops what the kernel forwards between zones: traffic of the node to its pods passes, what the node routes to them may not",
            format!("stop it, or firewall-cmd --permanent --zone=trusted --add-interface={KERNEL_END} and reload"),
        ));
    }
    let foreign =
        |name: &str| facts.cards.get(name).and_then(|card| card.xdp).is_some_and(|(_, is_ours)| !is_ours);
    if foreign(OUR_END) {
        findings.push(error(
            "xdp-on-host-port",
            format!("an XDP program of somebody else is on {OUR_END}"),
            "the agent cannot take its own host port and does not start",
            format!("stop what put it there, or `ip link delete {KERNEL_END}`"),
        ));
    }
}

fn network(facts: &Facts, findings: &mut Vec<Finding>) {
    for (family, setting, forwarding) in [
        ("IPv4", "net.ipv4.ip_forward", facts.forwarding[0]),
        ("IPv6", "net.ipv6.conf.all.forwarding", facts.forwarding[1]),
    ] {
        // A cluster of one family leaves the other off.
        let severity = if family == "IPv4" { Severity::Warning } else { Severity::Info };
        if forwarding == Some(false) {
            findings.push(Finding { severity, ..error(
                if family == "IPv4" { "forwarding-v4" } else { "forwarding-v6" },
                format!("{setting} is 0"),
                "pods reach each other all the same; node ports and machines that use this node as router do not reach them",
                format!("sysctl {setting}=1"),
            ) });
        }
    }
}

fn clock(facts: &Facts, findings: &mut Vec<Finding>) {
    if facts.now < LONG_AGO {
        findings.push(error(
            "clock-wrong",
            format!("the clock says {} seconds since 1970", facts.now),
            "certificates and tokens are not valid yet: the API server is not reached",
            "set the clock and run a time service",
        ));
    } else if facts.is_synchronized != Some(true) {
        findings.push(info(
            "clock-unsynchronized",
            "no time service is seen that has set the clock",
            "times in records of several nodes cannot be compared; timeouts of flows are not concerned",
            "run chrony or systemd-timesyncd",
        ));
    }
    if let Some(source) = facts
        .clocksource
        .as_ref()
        .filter(|source| ["hpet", "acpi_pm", "jiffies", "refined-jiffies"].contains(&source.as_str()))
    {
        findings.push(warning(
            "clock-slow",
            format!("the kernel reads the time from {source}"),
            "every reading is a system call of about a microsecond, and the packet path reads it at each burst",
            "find out why the kernel distrusts tsc (dmesg), or give the virtual machine kvm-clock",
        ));
    }
}
