//! Answers the CNI plug-in: one thread per connection, the list behind one lock, the slow work outside it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::protocol::{Attach, AttachmentKey, LargePackets, Reply, Request, read_line, write_line};
use super::registry::{EndpointRecord, Registry};

/// More requests than this at once are told to come back.
const MOST_AT_ONCE: usize = 64;

/// A plug-in that does not send its request within this time is cut off.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// No plug-in may wait longer than this for one attachment.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// What an attachment means for the dataplane.
pub trait AttachHooks: Send + Sync {
    /// Says why nothing can be attached at the moment.
    fn ready(&self) -> Result<(), String>;

    /// Returns the MTU for a pod whose network configuration names none.
    fn default_mtu(&self) -> u32;

    /// Returns the largest MTU whose packets a pod's port takes; `None` when that is not known.
    fn largest_mtu(&self) -> Option<u32> {
        None
    }

    /// Returns how large its packets to pods of this node may be, when that is more.
    fn large_packets(&self) -> Option<LargePackets> {
        None
    }

    /// Takes the host end over: program on while the device is down, device up, socket, port; returns when the pod's policy is in force
    /// (PM-28 row 7), or with an error once `deadline` has passed. After an error [`AttachHooks::detach`] is called.
    fn attach(&self, record: &EndpointRecord, deadline: Instant) -> Result<(), String>;

    /// Lets go of everything [`AttachHooks::attach`] made or half made. The device may be gone already.
    fn detach(&self, record: &EndpointRecord);

    /// Says what is wrong with an attachment.
    fn check(&self, record: &EndpointRecord) -> Result<(), String>;
}

