//! The agent's end of the admin socket.
//!
//! Only root may ask: the socket has mode 0600 from the moment it can be found, and the kernel's word on who connected is checked
//! again (`SO_PEERCRED`). One thread per connection, few connections, and a client that stops reading is cut off: nothing here can
//! hold up the packet path, which is never waited for.

use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use margay_core::worker::Captured;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::protocol::{Reply, Request};
use super::report::{DropFilter, NodeView};

/// Connections served at once.
const MAX_CONNECTIONS: usize = 32;
/// Longest request line in bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// How long a client may leave us waiting for a line or for room.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the admin socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Another agent answers there.
    #[error(
        "admin socket {path}: another agent is answering on it; stop that agent or choose another path with --socket"
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("admin socket {path}: cannot {what}; check that the directory is writable for root")]
    Refused {
        /// The path.
        path: PathBuf,
        /// Which step.
        what: &'static str,
        /// Its reason.
        source: io::Error,
    },
}

/// A served admin socket; dropping it removes the socket and ends the accepting thread.
#[derive(Debug)]
pub struct AdminServer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl AdminServer {
    /// Begins to answer on `path`. A stale socket of a dead agent is replaced.
    ///
    /// Errors: [`AdminError::InUse`] when a living agent answers there, [`AdminError::Refused`] with the failing step.
    pub fn start(path: &Path, view: Arc<dyn NodeView>) -> Result<Self, AdminError> {
        let refused = |what| move |source| AdminError::Refused { path: path.to_owned(), what, source };
        if UnixStream::connect(path).is_ok() {
            return Err(AdminError::InUse { path: path.to_owned() });
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(refused("create its directory"))?;
        }
        // Bound under a name of its own and renamed when its mode is right: nobody ever finds it open.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(refused("bind it"))?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))
            .map_err(refused("set its mode to 0600"))?;
        fs::rename(&fresh, path).map_err(refused("put it in its place"))?;

        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("margay-admin".to_owned())
            .spawn(move || accept(&listener, &view, &stopped))
            .map_err(refused("start its thread"))?;
        Ok(Self { path: path.to_owned(), stop, thread: Some(thread) })
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the accepting thread, which then sees the flag.
        let woken = UnixStream::connect(&self.path).is_ok();
        let _ = fs::remove_file(&self.path);
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &UnixListener, view: &Arc<dyn NodeView>, stop: &Arc<AtomicBool>) {
    let connections = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let Ok(stream) = stream else {
            // Out of descriptors, most likely: wait for some to come back instead of spinning.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if connections.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
            connections.fetch_sub(1, Ordering::AcqRel);
            let _ = refuse(&stream, "too many admin connections; close one and try again");
            continue;
        }
        let (view, stop, leaving) = (Arc::clone(view), Arc::clone(stop), Arc::clone(&connections));
        let spawned = std::thread::Builder::new().name("margay-admin-c".to_owned()).spawn(move || {
            if let Err(error) = serve(&stream, view.as_ref(), &stop) {
                tracing::debug!(%error, "admin connection ended");
            }
            leaving.fetch_sub(1, Ordering::AcqRel);
        });
        if spawned.is_err() {
            connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn refuse(stream: &UnixStream, message: &str) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    send(&mut &*stream, &Reply::Error { message: message.to_owned() })
}

fn send(out: &mut impl Write, reply: &Reply) -> io::Result<()> {
    serde_json::to_writer(&mut *out, reply)?;
    out.write_all(b"\n")
}

fn serve(stream: &UnixStream, view: &dyn NodeView, stop: &AtomicBool) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let asker = getsockopt(stream, PeerCredentials).map_err(io::Error::from)?.uid();
    if asker != 0 && asker != nix::unistd::geteuid().as_raw() {
        return refuse(stream, "only root may ask the agent; use sudo");
    }
    let mut line = String::new();
    BufReader::new(stream.take(MAX_REQUEST)).read_line(&mut line)?;
    if line.trim().is_empty() {
        return Ok(());
    }
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => return refuse(stream, &format!("request not understood: {error}")),
    };
    let mut out = BufWriter::new(stream);
    match request {
        Request::Status => send(&mut out, &Reply::Status(Box::new(view.status())))?,
        Request::Problems => {
            for problem in view.status().problems {
                send(&mut out, &Reply::Problem(problem))?;
            }
        }
        Request::Flows { filter } => {
            for flow in view.flows(&filter).into_iter().filter(|flow| filter.matches(flow)).take(filter.limit)
            {
                send(&mut out, &Reply::Flow(flow))?;
            }
        }
        Request::Pods { names } => match view.pods(&names) {
            Ok(pods) => send(&mut out, &Reply::Pods(pods))?,
            Err(message) => {
                send(&mut out, &Reply::Error { message })?;
                return out.flush();
            }
        },
        Request::Explain { probe } => match view.explain(&probe) {
            Ok(explanation) => send(&mut out, &Reply::Explanation(Box::new(explanation)))?,
            Err(message) => {
                send(&mut out, &Reply::Error { message })?;
                return out.flush();
            }
        },
        Request::Release { what } => match view.release(&what) {
            Ok(device) => send(&mut out, &Reply::Released { device })?,
            Err(message) => {
                send(&mut out, &Reply::Error { message })?;
                return out.flush();
            }
        },
        Request::Capture { filter } => match view.watch(&filter) {
            Ok((id, packets)) => {
                let streamed = stream_packets(stream, &mut out, view, stop, &packets);
                view.end_watch(id);
                streamed?;
            }
            Err(message) => {
                send(&mut out, &Reply::Error { message })?;
                return out.flush();
            }
        },
        Request::Drops { follow, filter } => stream_drops(stream, &mut out, view, stop, follow, &filter)?,
    }
    send(&mut out, &Reply::End {})?;
    out.flush()
}

