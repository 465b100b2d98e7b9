//! How packets cross the agent's interfaces: what was chosen at the start, by whom, and what each port is told.
//!
//! Pods' interfaces are ours, so everything about them is: where the program stands, who polls their two ends, and how long the pod's end
//! gathers segments of a stream before its stack sees them. A NIC's polling is its driver's and the machine's owner's; of it only the mode
//! of the program is chosen, and what else its driver could do is told.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use margay_io::{AttachChoice, AttachMode, PortMemory, PortReport};

use super::args::{AgentArgs, MultiBuffer, Polling};
use super::offloads;
use super::probe::{Finding, Question, Way, ask};
use super::zero_copy;
use crate::admin::report::MannerReport;
use crate::endpoints::EndpointRecord;
use crate::net::napi::{self, Napi};
use crate::net::netdev::XdpFeatures;
use crate::net::netns::NetNs;
use crate::net::{NetError, netdev};

/// How pods' interfaces are crossed.
#[derive(Clone, Debug)]
pub struct Manner {
    way: Way,
    /// How the program of a pod's port may be attached.
    pub choice: AttachChoice,
    gather: Duration,
    /// Host ends of pods whose interfaces could not be told.
    untold: Arc<Mutex<BTreeSet<String>>>,
    /// What speaks for it.
    pub why: String,
}

impl Manner {
    /// Finds out what suits pods here, within what was told; `veth` is the index of one of our own pairs' ends. `folder` is made and
    /// removed.
    pub fn find(args: &AgentArgs, veth: u32, folder: &Path) -> Self {
        let several_frames =
            args.multi_buffer == MultiBuffer::Auto && features(veth).is_some_and(|driver| driver.pieces);
        let threaded = match args.polling {
            Polling::Auto => None,
            Polling::Inline => Some(false),
            Polling::Threaded => Some(true),
        };
        let asked = AttachChoice::from(args.xdp_mode);
        let Finding { way, why, took } = ask(Question { choice: asked, several_frames, threaded }, folder);
        let choice = match (asked, way.mode) {
            // Where the driver turns out to have none, a port is still to be had.
            (AttachChoice::Auto, AttachMode::Native) => AttachChoice::Auto,
            (_, AttachMode::Native) => AttachChoice::Native,
            (_, AttachMode::Generic) => AttachChoice::Generic,
        };
        let (mode, threaded, ms) = (way.mode.as_str(), way.threaded, took.as_millis());
        tracing::info!(mode, threaded, gather = ?args.pod_gather, why, ms, "how pods' interfaces are crossed");
        Self { way, choice, gather: args.pod_gather, untold: Arc::default(), why }
    }

    /// What has to be so before a pod's pair, whose program is attached in `mode`, comes up.
    ///
    /// Errors: large segments cannot be switched off where the program would not see their ends.
    pub fn prepare(&self, record: &EndpointRecord, mode: AttachMode) -> Result<(), NetError> {
        if mode == AttachMode::Generic { offloads::of_pod(record) } else { Ok(()) }
    }

    /// Tells both ends of a pod's pair how to receive. Call it when they are up: before, there is nothing to poll. An end that cannot be
    /// told, because the pod is gone or the kernel refuses, stays as it is, and the report says that it is not known.
    pub fn tell(&self, record: &EndpointRecord) {
        let threaded = self.way.threaded;
        let near = napi::set(None, &record.host_ifname, Napi { threaded, gather: Duration::ZERO });
        let far = NetNs::open(&record.netns)
            .and_then(|inside| napi::set(Some(&inside), &record.key.ifname, self.far()));
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        untold.remove(&record.host_ifname);
        for error in [near, far].into_iter().filter_map(Result::err) {
            tracing::warn!(interface = record.host_ifname, %error, "a pod's interface is polled as it is");
            untold.insert(record.host_ifname.clone());
        }
    }

    fn far(&self) -> Napi {
        Napi { threaded: self.way.threaded, gather: self.gather }
    }

