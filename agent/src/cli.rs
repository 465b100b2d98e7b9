//! What can be written on the command line, and who answers.
//!
//! Exit codes, everywhere: 0 done; 1 something is wrong with what was looked at; 2 the command or its input is wrong; 3 `simulate` found
//! two engines that differ; 4 no agent answers.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use margay_policy_engine::model::Labels;

use crate::admin::client::{self, ClientError, Format};
use crate::admin::report::{DropFilter, FlowFilter};
use crate::simulate::perspectives::Perspectives;
use crate::simulate::probe::{IcmpProbe, Probe, ProbeProtocol, ViaProbe};
use crate::simulate::{self, HostAction, Judge, Simulation, Simulator};
use crate::verify::{self, Verification};
use crate::{capture, explain};
use crate::{lint, selector_command, validate};

/// A Kubernetes network-policy dataplane on AF_XDP.
#[derive(Debug, Parser)]
#[command(name = "margay", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Verdicts for a list of probes against manifests, without any packet
    #[command(after_long_help = SIMULATE_HELP)]
    Simulate(SimulateArgs),
    /// Manifests judged one by one: what is wrong in which field, and how to mend it
    #[command(after_long_help = VALIDATE_HELP)]
    Validate(ValidateArgs),
    /// Whether a text is a selector, its canonical form, and whether it matches labels
    #[command(after_long_help = SELECTOR_HELP)]
    Selector(SelectorArgs),
    /// What manifests probably do not mean: dead rules, selectors that match nothing, surprises
    #[command(after_long_help = LINT_HELP)]
    Lint(LintArgs),
    /// Why one packet is allowed or denied, tier by tier, rule by rule
    #[command(after_long_help = EXPLAIN_HELP)]
    Explain(ExplainArgs),
    /// Statements about all packets, proved from manifests or refuted by a packet
    #[command(after_long_help = verify_help())]
    Verify(VerifyArgs),
    /// The health of the running node: policy, ports, pods, drops, problems
    #[command(
        after_long_help = "Example:\n  margay status -o json | jq .problems\n\nExit code 1 when the node is not ready, 4 when no agent answers."
    )]
    Status(AskArgs),
    /// Encryption between nodes: keys, peers, their sessions, as `wg show` has them
    #[command(
        after_long_help = "Example:\n  margay wireguard -o json | jq '.tunnels[].peers[] | [.node, .handshake_seconds]'"
    )]
    Wireguard(AskArgs),
    /// The live flows of the running node, with the rules that let them pass
    #[command(after_long_help = "Example:\n  margay flows --pod shop/web --port 443")]
    Flows(FlowsArgs),
    /// Dropped packets of the running node, each with its reason and, where policy decided, tier, policy and rule
    #[command(after_long_help = "Example:\n  margay drops --follow --pod shop/web")]
    Drops(DropsArgs),
    /// Packets of the running node into a pcapng file, each with its fate and who decided as a comment
    #[command(after_long_help = CAPTURE_HELP)]
    Capture(CaptureArgs),
    /// Packets of the running node stage by stage: flow, policy on both legs, path, end
    #[command(after_long_help = TRACE_HELP)]
    Trace(TraceArgs),
    /// Ends the quarantine of a pod or device whose frames made workers panic
    #[command(after_long_help = RELEASE_HELP)]
    Release(ReleaseArgs),
    /// The CNI plug-in, called by the container runtime (also by the name margay-cni)
    Cni(crate::cni::CniArgs),
    /// A cluster on this machine: nodes, pods and the wire between them as network namespaces
    Lab(crate::lab::LabArgs),
    /// The node agent: packet path, CNI socket, admin socket
    Agent(Box<crate::node::args::AgentArgs>),
    /// What a cluster is given to run margay: definitions, rights, DaemonSet
    #[command(after_long_help = crate::install::HELP)]
    Install(crate::install::InstallArgs),
    /// What stands in the way on this node, what follows from it, and how to mend it
    Doctor(crate::doctor::DoctorArgs),
    /// Takes from this node what margay put there
    Uninstall(crate::uninstall::UninstallArgs),
    /// Copies this program to where the container runtime looks for CNI plug-ins
    CniInstall(crate::cni::install::CniInstallArgs),
    /// Completion for a shell, to be sourced
    #[command(after_long_help = "Example:\n  margay completion bash > /etc/bash_completion.d/margay")]
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