/// Listens at `path`, mode 0600, in place of a socket left behind by an earlier process.
pub fn bind_private(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another process already listens at {}", path.display()),
        ));
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A running server; dropping it stops it.
pub struct CniServer {
    waker: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl CniServer {
    /// Stops accepting and waits for the accepting thread. Requests under way finish by themselves.
    pub fn stop(&mut self) {
        drop(self.waker.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for CniServer {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Shared {
    registry: Arc<Mutex<Registry>>,
    hooks: Arc<dyn AttachHooks>,
    keys: KeyLocks,
    under_way: AtomicUsize,
}

/// One lock per attachment under way: what is asked for one key happens in order.
#[derive(Default)]
struct KeyLocks(Mutex<BTreeMap<AttachmentKey, Arc<Mutex<()>>>>);

impl KeyLocks {
    fn of(&self, key: &AttachmentKey) -> Arc<Mutex<()>> {
        let mut locks = locked(&self.0);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(key.clone()).or_default())
    }
}

/// Answers requests at `listener` on threads of its own, in the network namespace of the calling thread.
pub fn serve_cni(
    listener: UnixListener,
    registry: Arc<Mutex<Registry>>,
    hooks: Arc<dyn AttachHooks>,
) -> io::Result<CniServer> {
    listener.set_nonblocking(true)?;
    let (waker, asleep) = UnixStream::pair()?;
    let shared =
        Arc::new(Shared { registry, hooks, keys: KeyLocks::default(), under_way: AtomicUsize::new(0) });
    let thread = thread::Builder::new().name("margay-cni".into()).spawn(move || {
        loop {
            let mut fds = [
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(asleep.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the CNI socket cannot be polled any more");
                    return;
                }
            }
            if fds[1].revents().is_some_and(|events| !events.is_empty()) {
                return;
            }
            match listener.accept() {
                Ok((stream, _)) => accept(&shared, stream),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "a CNI request could not be accepted");
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    })?;
    Ok(CniServer { waker: Some(waker), thread: Some(thread) })
}

fn accept(shared: &Arc<Shared>, mut stream: UnixStream) {
    if shared.under_way.fetch_add(1, Ordering::Relaxed) >= MOST_AT_ONCE {
        shared.under_way.fetch_sub(1, Ordering::Relaxed);
        let _ = write_line(&mut stream, &failed(true, format!("{MOST_AT_ONCE} requests are under way")));
        return;
    }
    let for_thread = Arc::clone(shared);
    let spawned = thread::Builder::new().name("margay-cni-req".into()).spawn(move || {
        if let Err(error) = converse(&for_thread, stream) {
            tracing::debug!(%error, "a CNI request broke off");
        }
        for_thread.under_way.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = spawned {
        shared.under_way.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!(%error, "no thread for a CNI request");
    }
}

fn converse(shared: &Shared, mut stream: UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(REQUEST_TIME))?;
    stream.set_write_timeout(Some(REQUEST_TIME))?;
    let peer = getsockopt(&stream, PeerCredentials)?;
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        return write_line(
            &mut stream,
            &failed(false, format!("user {} may not change the network", peer.uid())),
        );
    }
    let request: Request = match read_line(&mut BufReader::new(&stream)) {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        Err(error) => {
            let reply = failed(
                false,
                format!("not a request this agent knows ({error}); use the plug-in of the same release"),
            );
            return write_line(&mut stream, &reply);
        }
    };
    let reply = answer(shared, request);
    write_line(&mut stream, &reply)
}

fn answer(shared: &Shared, request: Request) -> Reply {
    match request {
        Request::Status => Reply::Status {
            not_ready: shared.hooks.ready().err(),
            default_mtu: shared.hooks.default_mtu(),
            largest_mtu: shared.hooks.largest_mtu(),
            large: shared.hooks.large_packets(),
            resting: locked(&shared.registry).resting(SystemTime::now()),
        },
        Request::Attach(attach) => attach_one(shared, &attach),
        Request::Detach(key) => {
            let lock = shared.keys.of(&key);
            let _in_order = locked(&lock);
            let removed = locked(&shared.registry).remove(&key);
            match removed {
                Ok(Some(record)) => {
                    shared.hooks.detach(&record);
                    tracing::info!(pod = %name_of(&record), device = %record.host_ifname, "endpoint released");
                    Reply::Done
                }
                Ok(None) => Reply::Done,
                Err(error) => failed(true, error.to_string()),
            }
        }
        Request::Check(key) => {
            let Some(record) = locked(&shared.registry).get(&key).cloned() else {
                return failed(
                    false,
                    format!("no endpoint is registered for {}/{}", key.container_id, key.ifname),
                );
            };
            if !record.device_exists() {
                return failed(false, format!("the device {} is gone", record.host_ifname));
            }
            match shared.hooks.check(&record) {
                Ok(()) => Reply::Attached(Box::new(record)),
                Err(message) => failed(false, message),
            }
        }
        Request::List { network } => {
            let registry = locked(&shared.registry);
            let keys = registry.records().filter(|r| r.network == network).map(|r| r.key.clone()).collect();
            Reply::Known { keys }
        }
    }
}

fn attach_one(shared: &Shared, attach: &Attach) -> Reply {
    let deadline = Instant::now() + Duration::from_millis(attach.timeout_ms).min(LONGEST_WAIT);
    let lock = shared.keys.of(&attach.key);
    let _in_order = locked(&lock);
    if let Err(reason) = shared.hooks.ready() {
        return failed(true, reason);
    }
    let earlier = locked(&shared.registry).get(&attach.key).cloned();
    if let Some(record) = earlier {
        // The same pair again is a lost reply; another pair means that the first was deleted behind our back.
        if record.host_ifindex == attach.host_ifindex
            && record.addresses == attach.addresses
            && shared.hooks.check(&record).is_ok()
        {
            return Reply::Attached(Box::new(record));
        }
        let removed = locked(&shared.registry).remove(&attach.key);
        shared.hooks.detach(&record);
        if let Err(error) = removed {
            return failed(true, error.to_string());
        }
    }
    let inserted = locked(&shared.registry).insert(attach);
    let (record, gone) = match inserted {
        Ok(inserted) => inserted,
        Err(error) => return failed(true, error.to_string()),
    };
    gone.iter().for_each(|r| shared.hooks.detach(r));
    match shared.hooks.attach(&record, deadline) {
        Ok(()) => {
            tracing::info!(pod = %name_of(&record), device = %record.host_ifname, port = record.port.0, "endpoint attached");
            Reply::Attached(Box::new(record))
        }
        Err(message) => {
            shared.hooks.detach(&record);
            if let Err(error) = locked(&shared.registry).remove(&attach.key) {
                tracing::error!(%error, "a failed attachment stays in the list until the agent restarts");
            }
            tracing::warn!(pod = %name_of(&record), device = %record.host_ifname, %message, "endpoint refused");
            failed(true, message)
        }
    }
}

fn failed(retry: bool, message: String) -> Reply {
    Reply::Failed { retry, message }
}

fn name_of(record: &EndpointRecord) -> String {
    format!("{}/{}", record.pod.namespace, record.pod.name)
}

/// A panic elsewhere does not make the list unusable: it changes only by whole values.
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
