//! The running agent: opens everything in order, introduces the parts to each other, and waits to be told to stop.
//!
//! ```text
//!   directory, or API server ─▶ [control thread: Reconciler] ─▶ Dataplane (worker threads)
//!   CNI socket ────────────────────────▶ ▲      │
//!   netlink ─────────────────────────────┘      └▶ board ─▶ admin socket, metrics
//! ```
//!
//! On stop, programs stay pinned: pods are closed and uplinks pass until the next agent takes over.

pub mod args;
mod attach;
mod conflist;
mod host_port;
mod latency;
mod manner;
mod notes;
mod offloads;
mod panics;
mod preflight;
mod probe;
mod reconciler;
pub mod threads;
mod unheeded;
pub mod uplinks;
mod view;
pub mod zero_copy;

pub use conflist::{FILE as CONFLIST, PLUGIN, replace_file};
pub use host_port::{KERNEL_END, OUR_END};

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded, unbounded};
use margay_control::kubernetes::Note;
use margay_control::{Directory, DirectoryConfig, Kubernetes, KubernetesConfig, Source};
use margay_core::PortIndex;
use margay_io::netlink::Follower;
use margay_io::panics::WorkerPanic;
use margay_io::{AttachChoice, AttachMode, Dataplane, DataplaneConfig, PortSpec, Role as PortRole};

use crate::admin::report::NodeView;
use crate::admin::{AdminServer, DropHub};
use crate::encryption::keeper::{Annotations, FileKeeper, Keeper, SecretKeeper};
use crate::encryption::seen::Seen;
use crate::encryption::{self, conductor::Conductor};
use crate::endpoints::{Registry, bind_private, serve_cni};
use crate::net::Netlink;
use args::{AgentArgs, DatastoreArg, MultiBuffer};
use manner::Manner;
use reconciler::{Beginnings, Board, Command, FIRST_POD, FIRST_UPLINK, HOST, Reconciler, chain};
use threads::Threads;

/// Something that stops the agent before it runs, with where it happened.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the agent until SIGTERM or SIGINT. Exit code 1 when it could not start.
pub fn run(args: &AgentArgs) -> ExitCode {
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(error.as_ref()), "the agent cannot run");
            eprintln!("margay agent: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn private_directory(path: &Path) -> Result<(), Failure> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)))
        .map_err(|e| format!("cannot make {} a private directory: {e}", path.display()).into())
}

fn random_seed() -> Result<u64, Failure> {
    use std::io::Read;
    let mut bytes = [0u8; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| format!("cannot read /dev/urandom: {e}"))?;
    Ok(u64::from_ne_bytes(bytes))
}

