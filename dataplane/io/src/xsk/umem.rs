//! The packet memory as the kernel knows it, and the sockets bound to it.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Once, OnceLock};
use std::time::{Duration, Instant};

use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue, Umem};

use super::{HEADROOM, MAX_FRAMES, RING_SIZE, XskError, least_for};
use crate::rings::LEAST;

/// Bytes before what the MTU counts: Ethernet and one tag.
const LINK_HEADERS: u32 = 18;

fn source_of(error: &dyn std::error::Error) -> io::Error {
    let code = error.source().and_then(|e| e.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    code.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

/// The packet memory, before workers have it. Cloned handles name the same memory.
#[derive(Debug, Clone)]
pub struct UmemHandle {
    pub(super) umem: Umem,
    pub(super) chunk_size: u32,
    chunks: u32,
    /// Whether packets of several frames are asked for, and what the first bind made of it.
    wants_several: bool,
    takes_several: Arc<OnceLock<bool>>,
}

/// Every chunk of a new UMEM, all free. Goes to [`super::Store::new`] once.
#[derive(Debug)]
pub struct Chunks(pub(super) Vec<FrameDesc>);

impl UmemHandle {
    /// Registers packet memory with the kernel, in the network namespace of the calling thread.
    ///
    /// Errors: sizes that AF_XDP does not take; no permission; too little memory.
    pub fn new(chunk_size: u32, chunks: u32) -> Result<(Self, Chunks), XskError> {
        let layout = |why: String| XskError::Layout { chunk_size, chunks, why };
        let count = NonZeroU32::new(chunks)
            .filter(|c| c.get() >= 64)
            .ok_or_else(|| layout("too few chunks".to_owned()))?;
        if chunk_size > 4096 {
            return Err(layout("a chunk is larger than a page".to_owned()));
        }
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(chunk_size).map_err(|e| layout(e.to_string()))?)
            .fill_queue_size(QueueSize::new(RING_SIZE).map_err(|e| layout(e.to_string()))?)
            .comp_queue_size(QueueSize::new(RING_SIZE).map_err(|e| layout(e.to_string()))?)
            .build()
            .map_err(|e| layout(e.to_string()))?;
        let (umem, descriptors) = Umem::new(config, count, false).map_err(|e| XskError::Umem {
            bytes: u64::from(chunk_size) * u64::from(chunks),
            source: source_of(&e),
        })?;
        let takes_several = Arc::new(OnceLock::new());
        Ok((Self { umem, chunk_size, chunks, wants_several: true, takes_several }, Chunks(descriptors)))
    }

    /// Has the sockets of this memory take packets of one frame only. Say so before the first bind.
    pub fn of_single_frames(mut self) -> Self {
        self.wants_several = false;
        self
    }

    /// Returns whether packets of several frames come and go through the sockets of this memory: from Linux 6.6 on. `false` before the
    /// first bind, which finds it out.
    pub fn takes_several_frames(&self) -> bool {
        self.takes_several.get().copied().unwrap_or(false)
    }

    /// Returns the largest packet, from the Ethernet header on, that its sockets receive and send.
    pub fn largest_packet(&self) -> u32 {
        let frames = if self.takes_several_frames() { MAX_FRAMES as u32 } else { 1 };
        frames * self.chunk_size.saturating_sub(HEADROOM)
    }

    /// Returns how few chunks to receive into take every packet of up to `packet` bytes, from the Ethernet header on.
    pub fn least_for(&self, packet: u32) -> usize {
        match self.takes_several_frames() {
            true => least_for(packet, self.chunk_size.saturating_sub(HEADROOM)),
            false => LEAST,
        }
    }

    /// Returns the bytes of all chunks.
    pub fn bytes(&self) -> u64 {
        u64::from(self.chunk_size) * u64::from(self.chunks)
    }

    /// Returns the number of chunks.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Binds a socket to a queue of a device. The first socket of a UMEM is the kernel's anchor for all later ones: bind it to a
    /// device that lives as long as the UMEM does.
    ///
    /// Right after another socket of that queue was closed the kernel answers EBUSY for a while, as it frees rings later; that and
    /// EBADF are tried again until `patience` is over.
    ///
    /// Errors: no such device or queue (EINVAL, ENODEV); the anchor's device is gone (EBADF for ever); no permission.
    pub fn bind(&self, device: &str, queue: u32, patience: Duration) -> Result<XskSocket, XskError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.bind_once(device, queue) {
                Ok(socket) => return Ok(socket),
                Err(source) => {
                    let passing = matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EBADF));
                    if passing && Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    }
                    let hint = match source.raw_os_error() {
                        Some(libc::EBUSY) => "another program has the queue; stop it",
                        Some(libc::EBADF) => {
                            "the first device of this packet memory is gone; restart the agent"
                        }
                        Some(libc::EPERM) => "run with CAP_NET_RAW and CAP_BPF",
                        Some(libc::EINVAL) => "the device has no such queue, or cannot take AF_XDP sockets",
                        _ => "check that the device exists in this network namespace",
                    };
                    return Err(XskError::Bind { device: device.to_owned(), queue, source, hint });
                }
            }
        }
    }

    /// The first socket of a UMEM says for all whether packets may have several frames; the kernel takes no such word of a later one.
    fn bind_once(&self, device: &str, queue: u32) -> io::Result<XskSocket> {
        if self.takes_several.get().is_some() || !self.wants_several {
            let bound = self.bind_as(device, queue, self.takes_several_frames())?;
            self.takes_several.get_or_init(|| false);
            return Ok(bound);
        }
        let refused = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
        let mut first = self.bind_as(device, queue, true);
        // A kernel before 6.6 does not know the flag. A later one has another reason, which may pass, and this decides for all sockets.
        if first.as_ref().is_err_and(refused) && knows_several_frames() {
            std::thread::sleep(Duration::from_millis(20));
            first = self.bind_as(device, queue, true);
        }
        let (bound, several) = match first {
            Err(error) if refused(&error) => {
                let bound = self.bind_as(device, queue, false)?;
                if knows_several_frames() {
                    tracing::warn!(
                        device,
                        %error,
                        "the kernel refused packets of several frames, though it should know them: ports take packets of one frame until the agent is started again"
                    );
                }
                (bound, false)
            }
            other => (other?, true),
        };
        self.takes_several.get_or_init(|| several);
        Ok(bound)
    }

    fn bind_as(&self, device: &str, queue: u32, several: bool) -> io::Result<XskSocket> {
        let interface: Interface = device.parse().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let size = QueueSize::new(RING_SIZE).map_err(|e| io::Error::other(e.to_string()))?;
        let mut flags = BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP;
        flags.set(BindFlags::XDP_USE_SG, several);
        let config = SocketConfig::builder()
            .rx_queue_size(size)
            .tx_queue_size(size)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(flags)
            .build();
        // SAFETY: the condition is about a second socket on one (device, queue) without INHIBIT_PROG_LOAD; that flag is set.
        let made =
            unsafe { Socket::new(config, &self.umem, &interface, queue) }.map_err(|e| source_of(&e))?;
        match made {
            (tx, rx, Some((fill, completion))) => {
                let least = match several {
                    true => least_for(mtu_of(device)? + LINK_HEADERS, self.chunk_size - HEADROOM),
                    false => LEAST,
                };
                let socket = XskSocket { tx, rx, fill, completion, several, least };
                make_room(&socket);
                Ok(socket)
            }
            // This process holds that queue already, and its rings with it.
            (_, _, None) => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        }
    }
}

