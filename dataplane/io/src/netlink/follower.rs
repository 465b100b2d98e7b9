//! The thread that keeps a [`KernelView`] current, and the requests that keep next hops resolved.
//!
//! Order at start: join the multicast groups, then dump, so no change falls between the two. Afterwards: wait for an event, wait
//! a few milliseconds for its company, dump what is stale, publish if it differs, tell the listener.

use std::collections::BTreeSet;
use std::io::{PipeReader, PipeWriter};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
};
use nix::sys::time::TimeVal;

use super::view::{KernelView, NeighbourState};
use super::{Error, codec, decode};

/// How long to wait for the company of an event.
const COALESCE: Duration = Duration::from_millis(3);
/// After a dump we rest this many times as long as it took: following costs at most a fifth of a core.
const REST: u32 = 4;
/// How often next hops that were asked for are asked for again where the kernel does not do it by itself.
const REFRESH: Duration = Duration::from_secs(5);
/// How often a dump is tried when the tables change under it.
const DUMP_ATTEMPTS: u32 = 32;
/// How long the kernel may take for one answer.
const ANSWER: i64 = 5;

/// `NDA_FLAGS_EXT` and `NTF_EXT_MANAGED` of `linux/neighbour.h`, which libc has only for musl.
const NDA_FLAGS_EXT: u16 = 15;
const NTF_EXT_MANAGED: u32 = 1;

/// Which tables a dump has to read again.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Stale {
    links: bool,
    addresses: bool,
    routes: bool,
    neighbours: bool,
}

impl Stale {
    const ALL: Self = Self { links: true, addresses: true, routes: true, neighbours: true };
}

fn socket_error(what: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Socket { what, source: errno.into() }
}

fn refused(what: &'static str, errno: i32) -> Error {
    Error::Refused { what, source: std::io::Error::from_raw_os_error(errno) }
}

fn open(groups: u32, flags: SockFlag) -> Result<OwnedFd, Error> {
    let fd = socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags | SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .map_err(socket_error("open"))?;
    // Best effort: the ceiling without privilege is net.core.rmem_max, and an overflow only costs a full dump.
    let _ = socket::setsockopt(&fd, sockopt::RcvBuf, &(1 << 20));
    socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(socket_error("join groups"))?;
    Ok(fd)
}

/// The socket for questions, one at a time.
struct Requests {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    fn new() -> Result<Self, Error> {
        let fd = open(0, SockFlag::empty())?;
        socket::setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER, 0))
            .map_err(socket_error("set a time limit"))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; 64 << 10] })
    }

    fn send(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        attributes: &[(u16, &[u8])],
    ) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let flags = flags | libc::NLM_F_REQUEST as u16;
        let bytes = codec::request(kind, flags, self.sequence, fixed, attributes);
        socket::send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(socket_error("send"))?;
        Ok(())
    }

    /// Reads answers to the last question until it ends. `Ok(false)`: the table changed meanwhile, ask again.
    fn answers(&mut self, what: &'static str, mut each: impl FnMut(&[u8])) -> Result<bool, Error> {
        let mut steady = true;
        loop {
            let length = match socket::recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other.map_err(socket_error("receive"))?,
            };
            for message in codec::messages(&self.buffer[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                steady &= message.flags & libc::NLM_F_DUMP_INTR as u16 == 0;
                let code = || codec::u32_at(message.payload, 0).map_or(0, |code| -(code as i32));
                match i32::from(message.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => match code() {
                        0 => return Ok(steady),
                        errno => return Err(refused(what, errno)),
                    },
                    _ => each(message.payload),
                }
            }
        }
    }

    fn dump<T>(
        &mut self,
        kind: u16,
        fixed: &[u8],
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(kind, libc::NLM_F_DUMP as u16, fixed, &[])?;
            let mut out = Vec::new();
            if self.answers("dump its tables", |payload| out.extend(decode(payload)))? {
                return Ok(out);
            }
        }
        Err(Error::Unsettled { attempts: DUMP_ATTEMPTS })
    }

    /// Reads the stale tables into `view`.
    fn read(&mut self, view: &mut KernelView, stale: Stale) -> Result<(), Error> {
        if stale.links {
            view.links = self.dump(libc::RTM_GETLINK, &[0; 16], decode::link)?.into_iter().collect();
        }
        if stale.addresses {
            view.addresses = self.dump(libc::RTM_GETADDR, &[0; 8], decode::address)?.into_iter().collect();
        }
        if stale.neighbours {
            view.neighbours =
                self.dump(libc::RTM_GETNEIGH, &[0; 12], decode::neighbour)?.into_iter().collect();
        }
        if stale.routes {
            view.routes.clear();
            view.warnings.clear();
            for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
                let mut fixed = [0; 12];
                fixed[0] = family;
                // EOPNOTSUPP: this kernel was built without the family, or without rules.
                let missing = |e: &Error| matches!(e, Error::Refused { source, .. } if source.raw_os_error() == Some(libc::EOPNOTSUPP));
                for entry in match self.dump(libc::RTM_GETROUTE, &fixed, decode::route) {
                    Err(e) if missing(&e) => Vec::new(),
                    other => other?,
                } {
                    match entry {
                        decode::RouteEntry::Route(route) => _ = view.routes.insert(route),
                        decode::RouteEntry::Warning(warning) => _ = view.warnings.insert(warning),
                        decode::RouteEntry::Irrelevant => {}
                    }
                }
                match self.dump(libc::RTM_GETRULE, &fixed, decode::rule) {
                    Err(e) if missing(&e) => {}
                    other => view.warnings.extend(other?),
                }
            }
        }
        Ok(())
    }

    fn neighbour(&mut self, add: bool, ifindex: u32, ip: IpAddr) -> Result<(), Error> {
        let mut fixed = [0; 12];
        fixed[0] = if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 };
        fixed[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        let (v4, v6);
        let destination: &[u8] = match ip {
            IpAddr::V4(ip) => {
                v4 = ip.octets();
                &v4
            }
            IpAddr::V6(ip) => {
                v6 = ip.octets();
                &v6
            }
        };
        let ack = libc::NLM_F_ACK as u16;
        if add {
            // A kernel before 5.16 steps over NDA_FLAGS_EXT and obeys NTF_USE, so one request serves both.
            fixed[10] = libc::NTF_USE;
            let managed = NTF_EXT_MANAGED.to_ne_bytes();
            let attributes = [(libc::NDA_DST, destination), (NDA_FLAGS_EXT, &managed[..])];
            self.send(libc::RTM_NEWNEIGH, ack | libc::NLM_F_CREATE as u16, &fixed, &attributes)?;
            self.answers("resolve a next hop", |_| {})?;
        } else {
            self.send(libc::RTM_DELNEIGH, ack, &fixed, &[(libc::NDA_DST, destination)])?;
            self.answers("forget a next hop", |_| {})?;
        }
        Ok(())
    }
}

