//! What a driver says that it can do with XDP, by the kernel's `netdev` family of generic netlink (Linux 6.3 and later).
//!
//! Numbers: Linux `include/uapi/linux/netdev.h`.

use std::io;

use super::NetError;
use super::ethtool::{Generic, attributes, put};

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

const BASIC: u64 = 1;
const XSK_ZEROCOPY: u64 = 1 << 3;
const RX_SG: u64 = 1 << 5;

/// What a driver can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Runs programs itself.
    pub native: bool,
    /// Receives into and sends from packet memory without a copy.
    pub zero_copy: bool,
    /// Shows a program packets of several pieces.
    pub pieces: bool,
}

impl XdpFeatures {
    fn of(bits: u64) -> Self {
        let has = |bit| bits & bit != 0;
        Self { native: has(BASIC), zero_copy: has(XSK_ZEROCOPY), pieces: has(RX_SG) }
    }
}

/// Returns what the driver of a device of the calling thread's network namespace says; `None` from a kernel that has no words for it.
///
/// Errors: no such device.
pub fn xdp_features(ifindex: u32) -> Result<Option<XdpFeatures>, NetError> {
    let failed = |e: io::Error| NetError::new(format!("ask what the driver of device {ifindex} can do"), e);
    let mut generic = Generic::open().map_err(failed)?;
    let family = match generic.family("netdev") {
        Ok(family) => family,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut body = Vec::new();
    put(&mut body, NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let answer = generic.request(family, NETDEV_CMD_DEV_GET, &body).map_err(failed)?;
    let bits = attributes(&answer)
        .find(|(kind, _)| *kind == NETDEV_A_DEV_XDP_FEATURES)
        .and_then(|(_, value)| Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?)));
    Ok(bits.map(XdpFeatures::of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_their_meaning() {
        assert_eq!(XdpFeatures::of(0), XdpFeatures::default());
        let all = XdpFeatures::of(BASIC | XSK_ZEROCOPY | RX_SG);
        assert!(all.native && all.zero_copy && all.pieces);
        assert!(!XdpFeatures::of(0b110_0111).zero_copy);
    }

    #[test]
    fn the_loopback_device_has_no_xdp_of_its_own() {
        let index = nix::net::if_::if_nametoindex("lo").expect("every namespace has one");
        match xdp_features(index).expect("it is there") {
            Some(features) => assert!(!features.native && !features.zero_copy, "{features:?}"),
            None => println!("SKIPPED the_loopback_device_has_no_xdp_of_its_own: needs Linux 6.3"),
        }
        assert!(xdp_features(u32::MAX >> 1).is_err() || xdp_features(index).expect("it is there").is_none());
    }
}