const SIMULATE_HELP: &str = r#"Example:
  $ cat probes.jsonl
  {"from":"shop/web","to":"shop/db","protocol":"TCP","port":5432}
  {"from":"ip:203.0.113.7","to":"shop/web","protocol":"TCP","port":443}
  {"from":"host:node-a","to":"shop/web","protocol":"ICMP","icmp":{"type":8,"code":0}}
  {"from":"ip:203.0.113.7","to":"shop/web","protocol":"TCP","port":8080,"via":{"address":"192.0.2.11","port":30080},"interface":"eth0"}
  $ margay simulate --manifests policies/ cluster.yaml --probes probes.jsonl
  {"verdict":"allow","egress":{"verdict":"allow","tier":"default","kind":"KubernetesNetworkPolicy",…},"ingress":{…}}

The cluster: Pods (status.podIPs, spec.nodeName, hostNetwork, container ports), Nodes, Namespaces, ServiceAccounts and policies as
ordinary manifests, YAML or JSON, also `kind: List` (such as `kubectl get pods -A -o json`).

A probe: `from` and `to` are namespace/pod, ip:ADDRESS or host:NODE; an address of a pod or node means that pod or node. `protocol` is
TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6 or a number. Optional: `port`, `sport` (else 49152), `icmp` (else an echo request), `family` (4 or
6; else 4 where both ends have it), `via` ({"address":…,"port":…}: where the packet was sent before translation, such as a node port;
`to` and `port` are then the backend), `interface` (of the nodes on the way, by which the packet comes or goes).

An answer: `verdict`, and for both legs who decided. A leg that no policy is asked about is null: the peer is no pod, a node reaches its
own pod, or a pod itself. `rule` -1 is the end of a tier. A pod that reaches its own node needs its egress policy and --endpoint-to-host
accept, or defaultEndpointToHostAction of a FelixConfiguration; the agent's default is drop, most Kubernetes installations configure
accept. `reason` appears where no rule decided, and `denyAction` ("Reject") where the sender of the denied packet is told.

HostEndpoints, written or automatic, add "host" to the answer: every context that was asked on the way, in order, up to the one that drops
the packet, such as {"node":"node-a","interface":"eth0","hostEndpoint":"a","context":"forward","direction":"ingress","verdict":"allow",…}.
`verdict` is allow, deny or noMatch (the next context is asked); `kind` Failsafe is a failsafe port; `reply` marks a question about the
packet's answer, which untracked policy judges too. Interface `pods` is the boundary between a node and its pods, `*` one that no
HostEndpoint names. Which address is on which interface: expectedIPs of the HostEndpoint that names it; an address that none lists is on
the only such interface without one of its family, else on `*`. A packet that concerns no address of a node crosses its only such
interface, where there is exactly one, else `*`.
A probe that cannot be understood is answered with {"error":…,"line":…}; the others are answered all the same.

Manifests that are wrong are reported on standard error as FILE:LINE: Kind/namespace/name: field: reason. Every probe is answered
nevertheless, with invalid policies in their closed form, as on a node that has never seen a valid one.

Exit code: 3 when --engine both finds a difference (the line then carries the other answer as "oracle"), else 2 when a probe is wrong,
else 1 when a manifest is wrong (not with --lenient), else 0."#;

const RELEASE_HELP: &str = "Examples:
  margay release shop/web
  margay release eth0

