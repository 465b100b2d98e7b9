//! What the agent is told, every value checked as it is read.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use margay_core::worker::{EndpointToHost, PolicyChangeFlowAction};
use margay_core::{Nanos, WorkerConfig};
use margay_io::AttachChoice;

use super::zero_copy::ZeroCopy;

/// Runs the node agent.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  margay agent --node node1 --manifests /etc/margay/manifests --uplink eth0\n  \
margay agent --node node1 --datastore kubernetes --uplink eth0"
)]
pub struct AgentArgs {
    /// Name of this node, as in its Node object.
    #[arg(long)]
    pub node: String,
    /// From where objects come: folders of manifests, or a Kubernetes API server.
    #[arg(long, value_enum, default_value = "directory")]
    pub datastore: DatastoreArg,
    /// Folder of manifests (YAML or JSON) to follow; may be given several times.
    #[arg(long, required_if_eq("datastore", "directory"))]
    pub manifests: Vec<PathBuf>,
    /// How to reach the API server; absent inside a pod, where its ServiceAccount says it.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the Lease by which agents agree which of them writes status.
    #[arg(long, default_value = "kube-system")]
    pub lease_namespace: String,
    /// Namespace of the Secret in which this node's WireGuard keys are kept, sealed to this machine.
    #[arg(long, default_value = "calico-system")]
    pub key_namespace: String,
    /// Folder of partial Pod and Node documents merged over those of --manifests (RFC 7386), such as status of Pods. With encryption the
    /// agents of all nodes share it, and each publishes its keys there.
    #[arg(long)]
    pub overlay: Option<PathBuf>,
    /// Folder that survives a restart: endpoints, last valid forms of objects.
    #[arg(long, default_value = "/var/lib/margay")]
    pub state_dir: PathBuf,
    /// Folder of sockets and pinned programs; lost at a reboot.
    #[arg(long, default_value = "/run/margay")]
    pub run_dir: PathBuf,
    /// NICs that lead to the other nodes, several between commas; `auto` takes the device that has --node-address and those of default
    /// routes. Without one, only pods of this node and the node itself are joined.
    #[arg(long, value_delimiter = ',')]
    pub uplink: Vec<String>,
    /// An address of this node, to find its uplink by.
    #[arg(long)]
    pub node_address: Option<IpAddr>,
    /// Folder of the container runtime's network configurations, where one for this agent is written as soon as pods can be served; none
    /// is when absent. It stays when the agent stops.
    #[arg(long)]
    pub cni_conf_dir: Option<PathBuf>,
    /// The plug-in that gives pods their addresses.
    #[arg(long, default_value = "host-local")]
    pub cni_ipam: String,
    /// What a pod's packets to its own node meet after egress policy (defaultEndpointToHostAction).
    #[arg(long, value_enum, default_value = "drop", ignore_case = true)]
    pub endpoint_to_host: EndpointToHostArg,
    /// What live flows do when the policy that judged them changes (policyChangeFlowAction).
    #[arg(long, value_enum, default_value = "reevaluate", ignore_case = true)]
    pub policy_change_flow_action: PolicyChangeArg,
    /// How long after a start TCP connections without an entry may be adopted, such as 120s (flowAdoptionWindow).
    #[arg(long, default_value = "120s", value_parser = duration)]
    pub flow_adoption_window: Duration,
    /// Most flows kept.
    #[arg(long, default_value_t = 512_000)]
    pub max_flows: usize,
    /// Threads that carry packets. Each has its own pods; an uplink's queues are spread over them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// CPU that the first worker stays on, the others on those below it: a number, `auto` for the last one that this process may use, or
    /// `none` to leave them to the scheduler.
    #[arg(long, default_value = "auto", value_parser = cpu)]
    pub cpu: Cpu,
    /// How long a worker without work looks for more before it sleeps, such as 50us. While it does, it keeps its CPU busy and answers
    /// without being woken; at most 10ms: a packet more often than that keeps its CPU busy.
    #[arg(long, default_value = "50us", value_parser = short_duration)]
    pub spin: Duration,
    /// How long processors of this node may take to wake up while the agent runs, such as 0us: then none halts (where the kernel has an
    /// idle state that polls), and a packet that wakes a program on another processor does so at once. It costs power, or in a virtual
    /// machine the host's processors. Left alone when absent.
    #[arg(long, value_parser = short_duration)]
    pub cpu_latency: Option<Duration>,
    /// Largest packet that a pod sends to another node; what the smallest uplink takes, less what encryption needs, when absent.
    #[arg(long)]
    pub pod_mtu: Option<u32>,
    /// MTU of pods' interfaces, for packets between pods of this node: a number, `auto` for 60000 where the kernel has what that needs, or
    /// `off` for one MTU everywhere. Routes that leave the node carry the MTU that it has.
    #[arg(long, default_value = "auto", value_parser = local_mtu)]
    pub local_mtu: LocalMtu,
    /// Whether a packet may take several frames of packet memory, which packets larger than 3800 bytes need: where the kernel has it, or
    /// never.
    #[arg(long, value_enum, default_value = "auto")]
    pub multi_buffer: MultiBuffer,
    /// How long a CNI ADD waits for the pod's policy to be in force.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub attach_timeout: Duration,
    /// How XDP programs are attached: in the driver where it can and above it elsewhere, or one of the two only. A port that an earlier
    /// run left keeps its way.
    #[arg(long, value_enum, default_value = "auto")]
    pub xdp_mode: XdpModeArg,
    /// Whether an uplink whose driver can receives into and sends from packet memory of its own without a copy, for 32 MiB, or shares
    /// the memory of all ports as it does elsewhere.
    #[arg(long, value_enum, default_value = "auto")]
    pub xdp_zero_copy: ZeroCopy,
    /// Who polls pods' interfaces: whoever sends, threads of the kernel, or what a probe at the start finds the cheaper.
    #[arg(long, value_enum, default_value = "auto")]
    pub polling: Polling,
    /// Who polls uplinks: whoever the driver has it done by, threads of the kernel, or threads where the uplink is a veth (a node in a
    /// container), because there it would be whoever sends.
    #[arg(long, value_enum, default_value = "auto")]
    pub uplink_polling: UplinkPolling,
    /// How long the pod's end of an interface gathers segments of a stream before the pod sees them, such as 30us; not at
    /// all when 0us.
    #[arg(long, default_value = "0us", value_parser = short_duration)]
    pub pod_gather: Duration,
    /// Whether segments of a TCP stream that arrive together reach a pod with a large MTU (--local-mtu) as one packet. A pod that
    /// routes them on is found out and spared.
    #[arg(long, value_enum, default_value = "on")]
    pub lro: Switch,
    /// Address for /metrics, /healthz and /readyz; none when absent.
    #[arg(long)]
    pub admin_listen: Option<SocketAddr>,
}

