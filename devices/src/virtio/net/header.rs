//! The header before each frame, `struct virtio_net_hdr_v1` (virtio 1.2, "Packet Transmission").

use virtio_bindings::virtio_net as bits;

use super::{CSUM, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_UFO};

/// Bytes of the header.
pub(super) const HEADER: usize = 12;
/// Where in it num_buffers is.
pub(super) const NUM_BUFFERS: u64 = 10;

const NEEDS_CSUM: u8 = bits::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_NONE: u8 = bits::VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = bits::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = bits::VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const GSO_UDP: u8 = bits::VIRTIO_NET_HDR_GSO_UDP as u8;
const GSO_ECN: u8 = bits::VIRTIO_NET_HDR_GSO_ECN as u8;

/// What the link is told of a frame of `length` bytes, from the driver's `header`; None if that asks for what the driver, which has
/// accepted `features`, may not ask for or what cannot be done.
pub(super) fn checked(header: [u8; HEADER], length: usize, features: u64) -> Option<[u8; HEADER]> {
    let has = |feature: u64| features & feature != 0;
    // Flags of a receiver say nothing here.
    let flags = header[0] & NEEDS_CSUM;
    let half = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (gso_size, start, offset) = (half(4), half(6), half(8));
    if flags != 0 && (!has(CSUM) || start + offset + 2 > length) {
        return None;
    }
    let ecn = header[1] & GSO_ECN != 0;
    let agreed = match header[1] & !GSO_ECN {
        GSO_NONE => !ecn,
        GSO_TCPV4 => has(HOST_TSO4) && (!ecn || has(HOST_ECN)),
        GSO_TCPV6 => has(HOST_TSO6) && (!ecn || has(HOST_ECN)),
        GSO_UDP => has(HOST_UFO) && !ecn,
        _ => false,
    };
    if !agreed || (header[1] != GSO_NONE && gso_size == 0) {
        return None;
    }
    let mut told = header;
    told[0] = flags;
    // num_buffers is a receiver's.
    told[10..12].fill(0);
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, gso: u8, gso_size: u16, start: u16, offset: u16) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..2].copy_from_slice(&[flags, gso]);
        header[4..6].copy_from_slice(&gso_size.to_le_bytes());
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        header
    }

    #[test]
    fn a_driver_asks_for_what_it_has_accepted() {
        for (flags, gso, needs) in [
            (0, 0, 0),
            (1, 0, CSUM),
            (1, 1, CSUM | HOST_TSO4),
            (1, 4, CSUM | HOST_TSO6),
            (1, 0x81, CSUM | HOST_TSO4 | HOST_ECN),
            (1, 0x84, CSUM | HOST_TSO6 | HOST_ECN),
            (0, 3, HOST_UFO),
        ] {
            let asked = header(flags, gso, 1000, 34, 16);
            assert!(checked(asked, 1000, needs).is_some(), "{flags} {gso:#x}");
            for feature in 0..64 {
                let without = needs & !(1 << feature);
                let accepted = checked(asked, 1000, without).is_some();
                assert_eq!(accepted, without == needs, "{flags} {gso:#x} without {feature}");
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused_whatever_was_accepted() {
        for (what, asked) in [
            ("no such segments", header(0, 2, 1000, 0, 0)),
            ("nor these", header(0, 0x7f, 1000, 0, 0)),
            ("none with congestion", header(0, 0x80, 1000, 0, 0)),
            ("datagrams with congestion", header(0, 0x83, 1000, 0, 0)),
            ("segments of nothing", header(1, 1, 0, 34, 16)),
            ("a checksum behind the frame", header(1, 0, 0, 98, 1)),
            ("far behind", header(1, 0, 0, 0xffff, 0xffff)),
        ] {
            assert_eq!(checked(asked, 100, u64::MAX), None, "{what}");
        }
    }

    #[test]
    fn what_only_a_receiver_says_is_not_passed_on() {
        let mut asked = header(0xfe, 0, 0, 0, 0);
        asked[10..].fill(0xff);
        assert_eq!(checked(asked, 100, 0), Some([0; HEADER]));
    }
}