A port whose frames made workers panic three times within a minute is quarantined: nothing is taken from it (what an uplink receives is
the kernel's), and what is sent to it still goes there. `margay status` names such ports. The frames are in STATE_DIR/panics; please
report them. The end of the pod and of the agent end a quarantine as well.

Exit code 4 when no agent answers, 2 when there is nothing to release.";

const EXPLAIN_HELP: &str = r#"Examples:
  margay explain --from shop/web --to shop/db --protocol TCP --port 5432
  margay explain --manifests policies/ cluster.yaml --from ip:203.0.113.7 --to shop/web --port 443 -o json
  margay explain --manifests cluster.yaml old/ --diff cluster.yaml new/ --from shop/web --to shop/db --port 5432
  margay explain --manifests cluster.yaml old/ --diff cluster.yaml new/ --all-pairs

Without --manifests the running agent is asked, about the policy in force on its node; a leg of a pod on another node is judged there.
With --manifests no agent is needed. Everybody who is asked on the way is told: pods, and host endpoints that have policy in a context.
"recorded" is what flow logs would hold, INDEX|TIER|KIND:NAME|ACTION|RULE. Where there are staged policies, "if the staged policies were
enforced" tells what would be.

--diff names the manifests as they would be, complete: the packet is explained under both, and what differs is printed. --all-pairs
compares every connection from pod to pod instead, on the ports that the receiver declares (on those that rules name where it declares
none), and lists those whose verdict changes; at most a million are compared and a thousand listed, and it says when there are more.

Exit code 0 when the question was answered, whatever the verdict; with --diff 1 when a verdict changes; 2 when something asked for cannot
be read or does not exist; 4 when no agent answers."#;

const CAPTURE_HELP: &str = r#"Examples:
  margay capture --pod shop/web -w web.pcapng
  margay capture --from shop/web --to shop/db --port 5432 --count 100 -w - | wireshark -k -i -
  margay capture --reason policy_ingress --reason policy_egress

Every packet is there as it arrived, from the Ethernet header on, on the device that it came from; with --sent also as it left. The packet
comment tells its fate, the state of its flow, and the policy of both legs. Checksums that a pod leaves to its device are partial. Packets
that come faster than they can be told are counted in the drop count of the next one, and at the end.

Without -w there is one line per packet. Watching ends with --count, --seconds or an interrupt; it never holds up traffic, and packets
that are watched are slower than others.

Exit code 2 when what is asked for does not exist, 4 when no agent answers."#;

const TRACE_HELP: &str = r#"Examples:
  margay trace --from shop/web --to shop/db --port 5432
  margay trace --pod shop/web --protocol ICMP --count 2

Both directions of the conversation are shown. For why policy decides as it does, ask `margay explain`.

Exit code 2 when what is asked for does not exist, 4 when no agent answers."#;

const LINT_HELP: &str = r#"Examples:
  margay lint policies/ cluster.yaml
  margay lint policies/ cluster.yaml -o json | jq 'select(.severity == "error")'

Give it pods, namespaces and Services beside the policies: what is not in the files does not exist for it. Every finding names object and
field, what is wrong, how to mend it, and the section of the policy model; docs/lint.md lists them all. With -o json one line each.

Exit code: 2 when a file cannot be read, else 1 when there are warnings or errors, else 0."#;

const VALIDATE_HELP: &str = r#"Examples:
  margay validate policies/ cluster.yaml
  kustomize build . | margay validate - -o text

One line of JSON per object, in the order written:
  {"kind":"NetworkPolicy","namespace":"shop","name":"web","valid":false,"errors":[{"field":"spec.order","value":"high","reason":"…"}]}
`kind` is as written in the manifest. `namespace` is "" for kinds that have none, and "default" where a namespaced manifest says nothing.
`warnings`, of the same shape as `errors`, is there when there are any: unknown fields, criteria that are not enforced. A document that
cannot be read has kind and name "". Objects of kinds that margay does not follow get a line with --all only.

Exit code: 2 when a file cannot be read, else 1 when an object is invalid, else 0."#;

const SELECTOR_HELP: &str = r#"Examples:
  $ margay selector "role == 'db' && has(zone)" --labels '{"role":"db","zone":"a"}'
  {"valid":true,"canonical":"(role == \"db\" && has(zone))","id":"s:…","match":true}
  $ margay selector "role = 'db'"
  {"valid":false,"position":5,"reason":"single '='; write '=='"}

Without EXPR, every line of standard input is a question, {"selector":"…","labels":{…}}, with labels or without; `match` is there when
labels are. `position` is a byte, from 0. `id` is the same for every spelling of one canonical form.
A line that is no such question is answered with {"error":…,"line":…}; the others are answered all the same.

Exit code: 2 when a line is no question, else 1 when a selector is wrong, else 0, whether it matches or not."#;

/// `margay validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Files and folders with manifests (.yaml, .yml, .json); - is standard input
    #[arg(required = true, value_name = "FILE")]
    paths: Vec<PathBuf>,
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    format: validate::Format,
    /// Also list objects of kinds that are not followed
    #[arg(long)]
    all: bool,
}

