//! A healthy node has no finding; each thing that can be wrong has exactly its own.

use std::collections::BTreeSet;

use margay_io::AttachChoice;
use margay_policy_engine::lint::Severity;

use super::checks::{Finding, examine};
use super::drivers::{DRIVERS, Xdp};
use super::facts::{Card, Configuration, Encrypted, Facts, KubeProxy, TooLarge};
use super::word;
use crate::node::uplinks::{Device, Uplink};

fn set<const N: usize>(words: [&str; N]) -> BTreeSet<String> {
    words.map(str::to_owned).into()
}

fn device(index: u32, name: &str, kind: Option<&str>) -> Device {
    Device {
        index,
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
        below: None,
        above: None,
        is_ethernet: true,
    }
}

fn card(driver: &str, mtu: u32) -> Card {
    Card { driver: Some(driver.to_owned()), mtu, rp_filter: Some(0), ..Card::default() }
}

fn uplink(name: &str) -> Uplink {
    Uplink {
        name: name.to_owned(),
        choice: AttachChoice::Auto,
        nics: vec![name.to_owned()],
        why: "",
        is_veth: false,
    }
}

fn configuration(file: &str, plugin: &str) -> Configuration {
    Configuration { file: file.to_owned(), plugins: Some(vec![plugin.to_owned()]) }
}

fn healthy() -> Facts {
    Facts {
        kernel: "6.12.48+deb13-amd64".to_owned(),
        is_root: true,
        may_lock: true,
        memlock: Some(8 << 20),
        has_af_xdp: true,
        has_bpf: true,
        filesystems: set(["ext4", "bpf"]),
        bpffs_is_mounted: true,
        agent_answers: true,
        encryption: None,
        too_large: None,
        configurations: Some(vec![configuration("05-margay.conflist", "margay-cni")]),
        programs: set(["margay-cni", "host-local"]),
        ipam: "host-local".to_owned(),
        devices: vec![device(2, "eth0", None), device(3, "eth1", None)],
        cards: [("eth0".to_owned(), card("virtio_net", 1500)), ("eth1".to_owned(), card("virtio_net", 1500))]
            .into(),
        uplinks: Ok(vec![uplink("eth0")]),
        rp_filter_all: Some(0),
        forwarding: [Some(true), Some(true)],
        kube_proxy: KubeProxy::Mode("nftables".to_owned()),
        processes: set(["systemd", "kubelet"]),
        networkmanager_spares_us: false,
        now: 1_790_000_000,
        is_synchronized: Some(true),
        clocksource: Some("tsc".to_owned()),
    }
}

type Change = fn(&mut Facts);