    /// Returns what is told of the port of a pod, whose program is attached in `mode`. `checksums`: whether they are left to its kernel.
    pub fn report_pod(
        &self,
        device: &str,
        mode: AttachMode,
        several_frames: bool,
        checksums: bool,
    ) -> MannerReport {
        let told = !self.untold.lock().unwrap_or_else(PoisonError::into_inner).contains(device);
        let polling = match (told, self.way.threaded) {
            (false, _) => "unknown",
            (true, true) => "threaded",
            (true, false) => "inline",
        };
        let gather = if told { self.gather } else { Duration::ZERO };
        MannerReport {
            polling: polling.to_owned(),
            gather_micros: u64::try_from(gather.as_micros()).unwrap_or(u64::MAX),
            // A pair's driver has none.
            zero_copy: "none".to_owned(),
            multi_buffer: multi_buffer(Some(PAIR), mode, several_frames).to_owned(),
            checksums: if checksums { "left" } else { "completed" }.to_owned(),
            need_wakeup: true,
            why: self.why.clone(),
        }
    }
}

/// What the driver of pairs can do, in every kernel whose sockets take several frames.
pub const PAIR: XdpFeatures = XdpFeatures { native: true, zero_copy: false, pieces: true };

/// Returns why packets have several frames or do not, where the host port's program is attached in `mode`.
pub fn why_several_frames(told: MultiBuffer, mode: AttachMode, several: bool) -> &'static str {
    match (told, mode) {
        (MultiBuffer::Off, _) => "--multi-buffer off",
        (MultiBuffer::Auto, AttachMode::Generic) => "programs stand above their drivers",
        (MultiBuffer::Auto, AttachMode::Native) if several => "the kernel has it",
        (MultiBuffer::Auto, AttachMode::Native) => "the kernel does not have it (Linux 6.6 does)",
    }
}

/// Returns what is told of a port that is no pod's, whose driver says `features`, and whether threads of the kernel receive for it.
pub fn report_other(
    port: &PortReport,
    features: Option<XdpFeatures>,
    several_frames: bool,
    threaded: bool,
) -> MannerReport {
    let (zero_copy, why) = zero_copy::told(&port.memory, features);
    let several_frames = match port.memory {
        PortMemory::ZeroCopy { several_frames } => several_frames,
        _ => several_frames,
    };
    MannerReport {
        polling: if threaded { "threaded" } else { "driver" }.to_owned(),
        gather_micros: 0,
        zero_copy: zero_copy.to_owned(),
        multi_buffer: multi_buffer(features, port.mode, several_frames).to_owned(),
        // Beyond the node and towards its own kernel nothing is left: docs/decisions/0027.
        checksums: "completed".to_owned(),
        need_wakeup: true,
        why,
    }
}

/// Asks a driver; a kernel that cannot tell and a device that is gone say nothing.
pub fn features(ifindex: u32) -> Option<XdpFeatures> {
    netdev::xdp_features(ifindex).unwrap_or_else(|error| {
        tracing::debug!(ifindex, %error, "what the driver can do is not known");
        None
    })
}

/// Whether a packet that comes in by a port may have several frames: sockets have to take them, and the driver has to hand them to our
/// program as they are. Above the driver, kernels before 6.9 make one piece of each, and no later one is asked.
fn multi_buffer(features: Option<XdpFeatures>, mode: AttachMode, sockets: bool) -> &'static str {
    match (sockets && mode == AttachMode::Native, features) {
        (true, Some(driver)) if driver.pieces => "on",
        (true, None) => "unknown",
        _ => "off",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_frames_need_the_sockets_the_driver_and_a_program_within_it() {
        let plain = XdpFeatures { pieces: false, ..PAIR };
        for (features, mode, sockets, told) in [
            (Some(PAIR), AttachMode::Native, true, "on"),
            (Some(PAIR), AttachMode::Native, false, "off"),
            (Some(PAIR), AttachMode::Generic, true, "off"),
            (Some(plain), AttachMode::Native, true, "off"),
            (None, AttachMode::Native, true, "unknown"),
            (None, AttachMode::Native, false, "off"),
        ] {
            assert_eq!(multi_buffer(features, mode, sockets), told, "{features:?} {mode:?} {sockets}");
        }
    }
}
