//! What a machine on the wire between two nodes sees: with encryption nothing but WireGuard, and without it everything, which `status`
//! says.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Lab, THREE_PODS, skipped, within};

/// A text that is nowhere but in what pods say to each other.
const MARKER: &str = "margay-marker-7d1f3c9a55e0";
const PORT: u16 = 51_820;

fn felix(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

/// The cluster's pod networks: Strict holds for addresses of nodes that nobody knows yet, too.
const POOLS: &str = "
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.244.0.0/16}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods-v6}
spec: {cidr: 'fd44::/48'}
";

/// A capture of everything that crosses node1's line to the wire, taken at the wire's end, until it is ended.
struct Capture(Child);

impl Capture {
    fn begin(lab: &Lab, file: &Path) -> Self {
        let netns = lab.netns("wire");
        let child = Command::new("ip")
            .args(["netns", "exec", &netns, "tcpdump", "-i", "port0", "-U", "-s", "0", "-B", "32768", "-w"])
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tcpdump");
        assert!(
            within(10, || fs::metadata(file).is_ok_and(|file| file.len() >= 24)),
            "tcpdump does not begin"
        );
        Self(child)
    }

    /// Ends it and returns the frames.
    fn end(mut self, file: &Path) -> Vec<Vec<u8>> {
        // What was under way arrives.
        std::thread::sleep(std::time::Duration::from_millis(500));
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("interrupt");
        self.0.wait().expect("end");
        frames(&fs::read(file).expect("capture"))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The frames of a pcap file.
fn frames(file: &[u8]) -> Vec<Vec<u8>> {
    assert_eq!(&file[..4], [0xd4, 0xc3, 0xb2, 0xa1], "pcap, little endian, microseconds");
    let mut rest = &file[24..];
    let mut frames = Vec::new();
    while let Some((header, body)) = rest.split_at_checked(16) {
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        assert_eq!(header[8..12], header[12..16], "the whole frame");
        let Some((frame, next)) = body.split_at_checked(len) else { break };
        frames.push(frame.to_vec());
        rest = next;
    }
    frames
}

/// What a frame is, to somebody on the wire.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Kind {
    /// ARP and neighbour discovery between the nodes.
    Discovery,
    /// A datagram to the WireGuard port.
    Wireguard,
    /// Anything else.
    Other,
}

fn kind(frame: &[u8]) -> Kind {
    let (protocol, transport) = match frame[12..14] {
        [8, 6] => return Kind::Discovery,
        [8, 0] => (frame[23], 14 + 4 * usize::from(frame[14] & 15)),
        [0x86, 0xdd] => (frame[20], 54),
        _ => return Kind::Other,
    };
    match protocol {
        // Multicast listener reports have a hop-by-hop header; they and ICMPv6 133 to 137 are of the link alone.
        0 if frame[12] == 0x86 && frame[54] == 58 => Kind::Discovery,
        58 if (133..=137).contains(&frame[transport]) || frame[transport] == 143 => Kind::Discovery,
        17 => {
            let port = |at: usize| u16::from_be_bytes([frame[transport + at], frame[transport + at + 1]]);
            if [port(0), port(2)].iter().all(|port| [PORT, PORT + 1].contains(port)) {
                Kind::Wireguard
            } else {
                Kind::Other
            }
        }
        _ => Kind::Other,
    }
}

fn has_marker(frame: &[u8]) -> bool {
    frame.windows(MARKER.len()).any(|part| part == MARKER.as_bytes())
}

/// Traffic between two pods of two nodes: a page with the marker over and over, and a stream.
fn talk(lab: &Lab, address: &str) {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let url = format!("http://{host}:8000/marker");
    let page = lab.must("shop/web", &["curl", "-g", "-s", "--noproxy", "*", "--max-time", "10", &url]);
    assert!(page.contains(MARKER));
    let _server = lab.start("shop/far", &["iperf3", "-s", "-1"]);
    let streams = || {
        lab.exec("shop/web", &["iperf3", "-c", address, "-t", "1", "--connect-timeout", "1000"])
            .status
            .success()
    };
    assert!(within(20, streams), "iperf3 to {address}{}", lab.diagnosis());
}

#[test]
fn only_wireguard_is_seen_between_nodes() {
    let name = "only_wireguard_is_seen_between_nodes";
    if skipped(name, &["curl", "python3", "tcpdump", "iperf3"]) {
        return;
    }
    let strict =
        felix("default", "{wireguardEnabled: true, wireguardEnabledV6: true, encryptionMode: Strict}");
    let lab = Lab::up("wire", &format!("{THREE_PODS}{POOLS}{strict}"));
    let _server = lab.serve("shop/far", 8000);
    fs::write(lab.directory.join("www/marker"), format!("{MARKER}\n").repeat(2_000)).expect("page");
    let far = lab.addresses("shop/far");
    assert!(
        far.iter().all(|address| within(20, || lab.fetches("shop/web", address, 8000))),
        "{}",
        lab.diagnosis()
    );

    let file = lab.directory.join("encrypted.pcap");
    let capture = Capture::begin(&lab, &file);
    far.iter().for_each(|address| talk(&lab, address));
    let seen = capture.end(&file);
    let of = |wanted: Kind| seen.iter().filter(|frame| kind(frame) == wanted).count();
    println!("{} frames, {} of WireGuard", seen.len(), of(Kind::Wireguard));
    let others: Vec<_> = seen.iter().filter(|frame| kind(frame) == Kind::Other).take(3).collect();
    assert!(others.is_empty(), "{others:02x?}");
    assert!(of(Kind::Wireguard) > 500, "{}", of(Kind::Wireguard));
    assert!(!seen.iter().any(|frame| has_marker(frame)), "the marker is on the wire");
    let status = lab.agent_status("node1")["wireguard"].clone();
    assert_eq!(status["findings"].as_array().map(Vec::len), Some(0), "{status:#}");

    // Without Strict, and with a node that has no key, it is all there, and both say so.
    let plain = felix("default", "{wireguardEnabled: true, wireguardEnabledV6: true}");
    let opted_out = felix("node.node2", "{wireguardEnabled: false, wireguardEnabledV6: false}");
    lab.apply("pods.yaml", &format!("{THREE_PODS}{POOLS}{plain}{opted_out}"));
    let warns = || {
        let findings = lab.agent_status("node1")["wireguard"]["findings"].clone();
        findings.as_array().is_some_and(|all| all.iter().any(|said| said.to_string().contains("node2")))
    };
    assert!(within(15, warns), "{:#}", lab.agent_status("node1")["wireguard"]);
    assert!(
        far.iter().all(|address| within(20, || lab.fetches("shop/web", address, 8000))),
        "{}",
        lab.diagnosis()
    );
    let file = lab.directory.join("plain.pcap");
    let capture = Capture::begin(&lab, &file);
    far.iter().for_each(|address| talk(&lab, address));
    let seen = capture.end(&file);
    assert!(seen.iter().any(|frame| has_marker(frame)), "{} frames and no marker", seen.len());
    assert!(!seen.iter().any(|frame| kind(frame) == Kind::Wireguard));
}

/// Twelve bytes of a ping's pattern, and more than once in each.
const PATTERN: &str = "6d617267617937643166";

#[test]
fn an_agent_that_begins_lets_nothing_out_in_clear() {
    let name = "an_agent_that_begins_lets_nothing_out_in_clear";
    if skipped(name, &["tcpdump"]) {
        return;
    }
    let strict = felix("default", "{wireguardEnabled: true, encryptionMode: Strict}");
    let lab = Lab::up("begin", &format!("{THREE_PODS}{POOLS}{strict}"));
    let [far, _] = lab.addresses("shop/far");
    assert!(within(20, || lab.pings("shop/web", &far)), "{}", lab.diagnosis());

    let file = lab.directory.join("restart.pcap");
    let capture = Capture::begin(&lab, &file);
    let _pings = lab.start("shop/web", &["ping", "-n", "-q", "-i", "0.002", "-p", PATTERN, &far]);
    for _ in 0..3 {
        let agent = nix::unistd::Pid::from_raw(lab.agent_now("node1") as i32);
        nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGKILL).expect("kill -9");
        // Its sockets are gone before it is, and `up` would take it for alive.
        let has_ended =
            || fs::read_to_string(format!("/proc/{agent}/stat")).is_ok_and(|stat| stat.contains(") Z "));
        assert!(within(10, || has_ended() || !Path::new(&format!("/proc/{agent}")).exists()));
        let manifests = lab.directory.join("manifests");
        let again = || {
            let output =
                lab.call("up", &["--nodes", "2", "--manifests", &manifests.to_string_lossy()]).output();
            output.expect("run").status.success()
        };
        assert!(within(20, again), "{}", lab.diagnosis());
        assert!(within(20, || lab.pings("shop/web", &far)), "{}", lab.diagnosis());
    }
    let seen = capture.end(&file);
    let sealed = seen.iter().filter(|frame| kind(frame) == Kind::Wireguard).count();
    println!("{} frames, {sealed} of WireGuard", seen.len());
    assert!(sealed > 30, "{sealed}");
    let pattern: Vec<u8> = b"margay7d1f".to_vec();
    let in_clear =
        seen.iter().filter(|frame| frame.windows(pattern.len()).any(|part| part == pattern)).count();
    assert_eq!(in_clear, 0, "of {} frames", seen.len());
}