/// What the thread and the callers share.
struct Shared {
    view: ArcSwap<KernelView>,
    requests: Mutex<Requests>,
    /// Next hops entered by us.
    wanted: Mutex<BTreeSet<(u32, IpAddr)>>,
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeSet<(u32, IpAddr)>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks again for what is not resolved (a link that went down took its entries along), and on kernels without managed
    /// entries for everything, which makes the kernel confirm what has grown stale.
    fn refresh(&self, everything: bool) {
        let view = self.view.load_full();
        let mut wanted = self.wanted();
        wanted.retain(|(ifindex, ip)| {
            let state = view.neighbours.get(&(*ifindex, *ip)).map(|n| n.state);
            let settled = match state {
                Some(NeighbourState::Permanent) => true,
                Some(NeighbourState::Usable) => !everything,
                _ => false,
            };
            if settled {
                return true;
            }
            let asked = self.requests().neighbour(true, *ifindex, *ip);
            // The device is gone, and its index is not given to another soon: nothing is left to ask for.
            !matches!(asked, Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENODEV))
        });
    }
}

/// Follows the kernel of the network namespace in which it was started.
pub struct Follower {
    shared: Arc<Shared>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Subscribes, reads everything once and starts the thread. `notify` is called on that thread after every change of the
    /// view; it is not called for the first one, which [`Follower::current`] has as soon as this returns.
    ///
    /// # Errors
    ///
    /// When the sockets cannot be opened or the first dump fails.
    pub fn start(notify: impl Fn() + Send + 'static) -> Result<Self, Error> {
        let groups = [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_NEIGH,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV4_RULE,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV6_ROUTE,
            libc::RTNLGRP_IPV6_RULE,
            libc::RTNLGRP_NEXTHOP,
        ];
        let events =
            open(groups.iter().fold(0, |mask, group| mask | 1 << (group - 1)), SockFlag::SOCK_NONBLOCK)?;
        let mut requests = Requests::new()?;
        let mut view = KernelView::default();
        requests.read(&mut view, Stale::ALL)?;
        for warning in &view.warnings {
            tracing::warn!("{warning}");
        }
        let shared = Arc::new(Shared {
            view: ArcSwap::from_pointee(view),
            requests: Mutex::new(requests),
            wanted: Mutex::default(),
        });
        let (stopped, stop) = std::io::pipe()
            .map_err(|source| Error::Socket { what: "make the pipe that stops it", source })?;
        let thread = std::thread::Builder::new()
            .name("netlink".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || follow(&shared, &events, &stopped, notify)
            })
            .map_err(|source| Error::Socket { what: "start the thread", source })?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns the latest view.
    pub fn current(&self) -> Arc<KernelView> {
        self.shared.view.load_full()
    }

