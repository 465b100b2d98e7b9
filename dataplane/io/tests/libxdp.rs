//! Our rings beside libxdp's (by xsk-rs): frames that libxdp sends at the other end of a pair come off our rings, and what ours send comes
//! back whole, in order and once. Without root the test says `SKIPPED`.

mod support;

use std::io::Write;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use margay_io::{Dataplane, Role};
use support::{Far, Patch, config, frame, in_namespaces, spec, veth};
use xsk_rs::config::{BindFlags, LibxdpFlags, SocketConfig, UmemConfig};
use xsk_rs::{Socket, Umem};

const SOON: Duration = Duration::from_secs(2);
/// More than our rings and theirs have entries, several times.
const FRAMES: u32 = 10_000;
/// Under way at a time.
const BURST: u32 = 48;

#[test]
fn what_libxdp_sends_comes_off_our_rings_whole_in_order_and_once() {
    in_namespaces("what_libxdp_sends_comes_off_our_rings_whole_in_order_and_once", |directory| {
        for name in ["host0", "a0", "b0"] {
            veth(name);
        }
        let make = |_, _| Patch::new(&[(1, 2)], Arc::new(AtomicBool::new(false)));
        let dataplane = Dataplane::start_with(config(directory), make).unwrap();
        for (index, name, role) in [(0, "host0", Role::Host), (1, "a0", Role::Pod), (2, "b0", Role::Pod)] {
            dataplane.add_port(spec(index, name, role)).unwrap();
        }
        let (umem, mut free) =
            Umem::new(UmemConfig::default(), NonZeroU32::new(256).unwrap(), false).unwrap();
        let sockets = SocketConfig::builder()
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        // SAFETY: the only socket of that queue.
        let (mut tx, _rx, rings) =
            unsafe { Socket::new(sockets, &umem, &"a0-far".parse().unwrap(), 0) }.unwrap();
        let (_fill, mut completion) = rings.expect("the first socket has them");
        let far = Far::new("b0-far");
        let mut done = free.split_off(free.len() / 2);
        for first in (0..FRAMES).step_by(BURST as usize) {
            let numbers = first..(first + BURST).min(FRAMES);
            for number in numbers.clone() {
                let mut chunk = free.pop().expect("a free chunk");
                let bytes = frame([10, 0, 0, 1], [10, 0, 0, 2], number);
                // SAFETY: a chunk of this memory that is not at the kernel.
                unsafe { umem.data_mut(&mut chunk) }.cursor().write_all(&bytes).unwrap();
                // SAFETY: as above; it is not used again before its completion.
                assert_eq!(unsafe { tx.produce_and_wakeup(&[chunk]) }.unwrap(), 1);
            }
            for number in numbers.clone() {
                let wanted = frame([10, 0, 0, 1], [10, 0, 0, 2], number);
                assert_eq!(far.receive(SOON).as_deref(), Some(&wanted[..]), "frame {number}");
            }
            let deadline = Instant::now() + SOON;
            let mut left = numbers.len();
            while left > 0 {
                assert!(Instant::now() < deadline, "{left} frames do not complete");
                // SAFETY: descriptors of this memory.
                let count = unsafe { completion.consume(&mut done[..left]) };
                free.extend_from_slice(&done[..count]);
                left -= count;
            }
        }
        assert_eq!(far.receive(Duration::from_millis(50)), None, "nothing twice");
        std::thread::sleep(Duration::from_millis(150));
        let counters = dataplane.counters();
        assert_eq!((counters.received, counters.forwarded), (FRAMES.into(), FRAMES.into()));
    });
}
