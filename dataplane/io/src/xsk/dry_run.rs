//! Running a loaded program on a frame without a device (`BPF_PROG_TEST_RUN`), so that tests can hold it to a second opinion.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// The part of the kernel's `union bpf_attr` that this command reads and writes.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Returns the program's answer to `frame`, which it sees as come from queue 0 of the namespace's loopback device.
///
/// Errors: frames shorter than an Ethernet header; no permission.
pub fn dry_run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    let mut attributes = TestRun {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    // SAFETY: the kernel reads `data_size_in` bytes at `data_in`, which is exactly `frame`, copies them, and writes nothing but
    // `attributes` itself, as no output buffers are given; both outlive the call. The size is that of the structure.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attributes,
            std::mem::size_of::<TestRun>() as libc::c_uint,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(attributes.retval)
}