    /// Makes the kernel resolve a next hop and keep it resolved. Asking twice changes nothing; an entry that was set by hand
    /// is left as it is.
    ///
    /// # Errors
    ///
    /// When the device does not exist or the kernel refuses.
    pub fn resolve(&self, ifindex: u32, ip: IpAddr) -> Result<(), Error> {
        let mut wanted = self.shared.wanted();
        if wanted.contains(&(ifindex, ip)) {
            return Ok(());
        }
        // A request on a permanent entry would take its permanence away.
        let known = self.current().neighbours.get(&(ifindex, ip)).map(|n| n.state);
        if known != Some(NeighbourState::Permanent) {
            self.shared.requests().neighbour(true, ifindex, ip)?;
            wanted.insert((ifindex, ip));
        }
        Ok(())
    }

    /// Ends what [`Follower::resolve`] began: removes the entry if it is ours.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; an entry or device that is already gone is no error.
    pub fn forget(&self, ifindex: u32, ip: IpAddr) -> Result<(), Error> {
        if !self.shared.wanted().remove(&(ifindex, ip)) {
            return Ok(());
        }
        let gone = [Some(libc::ENOENT), Some(libc::ENODEV)];
        match self.shared.requests().neighbour(false, ifindex, ip) {
            Err(Error::Refused { source, .. }) if gone.contains(&source.raw_os_error()) => Ok(()),
            other => other,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(
                "the netlink thread had panicked; the node's view of routes was no longer current"
            );
        }
        let ours = self.shared.wanted().clone();
        for (ifindex, ip) in ours {
            if let Err(error) = self.forget(ifindex, ip) {
                tracing::warn!("{error}");
            }
        }
    }
}

/// Reads every waiting event and says which tables they make stale.
fn drain(events: &OwnedFd, buffer: &mut [u8]) -> Stale {
    let mut stale = Stale::default();
    loop {
        let length = match socket::recv(events.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => return stale,
            // ENOBUFS: events were lost.
            Err(_) => return Stale::ALL,
        };
        for message in codec::messages(&buffer[..length]) {
            match message.kind {
                // Routes go down with a link without a message of their own.
                libc::RTM_NEWLINK | libc::RTM_DELLINK => stale = Stale::ALL,
                libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                    stale.addresses = true;
                    stale.routes = true;
                }
                libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => stale.neighbours = true,
                _ => stale.routes = true,
            }
        }
    }
}

/// Returns whether the kernel has managed neighbours (5.16).
fn has_managed_neighbours() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(16))
}

fn follow(shared: &Shared, events: &OwnedFd, stopped: &PipeReader, notify: impl Fn()) {
    let mut buffer = vec![0; 64 << 10];
    let managed = has_managed_neighbours();
    let mut refreshed = Instant::now();
    let mut stale = Stale::default();
    loop {
        let mut ready =
            [PollFd::new(events.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        let retry = if stale == Stale::default() { REFRESH } else { Duration::from_millis(100) };
        let wait = retry.min((refreshed + REFRESH).saturating_duration_since(Instant::now()));
        match nix::poll::poll(&mut ready, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return tracing::error!("cannot wait for netlink events: {errno}"),
        }
        if ready[1].any().unwrap_or(false) {
            return;
        }
        if refreshed.elapsed() >= REFRESH {
            shared.refresh(!managed);
            refreshed = Instant::now();
        }
        if ready[0].any().unwrap_or(false) {
            std::thread::sleep(COALESCE);
        } else if stale == Stale::default() {
            continue;
        }
        let fresh = drain(events, &mut buffer);
        stale = Stale {
            links: stale.links | fresh.links,
            addresses: stale.addresses | fresh.addresses,
            routes: stale.routes | fresh.routes,
            neighbours: stale.neighbours | fresh.neighbours,
        };
        let began = Instant::now();
        let before = shared.view.load_full();
        let mut view = KernelView::clone(&before);
        match shared.requests().read(&mut view, stale) {
            Ok(()) => stale = Stale::default(),
            Err(error) => {
                tracing::warn!("{error}; reading the kernel's tables again");
                continue;
            }
        }
        if view != *before {
            for warning in view.warnings.difference(&before.warnings) {
                tracing::warn!("{warning}");
            }
            shared.view.store(Arc::new(view));
            notify();
        }
        std::thread::sleep((began.elapsed() * REST).min(Duration::from_secs(1)));
    }
}
