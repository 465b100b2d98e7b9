//! Open vSwitch with AF_XDP ports, as the peer that crosses the same interfaces in the same way: Debian's packages, unpacked and not
//! installed, in a namespace of its own with an end of each of two pods' pairs.
//!
//! It has no policy. Its thread looks for packets without a pause, so it is stopped while another takes its turn. Pods' checksum offload is
//! off, as its documentation asks for: it sends nothing with a sum that is left to somebody else.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use benches::Result;
use benches::packages::{libraries, library_path, unpacked};
use benches::streams::{Running, patiently, run, stream};
use nix::sys::signal::Signal;

const FAR: &str = "172.28.0.2";

/// A switch with two pods.
pub struct OpenVSwitch {
    /// Pod, switch, pod.
    names: [String; 3],
    tree: PathBuf,
    directory: tempfile::TempDir,
    /// The switch, then its database: ended in this order.
    processes: Vec<Running>,
}

impl OpenVSwitch {
    /// Starts it; it is stopped then.
    ///
    /// Errors: packages that cannot be fetched, a switch that does not start or forward.
    pub fn up() -> Result<Self> {
        let mut packages = libraries(
            "openvswitch-switch",
            &["libbpf", "libcap-ng", "libnuma", "libssl", "libunbound", "libxdp", "openvswitch-common"],
        )?;
        let unbound = packages.iter().find(|name| name.starts_with("libunbound")).cloned();
        packages.extend(libraries(&unbound.ok_or("it needs no libunbound")?, &["libevent"])?);
        packages.push("openvswitch-switch".to_owned());
        let tree = unpacked("openvswitch", &packages)?;
        let names = ["a", "s", "b"].map(|side| format!("ovs-{}{side}", std::process::id()));
        let mut switch = Self { names, tree, directory: tempfile::tempdir()?, processes: Vec::new() };
        switch.wire()?;
        switch.start()?;
        patiently(|| run(switch.inside(0).args(["ping", "-n", "-c", "1", "-W", "1", FAR])))
            .map_err(|error| format!("it does not forward: {error}; {}", switch.said()))?;
        switch.tell(Signal::SIGSTOP)?;
        Ok(switch)
    }

    fn wire(&self) -> Result<()> {
        let ip = |arguments: &str| run(Command::new("ip").args(arguments.split_whitespace()));
        let [a, s, b] = &self.names;
        for name in &self.names {
            ip(&format!("netns add {name}"))?;
        }
        ip(&format!("-n {s} link set lo up"))?;
        for (pod, number) in [(a, 1), (b, 2)] {
            ip(&format!("link add eth0 netns {pod} type veth peer name v{number} netns {s}"))?;
            ip(&format!("-n {pod} addr add 172.28.0.{number}/24 dev eth0"))?;
            ip(&format!("-n {pod} link set eth0 up"))?;
            ip(&format!("-n {s} link set v{number} up"))?;
            ip(&format!("netns exec {pod} ethtool -K eth0 tx off"))?;
        }
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let schema = self.tree.join("usr/share/openvswitch/vswitch.ovsschema");
        let database = self.directory.path().join("conf.db");
        run(self.tool("usr/bin/ovsdb-tool").arg("create").arg(&database).arg(schema))?;
        let socket = self.directory.path().join("db.sock").display().to_string();
        let mut call = self.program("usr/sbin/ovsdb-server");
        let server = Running::start(call.arg(&database).arg(format!("--remote=punix:{socket}")))?;
        let control = |words: &str| {
            let mut call = self.tool("usr/bin/ovs-vsctl");
            let call = call.arg(format!("--db=unix:{socket}")).args(["--no-wait", "--timeout=10"]);
            run(call.args(words.split_whitespace()))
        };
        patiently(|| control("init"))?;
        control("add-br br0 -- set bridge br0 datapath_type=netdev")?;
        for port in ["v1", "v2"] {
            control(&format!("add-port br0 {port} -- set interface {port} type=afxdp"))?;
        }
        let mut call = self.program("usr/lib/openvswitch-switch/ovs-vswitchd");
        let log = self.log();
        call.args([format!("unix:{socket}"), "--disable-system".to_owned()]);
        call.arg(format!("--log-file={}", log.display()));
        self.processes = vec![Running::start(&mut call)?, server];
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("switch.log")
    }

    /// Returns the last of what the switch warned of.
    fn said(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let last = text.lines().rfind(|line| line.contains("|ERR|") || line.contains("|WARN|"));
        last.unwrap_or("it said nothing").to_owned()
    }

    /// One of its tools, with its own libraries and places.
    fn tool(&self, path: &str) -> Command {
        self.equipped(Command::new(self.tree.join(path)))
    }

    /// One of its servers in the switch's namespace, which ends with the bench however that ends.
    fn program(&self, path: &str) -> Command {
        let mut call = self.equipped(Command::new("setpriv"));
        call.args(["--pdeathsig", "KILL", "ip", "netns", "exec", &self.names[1]]).arg(self.tree.join(path));
        let control = Path::new(path).with_extension("ctl");
        let control = self.directory.path().join(control.file_name().unwrap_or_default());
        call.arg(format!("--unixctl={}", control.display()));
        call
    }

    fn equipped(&self, mut call: Command) -> Command {
        let libraries = library_path(&self.tree);
        // libxdp reads its programs from a folder of the system, unless told where they are.
        call.env("LIBXDP_OBJECT_PATH", Path::new(&libraries).join("bpf")).env("LD_LIBRARY_PATH", libraries);
        for place in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"] {
            call.env(place, self.directory.path());
        }
        call
    }

    fn tell(&self, signal: Signal) -> Result<()> {
        self.processes.iter().take(1).try_for_each(|switch| switch.tell(signal))
    }

    fn inside(&self, side: usize) -> Command {
        let mut call = Command::new("ip");
        call.args(["netns", "exec", &self.names[side]]);
        call
    }

    /// Returns Gb/s of one stream; the switch runs only meanwhile.
    ///
    /// Errors: iperf3's.
    pub fn stream(&self, seconds: &str) -> Result<f64> {
        self.tell(Signal::SIGCONT)?;
        let rate = stream(self.inside(2), || self.inside(0), FAR, seconds);
        self.tell(Signal::SIGSTOP)?;
        rate
    }
}

impl Drop for OpenVSwitch {
    fn drop(&mut self) {
        self.processes.clear();
        for name in &self.names {
            // One that was not made is not there.
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}