/// `margay selector`.
#[derive(Debug, Args)]
pub struct SelectorArgs {
    /// The selector; without it, questions are read from standard input
    #[arg(value_name = "EXPR", allow_hyphen_values = true)]
    expression: Option<String>,
    /// Labels to match it with, as a JSON object
    #[arg(long, value_name = "JSON", requires = "expression", value_parser = selector_command::parse_labels)]
    labels: Option<Labels>,
}

fn verify_help() -> String {
    format!(
        r#"Example:
  $ cat assertions.yaml
  - no pod of namespace a can reach namespace b
  - only shop/web may reach port 5432 of shop/db
  - only: {{from: {{namespace: shop, selector: "app == 'web'"}}, to: {{namespace: shop, selector: "app == 'db'"}}, ports: [TCP/5432]}}
    name: the database belongs to the shop
  - isolated: {{namespace: shop}}
  - deny: {{from: {{outside: true}}, to: {{namespaceSelector: "env == 'prod'"}}, ports: [22, TCP/8000-8010]}}
  $ margay verify --manifests policies/ cluster.yaml --assert assertions.yaml

Answers are about every packet, in both families and on both legs, not about samples: the compiled tables tell few classes of packets
apart, and one of each is judged. A statement that does not hold is told with a packet and who decided about it.

A record claims one of: deny {{from, to}}: nothing passes; allow {{from, to}}: everything passes; only {{from, to}}: nothing passes that anybody
else sends (without `from`: that anybody sends); isolated PEER: it is reached by itself only. Optional: ports, name, allowEmpty.
A peer has one or more of namespace, namespaceSelector, selector, pod, serviceAccount; or one of cidr, outside: true (any address that is no
pod's and no node's), node, nodes: true; a list means any of them. ports: 5432 (each protocol with ports), TCP/5432, TCP/8000-8010, UDP,
ICMP, ICMP/8, IP/47; without ports, everything.

Sentences:
{}

Policy of pods is judged, that of HostEndpoints is not. A node reaches its own pods whatever policy says, and `only` does not claim
otherwise. A pod on its host's network is the node.

Exit code: 2 when a statement cannot be judged (also when a peer stands for nothing, without allowEmpty) or a manifest is wrong (not with
--lenient), else 1 when a statement does not hold, else 0."#,
        verify::SENTENCES
    )
}

/// `margay verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Files and folders with manifests (.yaml, .yml, .json)
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    manifests: Vec<PathBuf>,
    /// File with statements, a list in YAML or JSON; - is standard input
    #[arg(long = "assert", value_name = "FILE")]
    assertions: PathBuf,
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// How long one statement may take, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    time_limit: u64,
    /// Report wrong manifests without failing
    #[arg(long)]
    lenient: bool,
}

/// `margay simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// Files and folders with manifests (.yaml, .yml, .json)
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    manifests: Vec<PathBuf>,
    /// File with one probe a line as JSON; - is standard input
    #[arg(long, value_name = "FILE")]
    probes: PathBuf,
    /// Who answers
    #[arg(long, value_enum, default_value_t)]
    engine: Judge,
    /// Report wrong manifests without failing
    #[arg(long)]
    lenient: bool,
    /// What a pod's packets to its own node meet after its egress policy [default: defaultEndpointToHostAction of FelixConfiguration, else
    /// drop]
    #[arg(long, value_enum, value_name = "ACTION")]
    endpoint_to_host: Option<HostAction>,
}

