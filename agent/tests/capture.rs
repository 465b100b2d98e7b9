//! `margay capture` and `margay trace` beside real traffic: what is in the file, and what is said about it.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{Lab, THREE_PODS, skipped, within};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::{Block, PcapNgReader};

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guard, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8000}]}]
";

/// `margay COMMAND` about the agent of node1.
fn margay(lab: &Lab, command: &str, rest: &[&str]) -> Command {
    let socket = lab.directory.join("labs").join(&lab.name).join("nodes/node1/run/admin.sock");
    let mut call = Command::new(env!("CARGO_BIN_EXE_margay"));
    call.arg(command).arg("--socket").arg(socket).args(rest).stdout(Stdio::piped()).stderr(Stdio::piped());
    call
}

/// Starts to capture into a file; the section header in it says that the agent is asked, `settled` that it listens.
fn capture(lab: &Lab, file: &PathBuf, rest: &[&str]) -> Child {
    let path = file.to_string_lossy().into_owned();
    let mut arguments = vec!["-w", path.as_str()];
    arguments.extend(rest);
    let child = margay(lab, "capture", &arguments).spawn().expect("start");
    // The header is written out with the agent's word that watching has begun.
    assert!(within(10, || fs::metadata(file).is_ok_and(|file| file.len() > 0)), "capture does not begin");
    child
}

fn end(mut child: Child) -> String {
    let output = {
        assert!(within(20, || child.try_wait().expect("wait").is_some()), "capture does not end");
        child.wait_with_output().expect("output")
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// Comment and bytes of every packet of a file.
fn packets(file: &PathBuf) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(file).expect("file");
    let mut reader = PcapNgReader::new(&bytes[..]).expect("pcapng");
    let mut found = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.expect("block").into_owned() {
            let comment = packet.options.iter().find_map(|option| match option {
                EnhancedPacketOption::Comment(text) => Some(text.to_string()),
                _ => None,
            });
            found.push((comment.expect("a comment"), packet.data.to_vec()));
        }
    }
    found
}

#[test]
fn a_capture_tells_what_became_of_every_packet() {
    if skipped("a_capture_tells_what_became_of_every_packet", &["curl", "python3", "tcpdump"]) {
        return;
    }
    let lab = Lab::up("cap", THREE_PODS);
    lab.apply("policy.yaml", POLICY);
    let _server = lab.serve("shop/db", 8000);
    let [db, _] = lab.addresses("shop/db");
    let is_closed = || !lab.pings("shop/web", &db);
    assert!(within(20, is_closed), "the policy is not in force");

    // A connection that is allowed: both directions, each with who let it pass.
    let file = lab.directory.join("web.pcapng");
    let watch =
        capture(&lab, &file, &["--from", "shop/web", "--to", "shop/db", "--port", "8000", "--seconds", "3"]);
    assert!(lab.fetches("shop/web", &db, 8000));
    // Another port is another conversation.
    let _ = lab.exec("shop/web", &["curl", "-s", "--max-time", "0.2", &format!("http://{db}:8001/")]);
    let said = end(watch);
    let told = packets(&file);
    assert!(said.contains(&format!("{} packets", told.len())), "{said}");
    assert!(told.len() >= 8, "a handshake, a request, a page, an end: {told:#?}");
    assert!(told[0].0.contains("new flow"), "{}", told[0].0);
    for (comment, bytes) in &told {
        assert!(comment.contains("forwarded to "), "{comment}");
        assert!(comment.contains("ingress of shop/db allowed by") && comment.contains("guard"), "{comment}");
        assert_eq!(u16::from_be_bytes([bytes[12], bytes[13]]), 0x0800);
    }
    assert!(told.iter().any(|(_, bytes)| bytes.windows(11).any(|part| part == b"GET /hello ")));
    let read = Command::new("tcpdump").args(["-nn", "-r"]).arg(&file).output().expect("tcpdump");
    let lines = String::from_utf8_lossy(&read.stdout).lines().count();
    assert_eq!(lines, told.len(), "tcpdump reads as many: {}", String::from_utf8_lossy(&read.stderr));

    // One that is denied, by reason; cut short, and ended by an interrupt with a whole file.
    let file = lab.directory.join("denied.pcapng");
    let watch = capture(&lab, &file, &["--pod", "shop/db", "--reason", "policy_ingress", "--snap-len", "60"]);
    assert!(!lab.pings("shop/web", &db));
    assert!(lab.fetches("shop/web", &db, 8000));
    assert!(within(10, || fs::metadata(&file).is_ok_and(|file| file.len() > 200)));
    let pid = nix::unistd::Pid::from_raw(watch.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("interrupt");
    end(watch);
    let told = packets(&file);
    assert!(!told.is_empty() && told.len() <= 2, "one ping, and nothing that passes: {told:#?}");
    assert!(
        told[0].0.contains("dropped: policy_ingress by ") && told[0].0.contains("ingress of shop/db denied")
    );
    assert_eq!(told[0].1.len(), 60);
    lab.books_balance();
}

#[test]
fn a_trace_goes_stage_by_stage_and_wrong_questions_are_refused() {
    if skipped("a_trace_goes_stage_by_stage_and_wrong_questions_are_refused", &[]) {
        return;
    }
    let lab = Lab::up("tra", THREE_PODS);
    let [_, far] = lab.addresses("shop/far");
    // The pod of the other node is known by the status of its object, which comes a moment later.
    let is_known = || {
        let asked = margay(&lab, "capture", &["--pod", "shop/far", "--seconds", "0"]).output().expect("run");
        asked.status.success()
    };
    assert!(within(20, is_known), "shop/far is not known on node1");
    let mut trace =
        margay(&lab, "trace", &["--from", "shop/web", "--to", "shop/far", "--protocol", "ICMPv6", "-c", "2"])
            .spawn()
            .expect("start");
    let mut lines = BufReader::new(trace.stdout.take().expect("a pipe")).lines();
    // There is no word of the beginning on standard output: pings go on until one is traced.
    let mut text = String::new();
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| lab.exec("shop/web", &["ping", "-n", "-i", "0.2", "-c", "20", &far]));
        while let Some(Ok(line)) = lines.next() {
            text += &line;
            text.push('\n');
        }
        assert!(pinging.join().expect("ping").status.success());
    });
    let output = trace.wait_with_output().expect("output");
    assert!(output.status.success(), "{}{text}", String::from_utf8_lossy(&output.stderr));
    for stage in [
        "ICMPv6",
        "(shop/web) -> ",
        "(shop/far)",
        "arrived   on ",
        "egress    shop/web allow",
        "path      ",
        "ended     forwarded to ",
    ] {
        assert!(text.contains(stage), "{stage}: {text}");
    }

    for (arguments, word) in [
        (&["--pod", "shop/nobody"][..], "shop/nobody"),
        (&["--from", "somewhere"], "write namespace/pod or ip:ADDRESS"),
        (&["--reason", "policy"], "policy_ingress"),
    ] {
        let refused = margay(&lab, "capture", arguments).output().expect("run");
        assert_eq!(refused.status.code(), Some(2));
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains(word), "{said}");
    }
}
