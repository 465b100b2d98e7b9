//! ADD, DEL, CHECK, GC and STATUS.
//!
//! ADD makes the veth pair first: the kernel gives a name once, so of two ADDs for one attachment exactly one goes on, and only that one
//! undoes anything. DEL needs neither the container's namespace nor a living agent: the host end's name follows from the attachment, its
//! alias says whose it is, and an agent that was away drops the record when it finds the device gone.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::ipam::Ipam;
use super::types::{self, CniResult, Ends, Environment, Failure, NetConf, code};
use super::veth::{self, LargeRoutes};
use crate::endpoints::protocol::ask;
use crate::endpoints::{Attach, AttachmentKey, LargePackets, Reply, Request};
use crate::net::netns::NetNs;
use crate::net::{NetError, Netlink};

/// How long the agent may take for anything but an attachment.
const QUICK: Duration = Duration::from_secs(5);

/// How much longer than the agent's own deadline the plug-in waits for the answer.
const GRACE: Duration = Duration::from_secs(3);

/// How long to look for an address that nobody had a minute ago.
const PATIENCE: Duration = Duration::from_secs(3);

/// Joins a container to the network; returns when its policy is in force.
pub fn add(environment: &Environment, conf: &NetConf) -> Result<Value, Failure> {
    let key = environment.key()?;
    let pod = environment.pod()?;
    let netns_path = environment.netns()?;
    let netns = NetNs::open(netns_path).map_err(|e| {
        Failure::new(
            code::CONTAINER,
            format!("no network namespace at {}", netns_path.display()),
            e.to_string(),
        )
    })?;
    if netns.is_current().unwrap_or(false) {
        return Err(Failure::new(
            code::ENVIRONMENT,
            "CNI_NETNS is this node's own network namespace",
            "a host-networked container must not be given to CNI",
        ));
    }
    let sizes = Sizes::of(conf)?;
    let ipam = Ipam::find(environment, conf)?;
    let mut netlink = Netlink::open()?;
    veth::create(&mut netlink, &key, &netns, sizes.mtu).map_err(|e| {
        if e.is(libc::EEXIST) {
            let what = format!("interface {} of container {} exists already", key.ifname, key.container_id);
            Failure::new(code::EXISTS, what, "an earlier ADD succeeded or is under way: DEL it first")
        } else {
            e.into()
        }
    })?;
    join(&mut netlink, &key, pod, &netns, &ipam, conf, &sizes).inspect_err(|_| {
        // Undone in reverse; the first failure is the one to report.
        for undone in [forget(&key, conf), remove_pair(&mut netlink, &key, conf), ipam.del()] {
            if let Err(failure) = undone {
                eprintln!("margay cni: while undoing a failed ADD: {failure}");
            }
        }
    })
}

/// How large a pod's packets may be.
struct Sizes {
    /// MTU of both ends.
    mtu: u32,
    /// Its routes, when not all of them carry that.
    large: Option<LargeRoutes>,
}

impl Sizes {
    /// What the network configuration says holds for all packets.
    fn of(conf: &NetConf) -> Result<Self, Failure> {
        let Mtus { default_mtu, largest_mtu, large } = agent_status(conf)?;
        let told = conf.mtu.map(|mtu| mtu.min(largest_mtu.unwrap_or(mtu)));
        if let (Some(mtu), Some(told)) = (conf.mtu.filter(|_| told < conf.mtu), told) {
            eprintln!(
                "margay cni: ports of this node take an MTU of at most {told}, the network configuration's is {mtu}"
            );
        }
        Ok(match (told, large) {
            (None, Some(LargePackets { mtu, within })) => {
                Self { mtu, large: Some(LargeRoutes { within, beyond: default_mtu }) }
            }
            (told, _) => Self { mtu: told.unwrap_or(default_mtu), large: None },
        })
    }
}

