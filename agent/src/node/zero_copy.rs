//! Whether an uplink's packets lie in packet memory of its own, into which its driver receives and from which it sends without a copy
//! (docs/decisions/0028): who decides, and what is told of it.

use clap::ValueEnum;
use margay_io::{AttachChoice, MemoryChoice, PortMemory};

use crate::net::netdev::XdpFeatures;

/// What is wanted of uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ZeroCopy {
    /// Zero-copy where the driver has it.
    Auto,
    /// Packets are copied between every device and the memory that all ports share.
    Off,
}

/// Chooses for an uplink whose program is attached as `attach` says and whose driver says `features`. A kernel that cannot be asked is
/// tried.
pub fn choose(wanted: ZeroCopy, attach: AttachChoice, features: Option<XdpFeatures>) -> MemoryChoice {
    let offered = features.is_none_or(|driver| driver.zero_copy);
    match wanted {
        ZeroCopy::Auto if offered && attach != AttachChoice::Generic => MemoryChoice::ZeroCopy,
        ZeroCopy::Auto | ZeroCopy::Off => MemoryChoice::Shared,
    }
}

/// Returns what is told of a port on `memory` whose driver says `features`, and why it is not what was wanted.
pub fn told(memory: &PortMemory, features: Option<XdpFeatures>) -> (&'static str, String) {
    let word = match (memory, features) {
        (PortMemory::ZeroCopy { .. }, _) => "used",
        (PortMemory::Refused(why), Some(_)) => return ("refused", format!("no zero-copy: {why}")),
        // Not offered, as far as anybody can tell: nothing was lost.
        (PortMemory::Refused(_), None) => "none",
        (_, Some(driver)) if driver.zero_copy => "offered",
        (_, Some(_)) => "none",
        (_, None) => "unknown",
    };
    (word, String::new())
}

/// Says it in the log.
pub fn log(device: &str, memory: &PortMemory, features: Option<XdpFeatures>) {
    let (zero_copy, why) = told(memory, features);
    tracing::info!(device, zero_copy, why, "the uplink's packet memory");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_copy_is_tried_where_it_is_offered_or_cannot_be_asked_for() {
        let driver = |zero_copy| Some(XdpFeatures { zero_copy, ..XdpFeatures::default() });
        let auto = |attach, features| choose(ZeroCopy::Auto, attach, features);
        for attach in [AttachChoice::Auto, AttachChoice::Native] {
            assert_eq!(auto(attach, driver(true)), MemoryChoice::ZeroCopy);
            assert_eq!(auto(attach, None), MemoryChoice::ZeroCopy);
            assert_eq!(auto(attach, driver(false)), MemoryChoice::Shared);
        }
        // A program above the driver is given copies.
        assert_eq!(auto(AttachChoice::Generic, driver(true)), MemoryChoice::Shared);
        assert_eq!(choose(ZeroCopy::Off, AttachChoice::Auto, driver(true)), MemoryChoice::Shared);
    }

    #[test]
    fn what_is_told_says_used_refused_offered_none_or_unknown() {
        let driver = |zero_copy| Some(XdpFeatures { zero_copy, ..XdpFeatures::default() });
        let refused = PortMemory::Refused("no memory".to_owned());
        assert_eq!(told(&PortMemory::ZeroCopy { several_frames: false }, None).0, "used");
        assert_eq!(told(&refused, driver(true)), ("refused", "no zero-copy: no memory".to_owned()));
        assert_eq!(told(&refused, None), ("none", String::new()));
        assert_eq!(told(&PortMemory::Shared, driver(true)).0, "offered");
        assert_eq!(told(&PortMemory::Shared, driver(false)).0, "none");
        assert_eq!(told(&PortMemory::Shared, None).0, "unknown");
    }
}
