//! ARP answers (RFC 826), written over the request.

use crate::parse::Arp;
use crate::{ETHERNET_LEN, MacAddr};

/// Turns the request in `frame` into the reply "`request.target_ip` is at `mac`". Returns the reply's length in bytes.
///
/// Panics: never for a frame that [`crate::parse()`] called ARP.
pub fn reply_in_place(frame: &mut [u8], request: &Arp, mac: MacAddr) -> usize {
    frame[0..6].copy_from_slice(&request.sender_mac.0);
    frame[6..12].copy_from_slice(&mac.0);
    let body = &mut frame[ETHERNET_LEN..ETHERNET_LEN + 28];
    body[6..8].copy_from_slice(&2u16.to_be_bytes());
    body[8..14].copy_from_slice(&mac.0);
    body[14..18].copy_from_slice(&request.target_ip.octets());
    body[18..24].copy_from_slice(&request.sender_mac.0);
    body[24..28].copy_from_slice(&request.sender_ip.octets());
    ETHERNET_LEN + 28
}