/// What is changed in a healthy node, and what is found then.
const ROWS: [(&str, Severity, Change); 40] = [
    ("kernel-old", Severity::Error, |f| f.kernel = "5.15.0-91-generic".to_owned()),
    ("kernel-before-6.6", Severity::Info, |f| f.kernel = "6.1.0-31-amd64".to_owned()),
    ("not-root", Severity::Error, |f| f.is_root = false),
    ("no-af-xdp", Severity::Error, |f| f.has_af_xdp = false),
    ("no-bpf", Severity::Error, |f| f.has_bpf = false),
    ("no-bpffs", Severity::Error, |f| {
        f.filesystems.remove("bpf");
    }),
    ("bpffs-elsewhere", Severity::Warning, |f| f.bpffs_is_mounted = false),
    ("memlock", Severity::Warning, |f| f.may_lock = false),
    ("cni-folder", Severity::Warning, |f| f.configurations = None),
    ("cni-conflict", Severity::Error, |f| {
        f.configurations = Some(vec![
            configuration("00-other.conflist", "calico"),
            configuration("05-margay.conflist", "margay-cni"),
        ]);
    }),
    ("cni-conflict", Severity::Warning, |f| {
        (f.configurations, f.agent_answers) =
            (Some(vec![configuration("10-calico.conflist", "calico")]), false);
    }),
    ("cni-other", Severity::Info, |f| {
        f.configurations = Some(vec![
            configuration("05-margay.conflist", "margay-cni"),
            configuration("10-flannel.conflist", "flannel"),
        ]);
    }),
    ("cni-not-told", Severity::Warning, |f| f.configurations = Some(Vec::new())),
    ("cni-unreadable", Severity::Warning, |f| {
        let broken = Configuration { file: "05-margay.conflist".to_owned(), plugins: None };
        f.configurations = Some(vec![broken]);
    }),
    ("cni-plugin-missing", Severity::Error, |f| {
        f.programs.remove("margay-cni");
    }),
    ("cni-ipam-missing", Severity::Error, |f| {
        f.programs.remove("host-local");
    }),
    ("no-uplink", Severity::Error, |f| f.uplinks = Err("no uplink found".to_owned())),
    ("uplink-stacked", Severity::Info, |f| {
        f.uplinks = Ok(vec![Uplink {
            name: "bond0".to_owned(),
            choice: AttachChoice::Generic,
            nics: vec!["eth0".to_owned(), "eth1".to_owned()],
            why: crate::node::uplinks::REASONS[0].1,
            is_veth: false,
        }]);
    }),
    ("driver-untested", Severity::Info, |f| drop(f.cards.insert("eth0".to_owned(), card("ice", 1500)))),
    ("driver-without-xdp", Severity::Info, |f| drop(f.cards.insert("eth0".to_owned(), card("r8169", 1500)))),
    ("driver-without-xdp", Severity::Info, |f| {
        drop(f.cards.insert("eth0".to_owned(), card("brand_new", 1500)))
    }),
    ("mtu-large", Severity::Error, |f| drop(f.cards.insert("eth0".to_owned(), card("virtio_net", 9000)))),
    ("mtu-large", Severity::Error, |f| {
        f.cards.insert("eth0".to_owned(), card("virtio_net", 3600));
        f.cards.insert("bond0".to_owned(), card("virtio_net", 3600));
        f.uplinks = Ok(vec![Uplink {
            name: "bond0".to_owned(),
            choice: AttachChoice::Generic,
            nics: vec!["bond0".to_owned()],
            why: "",
            is_veth: false,
        }]);
    }),
    ("xdp-occupied", Severity::Error, |f| f.cards.get_mut("eth0").expect("eth0").xdp = Some((7, false))),
    ("tc-programs", Severity::Info, |f| f.cards.get_mut("eth0").expect("eth0").has_clsact = true),
    ("rp-filter", Severity::Warning, |f| {
        f.uplinks = Ok(vec![uplink("eth0"), uplink("eth1")]);
        f.cards.get_mut("eth1").expect("eth1").rp_filter = Some(1);
    }),
    ("mtu-encryption", Severity::Warning, |f| {
        let pods = vec![("mgya".to_owned(), 1500), ("mgyb".to_owned(), 1440)];
        f.encryption = Some(Encrypted { pod_mtu: 1440, pods, findings: Vec::new() });
    }),
    ("encryption", Severity::Warning, |f| {
        let findings = vec!["IPv4: no WireGuard key from b".to_owned()];
        f.encryption = Some(Encrypted { pod_mtu: 1440, pods: vec![("mgya".to_owned(), 1440)], findings });
    }),
    ("mtu-pods", Severity::Error, |f| {
        f.too_large = Some(TooLarge { largest: 3826, pods: vec!["mgya".to_owned()] });
    }),
    ("mtu-differs", Severity::Warning, |f| {
        f.uplinks = Ok(vec![uplink("eth0"), uplink("eth1")]);
        f.cards.get_mut("eth1").expect("eth1").mtu = 1400;
    }),
    ("kube-proxy-ipvs", Severity::Warning, |f| f.kube_proxy = KubeProxy::Mode("ipvs".to_owned())),
    ("kube-proxy-absent", Severity::Info, |f| f.kube_proxy = KubeProxy::Absent),
    ("networkmanager", Severity::Warning, |f| {
        f.processes.insert("NetworkManager".to_owned());
    }),
    ("firewalld", Severity::Warning, |f| {
        f.processes.insert("firewalld".to_owned());
    }),
    ("xdp-on-host-port", Severity::Error, |f| {
        drop(f.cards.insert("mgy0x".to_owned(), Card { xdp: Some((9, false)), ..Card::default() }))
    }),
    ("forwarding-v4", Severity::Warning, |f| f.forwarding[0] = Some(false)),
    ("forwarding-v6", Severity::Info, |f| f.forwarding[1] = Some(false)),
    ("clock-wrong", Severity::Error, |f| f.now = 1_000),
    ("clock-unsynchronized", Severity::Info, |f| f.is_synchronized = None),
    ("clock-slow", Severity::Warning, |f| f.clocksource = Some("hpet".to_owned())),
];

