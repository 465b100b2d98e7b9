//! The packet memory as the kernel knows it, and the sockets bound to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::queue::{FrameDesc, Queues};
use super::sys::{self, Region, TX_METADATA};
use super::{HEADROOM, MAX_FRAMES, RING_SIZE, XskError, least_for};
use crate::rings::LEAST;

/// Bytes before what the MTU counts: Ethernet and one tag.
const LINK_HEADERS: u32 = 18;

/// Packet memory and the socket that it is registered with. Cloned handles name the same.
#[derive(Clone, Debug)]
pub(super) struct Umem(Arc<Registered>);

/// In the order in which they are dropped: the kernel keeps what it still uses.
#[derive(Debug)]
struct Registered {
    /// The rings of the first socket, until it is bound.
    unbound: Mutex<Option<Queues>>,
    /// The first socket, which all later binds name. It stays open as long as the memory is.
    first: Arc<OwnedFd>,
    /// Whether the kernel reads metadata before packets that we send.
    metadata: bool,
    memory: Region,
}

impl Umem {
    /// Registers new memory, with room for metadata where that is wished and the kernel knows them.
    fn new(chunk_size: u32, chunks: u32, metadata: bool) -> io::Result<Self> {
        let memory = Region::anonymous(chunk_size as usize * chunks as usize)?;
        let first = sys::socket()?;
        let metadata = match sys::register(first.as_fd(), &memory, chunk_size, metadata) {
            Err(error) if metadata && error.raw_os_error() == Some(libc::EINVAL) => {
                sys::register(first.as_fd(), &memory, chunk_size, false)?;
                false
            }
            registered => registered.map(|()| metadata)?,
        };
        let unbound = Mutex::new(Some(Queues::of(first.as_fd())?));
        Ok(Self(Arc::new(Registered { unbound, first: Arc::new(first), metadata, memory })))
    }

    /// Binds the first socket with its flags, and any later one by naming the first.
    fn bind(&self, device: u32, queue: u32, flags: u16) -> io::Result<(Arc<OwnedFd>, Queues)> {
        let Registered { unbound, first, .. } = &*self.0;
        let mut unbound = unbound.lock().unwrap_or_else(PoisonError::into_inner);
        if unbound.is_some() {
            sys::bind(first.as_fd(), device, queue, flags, None)?;
            if let Some(queues) = unbound.take() {
                return Ok((Arc::clone(first), queues));
            }
        }
        let socket = sys::socket()?;
        let queues = Queues::of(socket.as_fd())?;
        sys::bind(socket.as_fd(), device, queue, flags, Some(first.as_fd()))?;
        Ok((Arc::new(socket), queues))
    }

