//! Offload switches of a device, over the kernel's ethtool family of generic netlink.
//!
//! Attribute numbers and layouts: Linux `include/uapi/linux/ethtool_netlink.h` and `genetlink.h`. A feature goes by the kernel's own name
//! (`rx-gro`, `tx-vlan-hw-insert`), which is what `ethtool -k` prints for its unabbreviated rows.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

use super::NetError;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

/// Switches `features` of `device` on (`true`) or off, and returns those that did not change as asked.
///
/// The kernel accepts a request and silently keeps what the device fixes, so the state is read back.
pub fn set_features(device: &str, features: &[(&str, bool)]) -> Result<Vec<String>, NetError> {
    let failed = |e: io::Error| NetError::new(format!("switch offloads of {device}"), e);
    let mut generic = Generic::open().map_err(failed)?;
    let family = generic.family("ethtool").map_err(failed)?;
    let mut bits = Vec::new();
    for (name, on) in features {
        let mut bit = Vec::new();
        put(&mut bit, ETHTOOL_A_BITSET_BIT_NAME, &terminated(name));
        if *on {
            put(&mut bit, ETHTOOL_A_BITSET_BIT_VALUE, &[]);
        }
        put(&mut bits, ETHTOOL_A_BITSET_BITS_BIT | NLA_F_NESTED, &bit);
    }
    let mut wanted = Vec::new();
    put(&mut wanted, ETHTOOL_A_BITSET_BITS | NLA_F_NESTED, &bits);
    let mut body = header(device);
    put(&mut body, ETHTOOL_A_FEATURES_WANTED | NLA_F_NESTED, &wanted);
    generic.request(family, ETHTOOL_MSG_FEATURES_SET, &body).map_err(failed)?;
    let active = generic.active_features(family, device).map_err(failed)?;
    Ok(features
        .iter()
        .filter(|(name, on)| active.iter().any(|a| a == name) != *on)
        .map(|(name, _)| (*name).to_owned())
        .collect())
}

pub(super) struct Generic {
    socket: Socket,
    sequence: u32,
}

impl Generic {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Returns the attributes of the answers, without their generic headers.
    pub(super) fn request(&mut self, family: u16, command: u8, body: &[u8]) -> io::Result<Vec<u8>> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(20 + body.len());
        message.extend(u32::try_from(20 + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
        message.extend(family.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend([command, 1, 0, 0]);
        message.extend(body);
        self.socket.send(&message, 0)?;
        let mut answer = Vec::new();
        loop {
            let (data, _) = self.socket.recv_from_full()?;
            let mut rest = data.as_slice();
            while rest.len() >= 20 {
                let length = (u32_at(rest, 0) as usize).clamp(20, rest.len());
                let (kind, sequence) = (u16_at(rest, 4), u32_at(rest, 8));
                if sequence == self.sequence {
                    if kind == NLMSG_ERROR {
                        return match u32_at(rest, 16).cast_signed() {
                            0 => Ok(answer),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    answer.extend_from_slice(&rest[20..length]);
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
    }

    pub(super) fn family(&mut self, name: &str) -> io::Result<u16> {
        let mut body = Vec::new();
        put(&mut body, CTRL_ATTR_FAMILY_NAME, &terminated(name));
        let answer = self.request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &body)?;
        attributes(&answer)
            .find(|(kind, value)| *kind == CTRL_ATTR_FAMILY_ID && value.len() >= 2)
            .map(|(_, value)| u16_at(value, 0))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn active_features(&mut self, family: u16, device: &str) -> io::Result<Vec<String>> {
        let answer = self.request(family, ETHTOOL_MSG_FEATURES_GET, &header(device))?;
        let inside = |data: &[u8], wanted: u16| -> Vec<Vec<u8>> {
            attributes(data).filter(|(kind, _)| *kind == wanted).map(|(_, value)| value.to_vec()).collect()
        };
        let mut names = Vec::new();
        for active in inside(&answer, ETHTOOL_A_FEATURES_ACTIVE) {
            for bits in inside(&active, ETHTOOL_A_BITSET_BITS) {
                for bit in inside(&bits, ETHTOOL_A_BITSET_BITS_BIT) {
                    for name in inside(&bit, ETHTOOL_A_BITSET_BIT_NAME) {
                        names.push(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned());
                    }
                }
            }
        }
        Ok(names)
    }
}

fn header(device: &str) -> Vec<u8> {
    let mut inner = Vec::new();
    put(&mut inner, ETHTOOL_A_HEADER_DEV_NAME, &terminated(device));
    let mut body = Vec::new();
    put(&mut body, ETHTOOL_A_FEATURES_HEADER | NLA_F_NESTED, &inner);
    body
}

fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

pub(super) fn put(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    buffer.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(value);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

pub(super) fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if data.len() < 4 {
            return None;
        }
        let length = usize::from(u16_at(data, 0)).clamp(4, data.len());
        let item = (u16_at(data, 2) & NLA_TYPE_MASK, &data[4..length]);
        data = &data[length.next_multiple_of(4).min(data.len())..];
        Some(item)
    })
}

fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([data[at], data[at + 1]])
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}
