//! The system calls of AF_XDP: memory that is mapped, packet memory that is registered, rings that are made, sockets that are bound.
//!
//! Made by hand, and not by libxdp, for one number: that library's registration of packet memory has no place for the room before each
//! packet in which [`Frame::leave_checksum`](margay_core::Frame::leave_checksum) leaves word for the kernel. See docs/decisions/0027.
//!
//! Source: include/uapi/linux/if_xdp.h, Documentation/networking/af_xdp.rst and xsk-tx-metadata.rst.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Bytes before a packet that are the kernel's to read (`struct xsk_tx_metadata`).
pub(super) const TX_METADATA: usize = 24;

/// Mapped memory, ours until it is dropped.
#[derive(Debug)]
pub(super) struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process; the type itself reads and writes nothing.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Returns zeroed memory of this process.
    pub(super) fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(len, -1, 0, libc::MAP_ANONYMOUS)
    }

    /// Returns a socket's ring.
    fn of_ring(socket: BorrowedFd<'_>, which: u64, len: usize) -> io::Result<Self> {
        Self::map(len, socket.as_raw_fd(), which as libc::off_t, 0)
    }

    fn map(len: usize, file: libc::c_int, offset: libc::off_t, flags: libc::c_int) -> io::Result<Self> {
        let flags = flags | libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: the kernel chooses where, so nothing that is mapped is replaced.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, file, offset)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Returns two mappings of the same memory.
    #[cfg(test)]
    pub(super) fn twice(len: usize) -> io::Result<(Self, Self)> {
        // SAFETY: a name that ends in a zero; the answer is checked.
        let file = unsafe { libc::memfd_create(c"ring".as_ptr(), 0) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else has it.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        std::fs::File::from(file.try_clone()?).set_len(len as u64)?;
        Ok((Self::map(len, file.as_raw_fd(), 0, 0)?, Self::map(len, file.as_raw_fd(), 0, 0)?))
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, once, and whoever has pointers into it owns or borrows this.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Where the parts of a ring are in its mapping, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingPlaces {
    pub(super) producer: usize,
    pub(super) consumer: usize,
    pub(super) flags: usize,
    pub(super) entries: usize,
}

impl From<libc::xdp_ring_offset> for RingPlaces {
    fn from(places: libc::xdp_ring_offset) -> Self {
        Self {
            producer: places.producer as usize,
            consumer: places.consumer as usize,
            flags: places.flags as usize,
            entries: places.desc as usize,
        }
    }
}

fn done(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn set<T>(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes at `value`, which is as large.
    done(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const *value).cast(), len) })?;
    Ok(())
}

/// Asks for an option of AF_XDP.
///
/// # Safety
///
/// All zeros is a `T`, and so is whatever the kernel writes.
unsafe fn get<T>(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<T> {
    // SAFETY: the caller's word.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which is what there is.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, (&raw mut value).cast(), &raw mut len)
    };
    done(answer)?;
    if len as usize != size_of::<T>() {
        return Err(io::Error::other(
            "the kernel is older than Linux 5.9 and answers less than is asked for",
        ));
    }
    Ok(value)
}

/// Returns a new AF_XDP socket of the calling thread's network namespace.
pub(super) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let socket = done(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Registers packet memory, with room for metadata before each packet or without.
///
/// Errors: EINVAL from a kernel that does not know metadata (before Linux 6.8).
pub(super) fn register(
    socket: BorrowedFd<'_>,
    memory: &Region,
    chunk_size: u32,
    metadata: bool,
) -> io::Result<()> {
    let registration = libc::xdp_umem_reg {
        addr: memory.start().as_ptr() as u64,
        len: memory.len() as u64,
        chunk_size,
        headroom: 0,
        flags: if metadata { libc::XDP_UMEM_TX_METADATA_LEN } else { 0 },
        tx_metadata_len: if metadata { TX_METADATA as u32 } else { 0 },
    };
    set(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
}

/// Has the kernel make a socket's rings of `size` entries: transmit, receive, fill and completion, mapped. An entry of the first two has
/// `descriptor` bytes, one of the others 8.
pub(super) fn make_rings(
    socket: BorrowedFd<'_>,
    size: u32,
    descriptor: usize,
) -> io::Result<[(Region, RingPlaces); 4]> {
    for ring in
        [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING, libc::XDP_TX_RING]
    {
        set(socket, libc::SOL_XDP, ring, &size)?;
    }
    // SAFETY: numbers only.
    let places: libc::xdp_mmap_offsets = unsafe { get(socket, libc::XDP_MMAP_OFFSETS) }?;
    let map = |which: u64, places: libc::xdp_ring_offset, entry: usize| {
        let places = RingPlaces::from(places);
        let len = places.entries.saturating_add(size as usize * entry);
        Ok::<_, io::Error>((Region::of_ring(socket, which, len)?, places))
    };
    Ok([
        map(libc::XDP_PGOFF_TX_RING as u64, places.tx, descriptor)?,
        map(libc::XDP_PGOFF_RX_RING as u64, places.rx, descriptor)?,
        map(libc::XDP_UMEM_PGOFF_FILL_RING, places.fr, 8)?,
        map(libc::XDP_UMEM_PGOFF_COMPLETION_RING, places.cr, 8)?,
    ])
}

/// Binds a socket to a device's queue: as the first of its packet memory, which decides by `flags`, or as a later one that shares the
/// memory of `first`.
pub(super) fn bind(
    socket: BorrowedFd<'_>,
    device: u32,
    queue: u32,
    flags: u16,
    first: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: first.map_or(flags, |_| libc::XDP_SHARED_UMEM),
        sxdp_ifindex: device,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: first.map_or(0, |first| first.as_raw_fd() as u32),
    };
    let len = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes at `address`, which is as large.
    done(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(())
}

/// Has the kernel send from the transmit ring.
///
/// Errors: none where the device takes nothing now (EAGAIN, EBUSY, ENOBUFS, ENETDOWN).
pub(super) fn send(socket: BorrowedFd<'_>) -> io::Result<()> {
    let nothing = std::ptr::null();
    // SAFETY: no memory is given.
    let answer =
        unsafe { libc::sendto(socket.as_raw_fd(), nothing, 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    if answer >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::ENETDOWN) => Ok(()),
        _ => Err(error),
    }
}

/// Asks for a socket's counters.
pub(super) fn statistics(socket: BorrowedFd<'_>) -> io::Result<libc::xdp_statistics> {
    // SAFETY: numbers only.
    unsafe { get(socket, libc::XDP_STATISTICS) }
}

/// Asks whether the driver receives into and sends from the memory of a bound socket itself (`XDP_OPTIONS`).
pub(super) fn copies_nothing(socket: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: all that the kernel may write is a valid number.
    let options: u32 = unsafe { get(socket, libc::XDP_OPTIONS) }?;
    Ok(options & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// Tells the driver of a socket without a copy that there is memory to receive into. One that cannot be woken says that it wants to be once
/// more, so the answer does not matter.
pub(super) fn wake_receiver(socket: BorrowedFd<'_>) {
    // SAFETY: no buffer is given, so nothing is written.
    unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) };
}

/// Sets how many bytes of what it sends may be under way, beyond the machine's limit.
pub(super) fn send_buffer(socket: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes)
}
