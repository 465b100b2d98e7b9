//! Packets that are joined in the packet memory, over real devices. Without root each test says `SKIPPED` and passes.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use margay_core::{Counters, Frame, Nanos, Output, PortIndex, View};
use margay_io::engine::Processor;
use margay_io::{Dataplane, DataplaneConfig, Role};
use support::{Far, config, frame, in_namespaces, ip, spec, veth};

const SOON: Duration = Duration::from_secs(2);
/// Bytes at the beginning of a packet that are not appended.
const HEAD: usize = 42;

/// Sends what comes from port 1 to port 2, and appends what comes later in a burst to what came first.
struct Joining {
    counters: Counters,
    still: Arc<AtomicBool>,
}

impl<F: Frame> Processor<F> for Joining {
    fn handle_burst(
        &mut self,
        _: View<'_>,
        _: Nanos,
        _: PortIndex,
        frames: &mut Vec<F>,
        out: &mut Output<F>,
    ) {
        while self.still.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut whole: Option<F> = None;
        for mut frame in frames.drain(..) {
            self.counters.received += 1;
            self.counters.forwarded += 1;
            if let Some(first) = &mut whole {
                match first.append(frame, HEAD) {
                    Ok(()) => continue,
                    Err(back) => frame = back,
                }
            }
            out.transmit.extend(whole.replace(frame).map(|whole| (PortIndex(2), whole)));
        }
        out.transmit.extend(whole.map(|whole| (PortIndex(2), whole)));
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// A packet of `len` bytes that is different at every place.
fn packet(len: usize, number: u32) -> Vec<u8> {
    let mut bytes = frame([10, 0, 0, 1], [10, 0, 0, 2], number);
    bytes.extend((bytes.len()..len).map(|at| (at * 31 + at / 251 + number as usize) as u8));
    bytes.truncate(len);
    bytes
}

#[test]
fn what_is_appended_arrives_and_no_frame_is_lost() {
    in_namespaces("what_is_appended_arrives_and_no_frame_is_lost", |directory| {
        for name in ["host0", "a0", "b0"] {
            veth(name);
        }
        let still = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&still);
        let make = move |_, _| Joining { counters: Counters::default(), still: Arc::clone(&told) };
        let dataplane =
            Dataplane::start_with(DataplaneConfig { several_frames: true, ..config(directory) }, make)
                .unwrap();
        for (index, name, role) in [(0, "host0", Role::Host), (1, "a0", Role::Pod), (2, "b0", Role::Pod)] {
            dataplane.add_port(spec(index, name, role)).unwrap();
        }
        if !dataplane.takes_several_frames() {
            println!("SKIPPED what_is_appended_arrives: the kernel has no packets of several frames");
            return;
        }
        for name in ["a0", "b0"] {
            ip(&format!("link set {name} mtu 60000"));
            ip(&format!("link set {name}-far mtu 60000"));
        }
        let (a, b) = (Far::new("a0-far"), Far::new("b0-far"));
        for round in 0..40 {
            // What is sent while the worker stands still comes together.
            still.store(true, SeqCst);
            let some = round as usize;
            let lengths = [66 + some, 1434, 1434, 3839, 700, 3840, 1433, 67, 3500, 2000 + 7 * some];
            let sent: Vec<_> = lengths.iter().map(|len| packet(*len, round)).collect();
            sent.iter().for_each(|packet| a.send(packet));
            still.store(false, SeqCst);
            let wanted: Vec<u8> = sent.iter().flat_map(|packet| &packet[HEAD..]).copied().collect();
            let mut came = Vec::new();
            while came.len() < wanted.len() {
                let packet = b.receive(SOON).unwrap_or_else(|| panic!("round {round}: {}", came.len()));
                came.extend_from_slice(&packet[HEAD..]);
            }
            assert!(came == wanted, "round {round}");
        }
        let deadline = Instant::now() + SOON;
        while !dataplane.frames().unwrap().agrees() {
            assert!(Instant::now() < deadline, "{:?}", dataplane.frames());
            std::thread::sleep(Duration::from_millis(20));
        }
        let counters = dataplane.port_counters().unwrap();
        let (from, to) = (&counters[&PortIndex(1)], &counters[&PortIndex(2)]);
        assert_eq!((from.rx_packets, to.tx_failed, to.kernel.invalid_descriptors), (400, 0, 0));
        assert!(to.tx_packets < 300, "{} of 400 packets are left", to.tx_packets);
    });
}