/// Asks the kernel for a device's MTU.
fn mtu_of(device: &str) -> io::Result<u32> {
    let asker = UnixDatagram::unbound()?;
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let last = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..last].iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request takes an `ifreq` with a name that ends in a zero, and answers in it.
    let answer = unsafe { libc::ioctl(asker.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel wrote this member.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u32::try_from(mtu).unwrap_or(0))
}

/// Lets as much be under way as the transmit ring holds. The kernel charges what it copies to the socket, and by itself would have no more
/// than three of the largest packets on their way to a device that does not take them at once.
fn make_room(socket: &XskSocket) {
    let bytes = RING_SIZE as libc::c_int * 4096;
    // SAFETY: the option's value is an int, which the kernel only reads.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            (&raw const bytes).cast(),
            std::mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    static SAID: Once = Once::new();
    if answer < 0 {
        let error = io::Error::last_os_error();
        SAID.call_once(|| {
            tracing::warn!(
                %error,
                "sockets keep the kernel's own send buffer: of bursts of large packets to one device most are not sent; the agent needs CAP_NET_ADMIN"
            );
        });
    }
}

/// Returns whether the running kernel should know packets of several frames: 6.6 and later. By its release, which is a hint and no proof.
fn knows_several_frames() -> bool {
    let Ok(names) = nix::sys::utsname::uname() else { return false };
    let release = names.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0u32), numbers.next().unwrap_or(0u32)) >= (6, 6)
}

/// A bound socket and its rings, on the way between control side and worker. Dropping it closes the socket, which waits for the
/// kernel: do that on the control side.
#[derive(Debug)]
pub struct XskSocket {
    pub(super) tx: TxQueue,
    pub(super) rx: RxQueue,
    pub(super) fill: FillQueue,
    pub(super) completion: CompQueue,
    /// Whether it takes packets of several frames.
    pub(super) several: bool,
    /// How few chunks to receive into still take every packet of its device; see [`Rings::least`](crate::rings::Rings::least).
    pub(super) least: usize,
}

impl XskSocket {
    /// Returns how many chunks it needs to receive into, even while it is silent.
    pub fn least(&self) -> usize {
        self.least
    }
}

impl AsRawFd for XskSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.rx.fd().as_raw_fd()
    }
}

/// What the kernel counts per socket (`XDP_STATISTICS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketStatistics {
    /// Packets lost because the kernel had fewer chunks to receive into than the packet needs, or because they have several frames and
    /// the socket takes one.
    pub rx_dropped: u64,
    /// Frames lost because we did not take earlier ones in time.
    pub rx_ring_full: u64,
    /// Packets lost because the kernel had no chunk at all to receive into; they are in `rx_dropped` as well. One of 16 frames that finds
    /// 1 to 15 chunks is in `rx_dropped` only.
    pub fill_ring_empty: u64,
    /// Descriptors of ours that the kernel refused.
    pub invalid_descriptors: u64,
}