/// Where the agent is, and how to print.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The agent's admin socket
    #[arg(long, default_value = crate::admin::DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// `margay explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Sender: namespace/pod, ip:ADDRESS or host:NODE
    #[arg(long, value_name = "PEER", required_unless_present = "all_pairs")]
    from: Option<String>,
    /// Receiver: namespace/pod, ip:ADDRESS or host:NODE
    #[arg(long, value_name = "PEER", required_unless_present = "all_pairs")]
    to: Option<String>,
    /// TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6 or a number
    #[arg(long, default_value = "TCP")]
    protocol: ProbeProtocol,
    /// Destination port
    #[arg(long)]
    port: Option<u16>,
    /// Source port [default: an ephemeral one]
    #[arg(long)]
    sport: Option<u16>,
    /// ICMP type, or TYPE/CODE [default: echo request]
    #[arg(long, value_name = "TYPE[/CODE]", value_parser = parse_icmp)]
    icmp: Option<IcmpProbe>,
    /// 4 or 6, where both ends have addresses of both families
    #[arg(long, value_parser = clap::value_parser!(u8).range(4..=6))]
    family: Option<u8>,
    /// Files and folders with manifests; without them the running agent is asked
    #[arg(long, num_args = 1.., value_name = "PATH")]
    manifests: Vec<PathBuf>,
    /// With --manifests: what a pod's packets to its own node meet after its egress policy [default: as FelixConfiguration says, else drop]
    #[arg(long, value_enum, value_name = "ACTION")]
    endpoint_to_host: Option<HostAction>,
    /// The interface of a node by which the packet comes from or goes to other machines [default: assumed, as for simulate]
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Where the packet is sent before translation, such as a node port; --to and --port are then the backend
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = parse_via)]
    via: Option<ViaProbe>,
    /// Other manifests, complete: what would be different with them
    #[arg(long, num_args = 1.., value_name = "PATH", requires = "manifests")]
    diff: Vec<PathBuf>,
    /// With --diff: every connection between pods whose verdict changes, instead of one packet
    #[arg(long, requires = "diff", conflicts_with_all = ["from", "to"])]
    all_pairs: bool,
    /// Also list every policy that does not apply, with the reason
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    ask: AskArgs,
}

/// `margay lint`.
#[derive(Debug, Args)]
pub struct LintArgs {
    /// Files and folders with manifests (.yaml, .yml, .json)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// How to print
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// `margay flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Either end has this address
    #[arg(long)]
    address: Option<IpAddr>,
    /// Either end is this pod
    #[arg(long, value_name = "NAMESPACE/POD")]
    pod: Option<String>,
    /// Protocol name or number
    #[arg(long)]
    protocol: Option<ProbeProtocol>,
    /// Either port
    #[arg(long)]
    port: Option<u16>,
    /// Most flows listed
    #[arg(long, default_value_t = 10_000)]
    limit: usize,
    #[command(flatten)]
    ask: AskArgs,
}

/// `margay drops`.
#[derive(Debug, Args)]
pub struct DropsArgs {
    /// Go on as packets are dropped, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Only this reason, such as policy_ingress
    #[arg(long)]
    reason: Option<String>,
    /// Either end has this address
    #[arg(long)]
    address: Option<IpAddr>,
    /// Either end is this pod
    #[arg(long, value_name = "NAMESPACE/POD")]
    pod: Option<String>,
    #[command(flatten)]
    ask: AskArgs,
}

/// `margay release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The pod, or a device as in `margay status`
    #[arg(value_name = "NAMESPACE/POD|DEVICE")]
    what: String,
    #[command(flatten)]
    ask: AskArgs,
}

/// Which packets to watch.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// What comes from or goes to this pod
    #[arg(long, value_name = "NAMESPACE/POD")]
    pod: Option<String>,
    /// One end of a conversation, either way round: namespace/pod or ip:ADDRESS
    #[arg(long, value_name = "PEER")]
    from: Option<String>,
    /// The other end
    #[arg(long, value_name = "PEER")]
    to: Option<String>,
    /// TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6 or a number
    #[arg(long)]
    protocol: Option<ProbeProtocol>,
    /// Port of the --to end
    #[arg(long)]
    port: Option<u16>,
    /// Port of the --from end
    #[arg(long)]
    sport: Option<u16>,
    /// Only packets dropped for this reason, such as policy_ingress; may be repeated
    #[arg(long, value_name = "NAME")]
    reason: Vec<String>,
    /// End after so many packets
    #[arg(long, short = 'c', value_name = "PACKETS", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so long
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    #[command(flatten)]
    ask: AskArgs,
}