fn start(args: &AgentArgs) -> Result<(), Failure> {
    let started = Instant::now();
    preflight::check()?;
    let cpus = args.cpu.choose(args.workers)?;
    private_directory(&args.run_dir)?;
    private_directory(&args.state_dir)?;
    let _awake = args.cpu_latency.map(latency::bound).transpose()?;
    args.cpu_latency.into_iter().for_each(latency::log);

    let mut netlink = Netlink::open()?;
    let uplinks = uplinks::find(&args.uplink, args.node_address)?;
    let mut links = Vec::new();
    for uplink in &uplinks {
        links.push(netlink.existing(&uplink.name)?);
    }
    let mtu = links.iter().map(|link| link.mtu).min().unwrap_or(1500);
    let config = args.worker(random_seed()?);
    let gateways = [config.gateway_v4, config.gateway_v6];
    let (kernel_end, our_end) = host_port::ensure(&mut netlink, mtu, gateways)?;

    let dataplane = Arc::new(Dataplane::start(DataplaneConfig {
        worker: config.clone(),
        bpffs: args.run_dir.join("bpf"),
        workers: args.workers,
        cpus: cpus.clone(),
        spin: args.spin,
        xdp: args.xdp_mode.into(),
        several_frames: args.multi_buffer == MultiBuffer::Auto,
        ..DataplaneConfig::default()
    })?);

    // It has namespaces of its own, so it may take its time beside the rest of the start.
    let (told, veth) = (args.clone(), our_end.index);
    let probe = std::thread::Builder::new()
        .name("margay-probe".to_owned())
        .spawn(move || Manner::find(&told, veth, &told.run_dir.join("probe")))?;

    // The first socket anchors the packet memory, so it stands on a device that lives as long as the agent.
    let mut ports = Vec::new();
    let spec = PortSpec {
        index: HOST,
        device: our_end.name.clone(),
        role: PortRole::Host,
        pin: "host".to_owned(),
        queues: Some(1),
    };
    let report = dataplane.add_port(spec)?;
    if report.mode == AttachMode::Generic {
        offloads::no_large_segments(&kernel_end.name)?;
        offloads::no_large_receives(&our_end.name)?;
    }
    // What the host port's pair takes the pods' pairs do. Above the driver, kernels before 6.9 copy each packet into one piece.
    let several = dataplane.takes_several_frames() && report.mode == AttachMode::Native;
    let largest = dataplane.largest_packet();
    let local_mtu = args.local_mtu.choose(largest, several)?;
    let why = manner::why_several_frames(args.multi_buffer, report.mode, several);
    let multi_buffer = if several { "on" } else { "off" };
    let outcome = match local_mtu {
        Some(_) => "new pods send larger packets to each other than leave the node",
        None => "new pods have one MTU for everything",
    };
    tracing::info!(multi_buffer, why, largest, local_mtu, "{outcome}");
    let largest_mtu = largest.saturating_sub(margay_wire::ETHERNET_LEN as u32);
    let (kernel_end, our_end) = if mtu > largest_mtu {
        tracing::warn!(
            uplink = mtu,
            largest_mtu,
            "ports of this kernel take less than the uplinks' MTU: pods and the host port get what they take (more needs Linux 6.6)"
        );
        host_port::ensure(&mut netlink, largest_mtu, gateways)?
    } else {
        (kernel_end, our_end)
    };
    netlink.set_up(our_end.index, true)?;
    ports.push((reconciler::host_port(&kernel_end, &our_end), report, our_end.index));
    for (nth, (link, uplink)) in links.iter().zip(&uplinks).enumerate() {
        let index = PortIndex(FIRST_UPLINK + nth as u16);
        let pin = uplinks::pin(&link.name);
        let spec = PortSpec { index, device: link.name.clone(), role: PortRole::Uplink, pin, queues: None };
        let choice = match (uplink.choice, AttachChoice::from(args.xdp_mode)) {
            (AttachChoice::Generic, AttachChoice::Native) => {
                return Err(format!(
                    "uplink {} takes programs above its driver only; leave --xdp-mode at auto",
                    link.name
                )
                .into());
            }
            (AttachChoice::Generic, _) => AttachChoice::Generic,
            (_, told) => told,
        };
        let features = manner::features(link.index);
        let memory = zero_copy::choose(args.xdp_zero_copy, choice, features);
        let report = dataplane.add_port_in(spec, choice, memory)?;
        zero_copy::log(&link.name, &report.memory, features);
        if !uplink.why.is_empty() {
            let (name, nics) = (&link.name, uplink.nics.join(", "));
            tracing::info!(uplink = name, %nics, why = uplink.why, "the uplink's program stands above its NICs");
        }
        if report.mode == AttachMode::Generic {
            for device in uplink.nics.iter().chain([&link.name]) {
                offloads::no_large_receives(device)?;
            }
        }
        ports.push((reconciler::uplink_port(nth, &link.name, link.mac, link.mtu), report, link.index));
    }

    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = Threads::start(&uplinks, args.uplink_polling, processors);

    let (commands, ear) = unbounded();
    let notify = commands.clone();
    let follower = Arc::new(Follower::start(move || drop(notify.send(Command::KernelChanged)))?);

    let mut registry = Registry::open(args.state_dir.join("endpoints.json"), FIRST_POD)?;
    for gone in registry.reconcile(|record| record.device_exists())? {
        tracing::info!(
            pod = gone.pod.name,
            interface = gone.host_ifname,
            "an interface of an earlier run is gone"
        );
    }
    let records: Vec<_> = registry.records().cloned().collect();
    let too_large: Vec<_> = records.iter().filter(|record| record.mtu > largest_mtu).collect();
    if !too_large.is_empty() {
        let names: Vec<_> =
            too_large.iter().map(|record| format!("{}/{}", record.pod.namespace, record.pod.name)).collect();
        tracing::warn!(
            pods = names.join(", "),
            largest_mtu,
            "these pods were made for larger packets than ports take now: what they send to each other is lost until they are made anew"
        );
    }
    let mut pins: std::collections::BTreeSet<String> =
        records.iter().map(|record| record.pin.clone()).collect();
    pins.insert("host".to_owned());
    pins.extend(links.iter().map(|link| uplinks::pin(&link.name)));
    dataplane.retain_links(&pins);

    let manner = probe.join().map_err(|_| "the probe of pods' interfaces panicked")?;
    let board = Board::default();
    let mut reconciler = Reconciler::new(
        Beginnings {
            node: args.node.clone(),
            config: config.clone(),
            dataplane: Arc::clone(&dataplane),
            follower,
            kernel_end,
            ports,
            board: Arc::clone(&board),
            manner: manner.clone(),
            conflist: args.cni_conf_dir.as_ref().map(|folder| {
                conflist::Conflist::new(folder, &args.cni_ipam, args.run_dir.join("agent.sock"))
            }),
        },
        netlink,
    );
    reconciler.adopt(records);

    // Before the control thread, which tells the container runtime to call once pods can be served.
    let listener = bind_private(&args.run_dir.join("agent.sock"))?;
    let (node_notes, traffic) = match args.datastore {
        DatastoreArg::Directory => {
            let source = Directory::open(DirectoryConfig {
                manifests: args.manifests.clone(),
                overlay: args.overlay.clone(),
                store: args.state_dir.join("store"),
            })?;
            follow(source, commands.clone())?;
            reconciler.encrypt_with(conductor(
                args,
                Box::new(FileKeeper::new(&args.state_dir, args.overlay.as_deref(), &args.node)),
            ));
            (None, None)
        }
        DatastoreArg::Kubernetes => {
            let source = Kubernetes::open(KubernetesConfig {
                kubeconfig: args.kubeconfig.clone(),
                store: args.state_dir.join("cluster"),
                node: args.node.clone(),
                namespace: args.lease_namespace.clone(),
                key_namespace: args.key_namespace.clone(),
                seed: random_seed()?,
            })?;
            let notes = source.node_notes();
            let keeper = {
                let notes = notes.clone();
                let say = Box::new(move |wanted: &Annotations| {
                    let absent = encryption::annotations().map(|name| (name.to_owned(), Note::Absent));
                    let texts = wanted.iter().map(|(name, text)| (name.clone(), Note::Text(text.clone())));
                    notes.say("margay-wireguard", absent.chain(texts).collect());
                });
                SecretKeeper::new(
                    &args.state_dir,
                    &args.node,
                    source.node_secret(),
                    source.node_events(),
                    say,
                )
            };
            reconciler.encrypt_with(conductor(args, Box::new(keeper)));
            let traffic: view::TellTraffic = Box::new(source.traffic());
            follow(source, commands.clone())?;
            (Some(notes), Some(traffic))
        }
    };
    let control =
        std::thread::Builder::new().name("margay-control".to_owned()).spawn(move || reconciler.run(&ear))?;

    let hooks = attach::Attachments {
        commands: commands.clone(),
        board: Arc::clone(&board),
        told_mtu: args.pod_mtu,
        uplink_mtu: mtu,
        largest_mtu,
        dataplane: Arc::clone(&dataplane),
        local_mtu,
        patience: args.attach_timeout,
    };
    let cni = serve_cni(listener, Arc::new(Mutex::new(registry)), Arc::new(hooks))?;

    let view = Arc::new(view::View {
        node: args.node.clone(),
        started,
        dataplane: Arc::clone(&dataplane),
        board,
        commands: commands.clone(),
        hub: DropHub::new(),
        traffic,
        uplinks: uplinks.clone(),
        threaded: threads.names().map(str::to_owned).collect(),
        manner,
        drivers: links.iter().map(|link| (link.name.clone(), manner::features(link.index))).collect(),
        cpus,
        endpoint_to_host: config.endpoint_to_host,
    });
    let events = dataplane.drop_events();
    let translator = Arc::clone(&view);
    std::thread::Builder::new()
        .name("margay-drops".to_owned())
        .spawn(move || translator.translate_drops(&events))?;
    let admin = AdminServer::start(&args.run_dir.join("admin.sock"), view.clone())?;
    let metrics = match args.admin_listen {
        Some(address) => Some(crate::metrics::MetricsServer::start(address, view.clone())?),
        None => None,
    };
    let names: Vec<&str> = uplinks.iter().map(|uplink| uplink.name.as_str()).collect();
    tracing::info!(node = args.node, uplinks = ?names, "the agent runs");

    let tell = || {
        let Some(node_notes) = &node_notes else { return };
        let status = view.status();
        if !status.ports.is_empty() {
            node_notes.say(notes::OWNER, notes::notes(&status));
        }
    };
    let folder = panics::PanicFolder::below(&args.state_dir);
    let worker_ended = wait_for_end(&dataplane, &folder, tell)?;
    drop(view);
    tracing::info!("stopping: pods stay closed until the next agent, uplinks pass to the kernel");
    drop((cni, admin, metrics, threads));
    let _ = commands.send(Command::Stop);
    let _ = control.join();
    drop(dataplane);
    if worker_ended {
        return Err("the worker ended unexpectedly; pods are closed until the agent is started again".into());
    }
    Ok(())
}