fn join(
    netlink: &mut Netlink,
    key: &AttachmentKey,
    pod: crate::endpoints::PodRef,
    netns: &NetNs,
    ipam: &Ipam<'_>,
    conf: &NetConf,
    sizes: &Sizes,
) -> Result<Value, Failure> {
    let host = veth::prepare_host_end(netlink, &conf.name, key)?;
    let given = rested(ipam, conf)?;
    let addresses: Vec<IpAddr> = given.ips.iter().map(|net| net.addr()).collect();
    if addresses.is_empty() {
        return Err(Failure::new(
            code::IPAM,
            format!("the IPAM plug-in {:?} gave no address", conf.ipam),
            "configure a range for it",
        ));
    }
    netns.within(|| veth::configure_pod_end(&key.ifname, &addresses, sizes.large.as_ref()))??;
    let pod_mac = veth::pod_mac(key);
    let attach = Attach {
        key: key.clone(),
        network: conf.name.clone(),
        netns: netns.path().to_string_lossy().into_owned(),
        pod,
        host_ifname: host.name.clone(),
        host_ifindex: host.index,
        pod_mac,
        host_mac: host.mac,
        addresses: addresses.clone(),
        mtu: sizes.mtu,
        route_mtu: sizes.large.as_ref().map(|large| large.beyond),
        within: sizes.large.as_ref().map(|large| large.within.clone()).unwrap_or_default(),
        timeout_ms: u64::try_from(conf.attach_timeout.as_millis()).unwrap_or(u64::MAX),
    };
    match ask(&conf.agent_socket, &Request::Attach(Box::new(attach)), conf.attach_timeout + GRACE) {
        Ok(Reply::Attached(_)) => {}
        Ok(Reply::Failed { retry, message }) => {
            let code = if retry { code::TRY_AGAIN } else { code::REFUSED };
            return Err(Failure::new(code, "the agent could not attach the pod", message));
        }
        Ok(other) => return Err(unexpected(&other)),
        Err(error) => return Err(unreachable(conf, &error)),
    }
    let ends = Ends {
        host_name: &host.name,
        host_mac: host.mac,
        pod_name: &key.ifname,
        pod_mac,
        netns: netns.path(),
        mtu: sizes.mtu,
    };
    let gateways = veth::gateways(&addresses);
    Ok(types::add_answer(&conf.version, &ends, &addresses, &gateways, given.dns.as_ref()))
}

/// Asks for addresses until there are some that nobody had a minute ago (PM-D28), or only such are left.
///
/// `host-local` goes round its range from the address that it gave out last, so an address that was held for long and given back lately
/// may be the very next. Given back, it is behind that place, and another comes. One that comes a second time is the only one left.
fn rested(ipam: &Ipam<'_>, conf: &NetConf) -> Result<CniResult, Failure> {
    let began = Instant::now();
    let mut seen = BTreeSet::new();
    loop {
        let given = ipam.add()?;
        // Asked now: whoever gave back what we have got told the agent before.
        let resting = match ask(&conf.agent_socket, &Request::Status, QUICK) {
            Ok(Reply::Status { resting, .. }) => resting,
            Ok(other) => return Err(unexpected(&other)),
            Err(error) => return Err(unreachable(conf, &error)),
        };
        let tired: Vec<IpAddr> =
            given.ips.iter().map(|net| net.addr()).filter(|a| resting.contains(a)).collect();
        let is_new = tired.iter().any(|address| !seen.contains(address));
        seen.extend(tired);
        if !is_new || began.elapsed() > PATIENCE {
            return Ok(given);
        }
        ipam.del()?;
    }
}

/// Takes a container off the network. Everything that is already gone is fine.
pub fn del(environment: &Environment, conf: &NetConf) -> Result<(), Failure> {
    release(environment, conf, &environment.key()?)
}

fn release(environment: &Environment, conf: &NetConf, key: &AttachmentKey) -> Result<(), Failure> {
    if let Err(failure) = forget(key, conf) {
        eprintln!(
            "margay cni: {failure}; going on, the agent drops the endpoint when it finds the device gone"
        );
    }
    remove_pair(&mut Netlink::open()?, key, conf)?;
    // Last, so that nobody gets the address while the dataplane still knows it as this pod's.
    Ipam::find(environment, conf)?.del()
}

/// Says whether an attachment is as ADD left it.
pub fn check(environment: &Environment, conf: &NetConf) -> Result<(), Failure> {
    let key = environment.key()?;
    let previous = conf.previous.clone().ok_or_else(|| {
        Failure::new(
            code::CONFIG,
            "no prevResult in the network configuration",
            "CHECK needs the result of ADD",
        )
    })?;
    let previous = CniResult::parse(previous)?;
    let addresses: Vec<IpAddr> = previous.ips.iter().map(|net| net.addr()).collect();
    let differs = |what: String| Failure::new(code::DIFFERS, "the attachment is not as ADD left it", what);
    let name = veth::host_name(&key);
    let host =
        Netlink::open()?.link(&name)?.ok_or_else(|| differs(format!("the host end {name} is gone")))?;
    if veth::owner(&conf.name, &host).as_ref() != Some(&key) {
        return Err(differs(format!("the host end {name} belongs to somebody else")));
    }
    if !host.up || !host.no_arp {
        return Err(differs(format!("the host end {name} is down or has ARP switched on")));
    }
    let netns_path = environment.netns()?;
    let netns = NetNs::open(netns_path).map_err(|e| {
        Failure::new(
            code::CONTAINER,
            format!("no network namespace at {}", netns_path.display()),
            e.to_string(),
        )
    })?;
    if let Some(difference) = netns.within(|| veth::difference(&key, &addresses))?? {
        return Err(differs(difference));
    }
    let record = match ask(&conf.agent_socket, &Request::Check(key.clone()), QUICK) {
        Ok(Reply::Attached(record)) if addresses.iter().all(|a| record.addresses.contains(a)) => record,
        Ok(Reply::Attached(_)) => {
            return Err(differs("the agent knows the pod under other addresses".to_owned()));
        }
        Ok(Reply::Failed { message, .. }) => return Err(differs(message)),
        Ok(other) => return Err(unexpected(&other)),
        Err(error) => return Err(unreachable(conf, &error)),
    };
    if host.mtu != record.mtu {
        return Err(differs(format!("the host end {name} has the MTU {}, not {}", host.mtu, record.mtu)));
    }
    let large = record.route_mtu.map(|beyond| LargeRoutes { within: record.within.clone(), beyond });
    let difference = || veth::difference_in_size(&key.ifname, &addresses, record.mtu, large.as_ref());
    if let Some(difference) = netns.within(difference)?? {
        return Err(differs(difference));
    }
    Ipam::find(environment, conf)?.check()
}