impl WatchArgs {
    fn watch(self, snap_len: Option<u32>, sent: bool, output: capture::Output) -> (PathBuf, capture::Watch) {
        let filter = capture::CaptureFilter {
            pod: self.pod,
            ends: [
                capture::EndFilter { peer: self.from, port: self.sport },
                capture::EndFilter { peer: self.to, port: self.port },
            ],
            protocol: self.protocol.map(|protocol| protocol.0),
            reasons: self.reason,
            snap_len,
            sent,
        };
        let time = self.seconds.map(Duration::from_secs);
        (self.ask.socket, capture::Watch { filter, count: self.count, time, output })
    }
}

/// `margay capture`.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    #[command(flatten)]
    watch: WatchArgs,
    /// Write a pcapng file; - is standard output
    #[arg(long, short = 'w', value_name = "FILE", conflicts_with = "format")]
    write: Option<PathBuf>,
    /// Bytes kept of a packet [default: all]
    #[arg(long, short = 's', value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    snap_len: Option<u32>,
    /// Also every packet as it left
    #[arg(long)]
    sent: bool,
}

/// `margay trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    #[command(flatten)]
    watch: WatchArgs,
}

/// Watches, and says on standard error how much was seen.
fn watch_command(socket: &std::path::Path, watch: &capture::Watch) -> ExitCode {
    match capture::run(socket, watch) {
        Ok((told, missed)) => {
            let missed = if missed > 0 { format!(", {missed} more came too fast") } else { String::new() };
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "{told} packets{missed}");
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn parse_via(text: &str) -> Result<ViaProbe, String> {
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Ok(ViaProbe { address: socket.ip(), port: Some(socket.port()) });
    }
    let address = text.parse().map_err(|_| {
        format!(
            "{text:?} is no address; write 192.0.2.1, 192.0.2.1:30080, 2001:db8::1 or [2001:db8::1]:30080"
        )
    })?;
    Ok(ViaProbe { address, port: None })
}

fn parse_icmp(text: &str) -> Result<IcmpProbe, String> {
    let (kind, code) = text.split_once('/').unwrap_or((text, "0"));
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a number from 0 to 255"));
    Ok(IcmpProbe { kind: number(kind)?, code: number(code)? })
}

/// Does what `cli` says.
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Simulate(args) => simulate_command(args),
        Command::Validate(ValidateArgs { paths, format, all }) => {
            printed(validate::run(&validate::Validation { paths, format, all }))
        }
        Command::Selector(SelectorArgs { expression, labels }) => {
            printed(selector_command::run(expression.as_deref(), labels.as_ref()))
        }
        Command::Lint(LintArgs { paths, format }) => printed(lint::run(&paths, format)),
        Command::Explain(args) => explain_command(args),
        Command::Verify(VerifyArgs { manifests, assertions, format, time_limit, lenient }) => {
            let limit = Duration::from_secs(time_limit);
            printed(verify::run(&Verification { manifests, assertions, format, limit, lenient }))
        }
        Command::Status(ask) => match client::status(&ask.socket, ask.format) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(1),
            Err(error) => failed(&error),
        },
        Command::Wireguard(ask) => finish(client::wireguard(&ask.socket, ask.format)),
        Command::Flows(args) => {
            let FlowsArgs { address, pod, protocol, port, limit, ask } = args;
            let protocol = protocol.map(|protocol| protocol.0);
            finish(client::flows(&ask.socket, FlowFilter { address, pod, protocol, port, limit }, ask.format))
        }
        Command::Drops(args) => {
            let DropsArgs { follow, reason, address, pod, ask } = args;
            finish(client::drops(&ask.socket, follow, DropFilter { reason, address, pod }, ask.format))
        }
        Command::Release(ReleaseArgs { what, ask }) => finish(client::release(&ask.socket, what, ask.format)),
        Command::Capture(CaptureArgs { watch, write, snap_len, sent }) => {
            let output = match (write, watch.ask.format) {
                (Some(file), _) => capture::Output::File(file),
                (None, Format::Json) => capture::Output::Json,
                (None, Format::Table) => capture::Output::Lines,
            };
            let (socket, watch) = watch.watch(snap_len, sent, output);
            watch_command(&socket, &watch)
        }
        Command::Trace(TraceArgs { watch }) => {
            let output = match watch.ask.format {
                Format::Json => capture::Output::Json,
                Format::Table => capture::Output::Stages,
            };
            let (socket, watch) = watch.watch(Some(128), false, output);
            watch_command(&socket, &watch)
        }
        Command::Cni(args) => crate::cni::run(args),
        Command::Lab(args) => crate::lab::run(args),
        Command::Agent(args) => {
            crate::logging::start();
            crate::node::run(&args)
        }
        Command::Install(args) => printed(crate::install::run(&args)),
        Command::Doctor(args) => printed(crate::doctor::run(&args)),
        Command::Uninstall(args) => crate::uninstall::run(&args),
        Command::CniInstall(args) => crate::cni::install::run(&args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "margay", &mut io::stdout());
            ExitCode::SUCCESS
        }
    }
}