    /// Returns the bytes of a frame; none of one that is not in this memory.
    ///
    /// # Safety
    ///
    /// Neither the kernel nor anybody here writes to them while they are borrowed.
    #[inline]
    pub(super) unsafe fn bytes(&self, frame: &FrameDesc) -> &[u8] {
        let (start, len) = self.within(frame);
        // SAFETY: within the memory, which `self` keeps mapped; the rest is the caller's word.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Returns the bytes of a frame for writing; none of one that is not in this memory.
    ///
    /// # Safety
    ///
    /// Neither the kernel nor anybody else here accesses them while they are borrowed.
    #[inline]
    #[allow(clippy::mut_from_ref, reason = "who may write to which chunk is the ownership table's matter")]
    pub(super) unsafe fn bytes_mut(&self, frame: &FrameDesc) -> &mut [u8] {
        let (start, len) = self.within(frame);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    #[inline]
    fn within(&self, frame: &FrameDesc) -> (*mut u8, usize) {
        let memory = &self.0.memory;
        match frame.addr().checked_add(frame.len()).is_some_and(|end| end <= memory.len()) {
            // SAFETY: just found to be within the memory.
            true => (unsafe { memory.start().add(frame.addr()) }.as_ptr(), frame.len()),
            false => (memory.start().as_ptr(), 0),
        }
    }

    /// Leaves word before a frame that the packet's checksum is partial: summed from `start` on, the field `offset` bytes further. Returns
    /// `false` where the kernel does not read it.
    ///
    /// Source: `struct xsk_tx_metadata` with `XDP_TXMD_FLAGS_CHECKSUM`.
    ///
    /// # Safety
    ///
    /// Neither the kernel nor anybody else here accesses the frame's chunk now, and the chunk begins at least [`TX_METADATA`] bytes before
    /// the frame.
    #[inline]
    pub(super) unsafe fn leave_checksum(&self, frame: &FrameDesc, start: u16, offset: u16) -> bool {
        let Some(before) = frame.addr().checked_sub(TX_METADATA).filter(|_| self.0.metadata) else {
            return false;
        };
        let place = FrameDesc::at(before as u64).of_len(TX_METADATA);
        // SAFETY: the caller's word.
        let bytes = unsafe { self.bytes_mut(&place) };
        let Some(word) = bytes.first_chunk_mut::<TX_METADATA>() else { return false };
        word.fill(0);
        word[0..8].copy_from_slice(&u64::from(libc::XDP_TXMD_FLAGS_CHECKSUM).to_ne_bytes());
        word[8..10].copy_from_slice(&start.to_ne_bytes());
        word[10..12].copy_from_slice(&offset.to_ne_bytes());
        true
    }
}

/// The packet memory, before workers have it. Cloned handles name the same memory.
#[derive(Debug, Clone)]
pub struct UmemHandle {
    pub(super) umem: Umem,
    pub(super) chunk_size: u32,
    chunks: u32,
    zero_copy: bool,
    /// Whether packets of several frames are asked for, and what the first bind made of it.
    wants_several: bool,
    takes_several: Arc<OnceLock<bool>>,
}

/// Every chunk of a new UMEM, all free. Goes to [`super::Store::new`] once.
#[derive(Debug)]
pub struct Chunks(pub(super) Vec<FrameDesc>);

impl UmemHandle {
    /// Registers packet memory with the kernel, in the network namespace of the calling thread. Where the kernel knows how, from Linux 6.8
    /// on, frames of it leave checksums to whoever gets them.
    ///
    /// Errors: sizes that AF_XDP does not take; no permission; too little memory.
    pub fn new(chunk_size: u32, chunks: u32) -> Result<(Self, Chunks), XskError> {
        Self::register(chunk_size, chunks, true)
    }

    /// As [`UmemHandle::new`], with all checksums in software, as on older kernels. Memory whose packets may be copied into another one
    /// before they are sent is made so: the word that leaves a checksum is before the packet, and is not copied.
    ///
    /// Errors: as there.
    pub fn with_checksums_in_software(chunk_size: u32, chunks: u32) -> Result<(Self, Chunks), XskError> {
        Self::register(chunk_size, chunks, false)
    }

    fn register(chunk_size: u32, chunks: u32, metadata: bool) -> Result<(Self, Chunks), XskError> {
        let layout = |why: &str| XskError::Layout { chunk_size, chunks, why: why.to_owned() };
        if chunks < 64 {
            return Err(layout("too few chunks"));
        }
        if chunk_size > 4096 {
            return Err(layout("a chunk is larger than a page"));
        }
        if chunk_size < 2048 || !chunk_size.is_power_of_two() {
            return Err(layout("a chunk has a size that the kernel does not take"));
        }
        let umem = Umem::new(chunk_size, chunks, metadata)
            .map_err(|source| XskError::Umem { bytes: u64::from(chunk_size) * u64::from(chunks), source })?;
        let first = |chunk: u32| u64::from(chunk) * u64::from(chunk_size) + u64::from(HEADROOM);
        let descriptors = (0..chunks).map(|chunk| FrameDesc::at(first(chunk))).collect();
        let takes_several = Arc::new(OnceLock::new());
        let handle = Self { umem, chunk_size, chunks, zero_copy: false, wants_several: true, takes_several };
        tracing::info!(
            chunks,
            chunk_size,
            checksums_left_to_pods = handle.leaves_checksums(),
            "packet memory is registered"
        );
        Ok((handle, Chunks(descriptors)))
    }

    /// Returns whether the checksums of packets to pods are left partial, for the pod's kernel to know that nothing was damaged on the way;
    /// else they are completed in software and verified there.
    pub fn leaves_checksums(&self) -> bool {
        self.umem.0.metadata
    }

    /// Has the sockets of this memory take packets of one frame only. Say so before the first bind.
    pub fn of_single_frames(mut self) -> Self {
        self.wants_several = false;
        self
    }

    /// Has the sockets of this memory bound without a copy, or not at all. Say so before the first bind.
    pub fn of_zero_copy(mut self) -> Self {
        self.zero_copy = true;
        self
    }

    /// Returns whether its sockets are bound without a copy.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
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
                        Some(libc::EOPNOTSUPP) => "the device's driver has no zero-copy",
                        Some(libc::EMSGSIZE) => {
                            "with zero-copy the driver has packets of one frame, and the MTU needs several"
                        }
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
        if self.zero_copy {
            return self.bind_first_without_copy(device, queue);
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

    /// As the driver is: several frames, one frame where that is enough for the device's MTU, or not at all.
    fn bind_first_without_copy(&self, device: &str, queue: u32) -> io::Result<XskSocket> {
        match self.bind_as(device, queue, true) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
            bound => {
                let bound = bound?;
                self.takes_several.get_or_init(|| true);
                return Ok(bound);
            }
        }
        let bound = self.bind_as(device, queue, false)?;
        if mtu_of(device)? + LINK_HEADERS > self.chunk_size.saturating_sub(HEADROOM) {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        self.takes_several.get_or_init(|| false);
        Ok(bound)
    }

    fn bind_as(&self, device: &str, queue: u32, several: bool) -> io::Result<XskSocket> {
        let index = nix::net::if_::if_nametoindex(device)?;
        let copy = if self.zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
        let mut flags = copy | libc::XDP_USE_NEED_WAKEUP;
        if several {
            flags |= libc::XDP_USE_SG;
        }
        let (socket, queues) = self.umem.bind(index, queue, flags)?;
        let least = match several {
            true => least_for(mtu_of(device)? + LINK_HEADERS, self.chunk_size - HEADROOM),
            false => LEAST,
        };
        make_room(socket.as_fd());
        let zero_copy = sys::copies_nothing(socket.as_fd())?;
        Ok(XskSocket { queues, socket, several, zero_copy, least, _umem: self.umem.clone() })
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
fn make_room(socket: BorrowedFd<'_>) {
    static SAID: Once = Once::new();
    if let Err(error) = sys::send_buffer(socket, RING_SIZE as libc::c_int * 4096) {
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
    pub(super) queues: Queues,
    /// Shared with the memory in the case of its first socket, which the kernel therefore keeps bound.
    pub(super) socket: Arc<OwnedFd>,
    /// Whether it takes packets of several frames.
    pub(super) several: bool,
    /// Whether the driver receives into and sends from our memory itself.
    pub(super) zero_copy: bool,
    /// How few chunks to receive into still take every packet of its device; see [`Rings::least`](crate::rings::Rings::least).
    pub(super) least: usize,
    /// The memory outlives what the kernel does to it.
    _umem: Umem,
}

impl XskSocket {
    /// Returns whether the driver receives into and sends from our memory itself, as the kernel says.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Returns how many chunks it needs to receive into, even while it is silent.
    pub fn least(&self) -> usize {
        self.least
    }
}

impl AsRawFd for XskSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
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