/// Releases every attachment of this network that the runtime does not list as valid.
pub fn gc(environment: &Environment, conf: &NetConf) -> Result<(), Failure> {
    let valid = conf.valid.as_ref().ok_or_else(|| {
        Failure::new(
            code::CONFIG,
            "no cni.dev/valid-attachments in the network configuration",
            "GC needs the list",
        )
    })?;
    let valid: BTreeSet<&AttachmentKey> = valid.iter().collect();
    let mut known: BTreeSet<AttachmentKey> =
        Netlink::open()?.links()?.iter().filter_map(|link| veth::owner(&conf.name, link)).collect();
    match ask(&conf.agent_socket, &Request::List { network: conf.name.clone() }, QUICK) {
        Ok(Reply::Known { keys }) => known.extend(keys),
        Ok(other) => eprintln!("margay cni: {}", unexpected(&other)),
        Err(error) => eprintln!("margay cni: {}; going by the devices alone", unreachable(conf, &error)),
    }
    let mut first = None;
    for key in known.iter().filter(|key| !valid.contains(key)) {
        if let Err(failure) = release(&environment.about(key), conf, key) {
            first = first.or(Some(failure));
        }
    }
    let ipam = Ipam::find(environment, conf)?;
    if ipam.knows_gc() {
        ipam.gc()?;
    }
    first.map_or(Ok(()), Err)
}

/// Says whether ADD could be served now.
pub fn status(environment: &Environment, conf: &NetConf) -> Result<(), Failure> {
    let unavailable = |failure: Failure| Failure { code: code::UNAVAILABLE, ..failure };
    agent_status(conf).map_err(unavailable)?;
    let ipam = Ipam::find(environment, conf).map_err(unavailable)?;
    if ipam.knows_gc() { ipam.status() } else { Ok(()) }
}

/// What the agent says about the size of packets.
struct Mtus {
    default_mtu: u32,
    largest_mtu: Option<u32>,
    large: Option<LargePackets>,
}

/// Returns the agent's default MTU and what is beyond it within the node, or why it cannot attach anything now.
fn agent_status(conf: &NetConf) -> Result<Mtus, Failure> {
    match ask(&conf.agent_socket, &Request::Status, QUICK) {
        Ok(Reply::Status { not_ready: None, default_mtu, largest_mtu, large, .. }) => {
            Ok(Mtus { default_mtu, largest_mtu, large })
        }
        Ok(Reply::Status { not_ready: Some(reason), .. }) => {
            Err(Failure::new(code::TRY_AGAIN, "the agent is not ready", reason))
        }
        Ok(Reply::Failed { message, .. }) => {
            Err(Failure::new(code::TRY_AGAIN, "the agent is not ready", message))
        }
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(unreachable(conf, &error)),
    }
}

fn forget(key: &AttachmentKey, conf: &NetConf) -> Result<(), Failure> {
    match ask(&conf.agent_socket, &Request::Detach(key.clone()), QUICK) {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Failed { message, .. }) => {
            Err(Failure::new(code::TRY_AGAIN, "the agent could not release the pod", message))
        }
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(unreachable(conf, &error)),
    }
}

/// Deletes the pair, if its host end is there and nobody else's.
fn remove_pair(netlink: &mut Netlink, key: &AttachmentKey, conf: &NetConf) -> Result<(), Failure> {
    let Some(link) = netlink.link(&veth::host_name(key))? else { return Ok(()) };
    // Without an alias it is a pair whose ADD was killed between making and marking it.
    if link.alias.is_some() && veth::owner(&conf.name, &link).as_ref() != Some(key) {
        return Ok(());
    }
    match netlink.delete_link(link.index) {
        Err(e) if gone(&e) => Ok(()),
        other => Ok(other?),
    }
}

fn gone(error: &NetError) -> bool {
    error.is(libc::ENODEV)
}

fn unreachable(conf: &NetConf, error: &io::Error) -> Failure {
    Failure::new(
        code::TRY_AGAIN,
        format!("no answer from the agent at {}", conf.agent_socket.display()),
        format!("{error}; is the margay agent running on this node?"),
    )
}

fn unexpected(reply: &Reply) -> Failure {
    Failure::new(
        code::REFUSED,
        "the agent answered something else",
        format!("{reply:?}; use the plug-in and the agent of one release"),
    )
}