/// Whether packets may have several frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MultiBuffer {
    /// Where the kernel has it.
    Auto,
    /// One frame each.
    Off,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Who polls pods' interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Polling {
    /// What a probe finds the cheaper.
    Auto,
    /// Whoever sends, on his own processor.
    Inline,
    /// Threads of the kernel.
    Threaded,
}

/// Who polls uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UplinkPolling {
    /// Threads of the kernel where it is a veth.
    Auto,
    /// As the driver has it.
    Driver,
    /// Threads of the kernel.
    Threaded,
}

/// From where objects come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatastoreArg {
    /// Folders of manifests.
    Directory,
    /// A Kubernetes API server.
    Kubernetes,
}

/// `defaultEndpointToHostAction`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum EndpointToHostArg {
    /// Dropped.
    Drop,
    /// Passed on.
    Accept,
}

/// How XDP programs are attached.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum XdpModeArg {
    /// In the driver; above it where the driver refuses.
    Auto,
    /// In the driver, or the agent does not take the port.
    Native,
    /// Above the driver.
    Generic,
}

impl From<XdpModeArg> for AttachChoice {
    fn from(mode: XdpModeArg) -> Self {
        match mode {
            XdpModeArg::Auto => Self::Auto,
            XdpModeArg::Native => Self::Native,
            XdpModeArg::Generic => Self::Generic,
        }
    }
}