/// Sends the latest drops and, when `follow`, later ones until the client hangs up or the server stops.
fn stream_drops(
    stream: &UnixStream,
    out: &mut impl Write,
    view: &dyn NodeView,
    stop: &AtomicBool,
    follow: bool,
    filter: &DropFilter,
) -> io::Result<()> {
    let (recent, live) = view.drops();
    for report in recent.into_iter().filter(|report| filter.matches(report)) {
        send(out, &Reply::Drop(report))?;
    }
    out.flush()?;
    while follow && !stop.load(Ordering::Acquire) {
        match live.recv_timeout(Duration::from_millis(200)) {
            Ok(first) => {
                for report in
                    std::iter::once(first).chain(live.try_iter()).filter(|report| filter.matches(report))
                {
                    send(out, &Reply::Drop(report))?;
                }
                out.flush()?;
            }
            Err(RecvTimeoutError::Timeout) if has_hung_up(stream) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
    Ok(())
}

/// Sends packets until the client hangs up or the server stops.
fn stream_packets(
    stream: &UnixStream,
    out: &mut impl Write,
    view: &dyn NodeView,
    stop: &AtomicBool,
    packets: &Receiver<Captured>,
) -> io::Result<()> {
    send(out, &Reply::Watching {})?;
    out.flush()?;
    while !stop.load(Ordering::Acquire) {
        match packets.recv_timeout(Duration::from_millis(200)) {
            Ok(first) => {
                let batch = std::iter::once(first).chain(packets.try_iter().take(1_000)).collect();
                for report in view.tell(batch) {
                    send(out, &Reply::Packet(Box::new(report)))?;
                }
            }
            Err(RecvTimeoutError::Timeout) if has_hung_up(stream) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => send(out, &Reply::Watching {})?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        out.flush()?;
    }
    Ok(())
}

/// A client sends nothing after its request, so a readable end of file means that it went away.
fn has_hung_up(stream: &UnixStream) -> bool {
    use nix::sys::socket::{MsgFlags, recv};
    use std::os::fd::AsRawFd;
    let mut byte = [0];
    matches!(recv(stream.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT), Ok(0))
}