/// Returns who decides about encryption.
fn conductor(args: &AgentArgs, keeper: Box<dyn Keeper>) -> Conductor {
    Conductor::new(&args.node, keeper, Seen::open(&args.state_dir.join("wireguard.seen")))
}

/// Passes what the source tells on to the control thread, on a thread of its own.
fn follow(mut source: impl Source + 'static, commands: Sender<Command>) -> Result<(), Failure> {
    let work = move || loop {
        match source.next(Duration::from_secs(60)) {
            Ok(None) => {}
            Ok(Some(batch)) => {
                if commands.send(Command::Batch(batch)).is_err() {
                    return;
                }
            }
            Err(error) => {
                let _ = commands.send(Command::SourceEnded(chain(&error)));
                return;
            }
        }
    };
    std::thread::Builder::new().name("margay-source".to_owned()).spawn(work)?;
    Ok(())
}

/// Blocks until SIGTERM or SIGINT, or until a worker is gone for good; returns whether it was a worker. Meanwhile writes down what workers
/// panicked over, and does `now_and_then` every few seconds.
fn wait_for_end(
    dataplane: &Dataplane,
    folder: &panics::PanicFolder,
    now_and_then: impl Fn(),
) -> Result<bool, Failure> {
    let (told, hear) = bounded::<()>(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("margay-signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            if let (Ok(mut term), Ok(mut int)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            }
        });
        let _ = told.send(());
    })?;
    let panics = dataplane.panics();
    let keep = |panic: &WorkerPanic| {
        let ports = dataplane.ports();
        let device = ports.iter().find(|(spec, _)| Some(spec.index) == panic.port);
        match folder.keep(panic, device.map_or("unknown", |(spec, _)| spec.device.as_str())) {
            Ok(file) => tracing::error!(file = %file.display(), "the frame that a worker panicked over"),
            Err(error) => {
                tracing::error!(%error, "the frame that a worker panicked over could not be written down")
            }
        }
    };
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next {
            now_and_then();
            next = Instant::now() + Duration::from_secs(5);
        }
        crossbeam::select! {
            recv(hear) -> _ => return Ok(false),
            recv(panics) -> panic => panic.iter().for_each(&keep),
            default(Duration::from_secs(1)) => {}
        }
        if !dataplane.is_running() {
            tracing::error!("a worker ended unexpectedly");
            // Its last words are on their way.
            while let Ok(panic) = panics.recv_timeout(Duration::from_millis(200)) {
                keep(&panic);
            }
            return Ok(true);
        }
    }
}
