//! Offloads of devices whose XDP program runs above the driver.
//!
//! In generic mode the kernel hands over what the sender gave it: a segment of up to 64 KiB that somebody below was to cut. No chunk of
//! packet memory holds that, and AF_XDP does not say where to cut. So the sender's kernel must cut before: segmentation is switched off
//! at the far end, where packets come from, and merging of received packets at ours. In native mode the kernel does both by itself.

use crate::endpoints::EndpointRecord;
use crate::net::netns::NetNs;
use crate::net::{NetError, ethtool};

/// Every way in which a sender leaves the cutting of segments to the device.
const SEGMENTATION: [&str; 7] = [
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-udp-segmentation",
    "tx-sctp-segmentation",
    "tx-generic-segmentation",
];

/// Switches large segments off at both ends of a pod's pair. A namespace that is gone has nobody who sends.
///
/// Errors: the kernel refuses, or keeps a switch as it was.
pub fn of_pod(record: &EndpointRecord) -> Result<(), NetError> {
    no_large_receives(&record.host_ifname)?;
    match NetNs::open(&record.netns) {
        Ok(netns) => netns.within(|| no_large_segments(&record.key.ifname))?,
        Err(error) => {
            tracing::warn!(interface = record.host_ifname, %error, "the pod's large segments stay as they are");
            Ok(())
        }
    }
}

/// Has the kernel cut what is sent out of `device` before it leaves.
///
/// Errors: the kernel refuses, or keeps a switch as it was.
pub fn no_large_segments(device: &str) -> Result<(), NetError> {
    switch_off(device, &SEGMENTATION)
}

/// Has the kernel leave packets that come in at `device` as they are.
///
/// Errors: the kernel refuses, or keeps a switch as it was.
pub fn no_large_receives(device: &str) -> Result<(), NetError> {
    switch_off(device, &["rx-gro"])
}

fn switch_off(device: &str, features: &[&str]) -> Result<(), NetError> {
    let wanted: Vec<(&str, bool)> = features.iter().map(|name| (*name, false)).collect();
    let kept = ethtool::set_features(device, &wanted)?;
    if kept.is_empty() {
        return Ok(());
    }
    let why = std::io::Error::other(format!("the device keeps {}", kept.join(", ")));
    Err(NetError::new(format!("switch offloads of {device} for generic XDP"), why))
}