fn simulate_command(args: SimulateArgs) -> ExitCode {
    let SimulateArgs { manifests, probes, engine, lenient, endpoint_to_host } = args;
    let simulation = Simulation { manifests, probes, judge: engine, lenient, endpoint_to_host };
    simulate::run(&simulation).unwrap_or_else(|error| complain(&error, 2))
}

fn explain_command(args: ExplainArgs) -> ExitCode {
    let ExplainArgs { from, to, protocol, port, sport, icmp, family, manifests, endpoint_to_host, .. } = args;
    // Both are there unless --all-pairs is, which does not ask for them.
    let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
    let ExplainArgs { interface, via, .. } = args;
    let probe = Probe { from, to, protocol, port, sport, icmp, family, interface, via };
    let ExplainArgs { diff, all_pairs, all, ask, .. } = args;
    if manifests.is_empty() {
        return finish(client::explain(&ask.socket, probe, ask.format, all));
    }
    let load = |paths: &[PathBuf]| Simulator::load(paths, endpoint_to_host, &mut io::stderr().lock());
    let simulator = match load(&manifests) {
        Ok(simulator) => simulator,
        Err(error) => return complain(&error, 2),
    };
    if let Some(caveat) = Perspectives::caveat(simulator.engine().model()) {
        eprintln!("{caveat}");
    }
    if diff.is_empty() {
        return match explain::explain(simulator.engine(), simulator.snapshot(), &simulator.world, &probe) {
            Ok(explanation) => finish(client::print_explanation(&explanation, ask.format, all)),
            Err(reason) => failed(&ClientError::Refused(reason)),
        };
    }
    let after = match load(&diff) {
        Ok(after) => after,
        Err(error) => return complain(&error, 2),
    };
    let changes = |is_other: bool| ExitCode::from(u8::from(is_other));
    if all_pairs {
        let found = explain::diff::all_pairs(&simulator, &after);
        return printed(explain::diff::print(&found, ask.format).map(|()| changes(found.changed > 0)));
    }
    match explain::diff::one(&simulator, &after, &probe) {
        Ok(found) => {
            printed(explain::diff::print(&found, ask.format).map(|()| changes(found.changes_verdict())))
        }
        Err(reason) => failed(&ClientError::Refused(reason)),
    }
}

/// The exit code of a command that only prints; a reader that has seen enough is no error.
fn printed(result: io::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => complain(&error, 2),
    }
}

fn finish(result: Result<(), ClientError>) -> ExitCode {
    result.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn failed(error: &ClientError) -> ExitCode {
    match error {
        // The reader of our output has seen enough (`margay drops | head`).
        ClientError::Broken(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        ClientError::NotThere { .. } | ClientError::NotAllowed { .. } => complain(error, 4),
        ClientError::Enough => ExitCode::SUCCESS,
        ClientError::Refused(_) => complain(error, 2),
        ClientError::Broken(_) | ClientError::NotUnderstood(_) => complain(error, 1),
    }
}

/// Prints `error` with everything behind it.
fn complain(error: &dyn std::error::Error, code: u8) -> ExitCode {
    let mut text = format!("margay: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(&format!(": {inner_text}"));
        }
        cause = inner.source();
    }
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr(), "{text}");
    ExitCode::from(code)
}