/// `policyChangeFlowAction`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PolicyChangeArg {
    /// The next packet of a flow whose policy changed is judged again.
    Reevaluate,
    /// Flows go on until they end.
    Keep,
}

/// Where the worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpu {
    /// The last CPU that this process may use: interrupts and most services gather on the first.
    Auto,
    /// Wherever the scheduler puts it.
    None,
    /// This one.
    Number(usize),
}

impl Cpu {
    /// Returns the CPUs that `workers` workers stay on, none when the scheduler decides. Where there are fewer CPUs than workers, several
    /// workers share one. Errors: the CPU is not among those that this process may use.
    pub fn choose(self, workers: u16) -> Result<Vec<usize>, String> {
        use nix::sched::{CpuSet, sched_getaffinity};
        if self == Self::None {
            return Ok(Vec::new());
        }
        let set = sched_getaffinity(nix::unistd::Pid::from_raw(0))
            .map_err(|e| format!("cannot read the CPU affinity: {e}"))?;
        let allowed: Vec<usize> =
            (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
        let first = match self {
            Self::Number(wanted) => allowed.iter().position(|cpu| *cpu == wanted).ok_or_else(|| {
                format!("--cpu {wanted}: this process may use {allowed:?}; choose one of them, auto or none")
            })?,
            Self::Auto | Self::None => allowed.len().saturating_sub(1),
        };
        let downwards = allowed[..(first + 1).min(allowed.len())].iter().rev();
        let around = allowed.iter().skip(first + 1).rev();
        Ok(downwards.chain(around).take(workers.into()).copied().collect())
    }
}

fn cpu(text: &str) -> Result<Cpu, String> {
    match text {
        "auto" => Ok(Cpu::Auto),
        "none" => Ok(Cpu::None),
        number => number
            .parse()
            .map(Cpu::Number)
            .map_err(|_| format!("{text:?} is not a CPU; write a number, auto or none")),
    }
}

/// MTU of pods' interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalMtu {
    /// As large as is good for throughput, where the kernel has what it needs.
    Auto,
    /// What leaves the node and what stays on it are alike.
    Off,
    /// So many bytes.
    Bytes(u32),
}

/// What `auto` is: a local TCP segment is one packet of 16 frames, one short of what the kernel takes.
const LARGE: u32 = 60_000;
/// Largest MTU that a veth takes.
const LARGEST: u32 = 65_535;

impl LocalMtu {
    /// Returns the MTU of pods' interfaces, `None` for that of their routes. `largest` is the largest packet that a port takes, from its
    /// Ethernet header on, and `several` whether packets of several frames are among them.
    ///
    /// Errors: more was asked for than ports take.
    pub fn choose(self, largest: u32, several: bool) -> Result<Option<u32>, String> {
        let most = largest.saturating_sub(margay_wire::ETHERNET_LEN as u32).min(LARGEST);
        match self {
            Self::Off => Ok(None),
            Self::Auto => Ok(several.then_some(LARGE.min(most))),
            Self::Bytes(mtu) if mtu <= most => Ok(Some(mtu)),
            Self::Bytes(mtu) => Err(format!(
                "--local-mtu {mtu}: ports of this kernel take packets of up to {most} bytes (more than one frame needs Linux 6.6); choose less, \
                 auto or off"
            )),
        }
    }
}

fn local_mtu(text: &str) -> Result<LocalMtu, String> {
    match text {
        "auto" => Ok(LocalMtu::Auto),
        "off" => Ok(LocalMtu::Off),
        number => match number.parse() {
            Ok(bytes) if (1280..=LARGEST).contains(&bytes) => Ok(LocalMtu::Bytes(bytes)),
            _ => Err(format!("{text:?} is not an MTU; write a number from 1280 to {LARGEST}, auto or off")),
        },
    }
}

/// Reads `120s`, `500ms`, `2m` or `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} is not a duration; write 500ms, 120s, 2m or 1h"))?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{text:?} has no known unit; write 500ms, 120s, 2m or 1h")),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long"))
}