fn found(change: Change) -> Vec<Finding> {
    let mut facts = healthy();
    change(&mut facts);
    examine(&facts)
}

#[test]
fn a_healthy_node_has_no_finding() {
    assert_eq!(examine(&healthy()), []);
    for change in [
        // What looks like trouble and is none.
        (|f| f.memlock = None) as Change,
        |f| f.cards.get_mut("eth0").expect("eth0").xdp = Some((7, true)),
        |f| f.rp_filter_all = Some(1),
        |f| f.kube_proxy = KubeProxy::Runs,
        |f| f.forwarding[1] = None,
        |f| (f.networkmanager_spares_us, f.processes) = (true, set(["NetworkManager"])),
        |f| f.uplinks = Ok(Vec::new()),
        |f| f.kernel = "7.0".to_owned(),
    ] {
        assert_eq!(found(change), []);
    }
}

#[test]
fn each_trouble_has_its_finding_and_no_other() {
    for (id, severity, change) in ROWS {
        let findings = found(change);
        let seen: Vec<_> = findings.iter().map(|finding| (finding.id, finding.severity)).collect();
        assert_eq!(seen, [(id, severity)], "{findings:?}");
        let finding = &findings[0];
        assert!(
            finding.severity == Severity::Info || !finding.mend.is_empty(),
            "{id} does not say how to mend it"
        );
        assert!(!finding.follows.is_empty() && !finding.what.is_empty());
    }
}

#[test]
fn what_matters_most_comes_first() {
    let findings =
        found(|f| (f.has_bpf, f.kube_proxy, f.forwarding) = (false, KubeProxy::Absent, [Some(false), None]));
    let severities: Vec<_> = findings.iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Error, Severity::Warning, Severity::Info]);
}

/// Returns docs/doctor.md.
pub fn documentation() -> String {
    let mut text = String::from(
        "# What `margay doctor` finds\n\n`margay doctor` looks at a node, before or after an installation, and changes nothing. Each finding says what follows from it and\n\
         how to mend it. With `-o json` one line each; exit code 1 when there are warnings or errors. In a cluster:\n\
         `kubectl -n kube-system exec ds/margay -c agent -- /margay doctor`.\n\n\
         This page is generated from the code (`MARGAY_WRITE_DOCS=1 cargo test -p margay --bin margay install`).\n\n\
         | finding | | for example | what follows | how to mend it |\n|---|---|---|---|---|\n",
    );
    let mut seen = BTreeSet::new();
    for (id, severity, change) in ROWS.into_iter().filter(|(id, ..)| seen.insert(*id)) {
        let finding = found(change).into_iter().next().expect("each row has its finding");
        let [what, mend] = [&finding.what, &finding.mend].map(|text| text.replace('|', "\\|"));
        text.push_str(&format!("| `{id}` | {} | {what} | {} | {mend} |\n", word(severity), finding.follows));
    }
    text.push_str(
        "\n## Drivers\n\nWhere XDP runs, in kernels from 6.1 on. *Untested* means that nobody has run this project on it; the kernel's sources say\n\
         that it has XDP. A driver that is not listed is taken above the driver where it has none.\n\n\
         | driver or kind | XDP | tested here | remark |\n|---|---|---|---|\n",
    );
    for driver in DRIVERS {
        let place = if driver.xdp == Xdp::Driver { "in the driver" } else { "above it" };
        let tested = if driver.tested.is_empty() { "untested" } else { driver.tested };
        text.push_str(&format!("| {} | {place} | {tested} | {} |\n", driver.name, driver.remark));
    }
    text
}
