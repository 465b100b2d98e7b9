//! Congestion marks across a tunnel (RFC 6040, normal mode). The marks are the low two bits of the traffic class.

use margay_wire::checksum;

/// Marks of a traffic class.
const MARKS: u8 = 0b11;
const NOT_CAPABLE: u8 = 0b00;
const CAPABLE_1: u8 = 0b01;
const CAPABLE_0: u8 = 0b10;
const EXPERIENCED: u8 = 0b11;

/// Returns the traffic class of an IP packet, zero where there is none.
pub fn traffic_class(packet: &[u8]) -> u8 {
    match packet {
        [first, class, ..] if first >> 4 == 4 => *class,
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        _ => 0,
    }
}

/// Returns the traffic class of the outer header for a packet inside: its marks, and no other class, as WireGuard does.
pub fn outer_class(inner: &[u8]) -> u8 {
    traffic_class(inner) & MARKS
}

/// Carries the marks of the outer header, `outer`, over to the packet that came out of it. Returns `false` when the packet must be dropped:
/// congestion was experienced on its way, and its sender would not know what that means (RFC 6040 section 4.2).
#[must_use]
pub fn carry_over(outer: u8, packet: &mut [u8]) -> bool {
    let inner = traffic_class(packet) & MARKS;
    let marks = match (outer & MARKS, inner) {
        (EXPERIENCED, NOT_CAPABLE) => return false,
        (EXPERIENCED, _) => EXPERIENCED,
        (CAPABLE_1, CAPABLE_0) => CAPABLE_1,
        _ => inner,
    };
    if marks != inner {
        mark(packet, marks);
    }
    true
}

fn mark(packet: &mut [u8], marks: u8) {
    match packet {
        [first, class, rest @ ..] if *first >> 4 == 4 => {
            let before = u16::from_be_bytes([*first, *class]);
            *class = *class & !MARKS | marks;
            let after = u16::from_be_bytes([*first, *class]);
            // The header checksum is in bytes 10 and 11.
            if let Some([a, b]) = rest.get_mut(8..10) {
                let sum = checksum::update(u16::from_be_bytes([*a, *b]), before, after);
                [*a, *b] = sum.to_be_bytes();
            }
        }
        [first, second, ..] if *first >> 4 == 6 => *second = *second & 0b1100_1111 | marks << 4,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(class: u8) -> Vec<u8> {
        let mut packet = vec![0x45, class, 0, 20, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let sum = checksum::of(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn v6(class: u8) -> Vec<u8> {
        let mut packet = vec![0; 40];
        (packet[0], packet[1]) = (0x60 | class >> 4, class << 4 | 0x5);
        packet
    }

    /// RFC 6040 figure 4, every row and column.
    #[test]
    fn marks_come_out_as_the_table_says() {
        let drop = 0xff;
        let table = [
            (NOT_CAPABLE, [NOT_CAPABLE, NOT_CAPABLE, NOT_CAPABLE, drop]),
            (CAPABLE_0, [CAPABLE_0, CAPABLE_1, CAPABLE_0, EXPERIENCED]),
            (CAPABLE_1, [CAPABLE_1, CAPABLE_1, CAPABLE_1, EXPERIENCED]),
            (EXPERIENCED, [EXPERIENCED; 4]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [NOT_CAPABLE, CAPABLE_1, CAPABLE_0, EXPERIENCED].into_iter().zip(row) {
                for mut packet in [v4(0xb8 | inner), v6(0xb8 | inner)] {
                    let passes = carry_over(0x40 | outer, &mut packet);
                    assert_eq!(passes, expected != drop, "{inner} in {outer}");
                    if passes {
                        assert_eq!(traffic_class(&packet), 0xb8 | expected, "{inner} in {outer}");
                        assert!(packet.len() == 40 || checksum::of(&packet) == 0, "the header's sum holds");
                        assert!(packet.len() == 20 || packet[1] & 0xf == 5, "the flow label is left alone");
                    }
                }
            }
        }
    }

    #[test]
    fn outside_there_are_marks_and_no_class() {
        assert_eq!((outer_class(&v4(0xba)), outer_class(&v6(0xb9)), outer_class(&[])), (2, 1, 0));
    }
}