/// Reads `30us` or `1ms`, up to 10 ms.
fn short_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let micros = match unit {
        "us" => Some(1),
        "ms" => Some(1_000),
        _ => None,
    };
    let number = number.parse::<u64>().ok().zip(micros).and_then(|(number, unit)| number.checked_mul(unit));
    number
        .filter(|micros| *micros <= 10_000)
        .map(Duration::from_micros)
        .ok_or_else(|| format!("{text:?} is not a short duration; write 30us or 1ms, at most 10ms"))
}

impl AgentArgs {
    /// Returns the worker's settings; `seed` keeps the flow table's hash secret.
    pub fn worker(&self, seed: u64) -> WorkerConfig {
        WorkerConfig {
            endpoint_to_host: match self.endpoint_to_host {
                EndpointToHostArg::Drop => EndpointToHost::Drop,
                EndpointToHostArg::Accept => EndpointToHost::Accept,
            },
            policy_change: match self.policy_change_flow_action {
                PolicyChangeArg::Reevaluate => PolicyChangeFlowAction::Reevaluate,
                PolicyChangeArg::Keep => PolicyChangeFlowAction::Keep,
            },
            adoption_window: Nanos(u64::try_from(self.flow_adoption_window.as_nanos()).unwrap_or(u64::MAX)),
            max_flows: self.max_flows,
            hash_seed: seed,
            // What is joined has several frames.
            lro: self.lro == Switch::On && self.multi_buffer != MultiBuffer::Off,
            ..WorkerConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_a_number_or_a_word() {
        assert_eq!((cpu("auto"), cpu("none"), cpu("3")), (Ok(Cpu::Auto), Ok(Cpu::None), Ok(Cpu::Number(3))));
        assert!(cpu("first").is_err() && cpu("-1").is_err());
        assert_eq!(Cpu::None.choose(2), Ok(Vec::new()));
        let all = Cpu::Auto.choose(256).expect("an affinity");
        let last = *all.first().expect("a CPU");
        assert_eq!(Cpu::Auto.choose(1), Ok(vec![last]));
        assert_eq!(Cpu::Number(last).choose(1), Ok(vec![last]));
        let lowest = *all.last().expect("a CPU");
        let from_lowest = Cpu::Number(lowest).choose(256).expect("it is allowed");
        assert_eq!(from_lowest.len(), all.len(), "each CPU once");
        assert_eq!(from_lowest[0], lowest);
        assert!(Cpu::Number(1_000_000).choose(1).is_err());
    }

    #[test]
    fn short_durations_are_short() {
        assert_eq!(short_duration("30us"), Ok(Duration::from_micros(30)));
        assert_eq!(short_duration("0us"), Ok(Duration::ZERO));
        assert_eq!(short_duration("10ms"), Ok(Duration::from_millis(10)));
        for wrong in ["30", "11ms", "1s", "us", "-1us", "99999999999999999999us"] {
            assert!(short_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pods_get_large_interfaces_where_ports_take_large_packets() {
        assert_eq!((local_mtu("auto"), local_mtu("off")), (Ok(LocalMtu::Auto), Ok(LocalMtu::Off)));
        assert_eq!(local_mtu("9000"), Ok(LocalMtu::Bytes(9000)));
        assert!(["1279", "65536", "large"].into_iter().all(|text| local_mtu(text).is_err()));
        assert_eq!(LocalMtu::Auto.choose(17 * 3840, true), Ok(Some(60_000)));
        assert_eq!(LocalMtu::Auto.choose(17 * 1792, true), Ok(Some(17 * 1792 - 14)));
        assert_eq!(LocalMtu::Auto.choose(3840, false), Ok(None));
        assert_eq!(LocalMtu::Off.choose(17 * 3840, true), Ok(None));
        assert_eq!(LocalMtu::Bytes(3826).choose(3840, false), Ok(Some(3826)));
        assert!(LocalMtu::Bytes(3827).choose(3840, false).is_err());
    }

    #[test]
    fn durations_carry_units() {
        assert_eq!(duration("120s"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["120", "s", "1 s", "-1s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
