//! Frames to send, header by header, also such as no stack would send.

use std::net::IpAddr;

use crate::lab::Family;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// The part of a packet after the IP headers.
#[derive(Clone, Debug)]
pub struct Segment {
    /// IP protocol.
    pub protocol: u8,
    /// Header and payload; the checksum is zero until it is known.
    pub bytes: Vec<u8>,
    /// Where the checksum is.
    pub check: usize,
}

/// A TCP header's fields.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    /// Source and destination port.
    pub ports: (u16, u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// A multiple of four bytes.
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

impl Tcp<'_> {
    pub fn segment(self) -> Segment {
        let words = u8::try_from(5 + self.options.len() / 4).expect("few options");
        let mut bytes = ports(self.ports);
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.extend([words << 4, self.flags]);
        bytes.extend(64_240_u16.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.options);
        bytes.extend(self.payload);
        Segment {
            protocol: TCP,
            bytes,
            check: 16,
        }
    }
}

/// A UDP datagram.
pub fn udp(src: u16, dst: u16, payload: &[u8]) -> Segment {
    let mut bytes = ports((src, dst));
    let len = u16::try_from(8 + payload.len()).expect("it fits");
    bytes.extend(len.to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(payload);
    Segment {
        protocol: UDP,
        bytes,
        check: 6,
    }
}

/// An ICMP message, or an ICMPv6 one.
pub fn icmp(family: Family, (kind, code): (u8, u8), rest: [u8; 4], payload: &[u8]) -> Segment {
    let bytes = [&[kind, code, 0, 0][..], &rest, payload].concat();
    Segment {
        protocol: match family {
            Family::V4 => 1,
            Family::V6 => 58,
        },
        bytes,
        check: 2,
    }
}

fn ports((src, dst): (u16, u16)) -> Vec<u8> {
    [src.to_be_bytes(), dst.to_be_bytes()].concat()
}

/// How the checksum of a segment is filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// The correct checksum.
    Right,
    /// Off by one.
    Wrong,
    /// This value.
    Is(u16),
    /// Left to the hardware: the sum of the pseudo-header alone.
    Partial,
}

/// An IP packet.
#[derive(Clone, Debug)]
pub struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// IPv4 identification, or that of an IPv6 fragment.
    pub id: u16,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers and their types; the first byte of each is filled
    /// in here.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub segment: Segment,
    pub sum: Sum,
    /// Bytes behind the end of the packet.
    pub padding: usize,
}

impl Ip {
    pub fn new(src: IpAddr, dst: IpAddr, segment: Segment) -> Self {
        Self {
            src,
            dst,
            ttl: 64,
            tos: 0,
            id: 0x4242,
            options: Vec::new(),
            extensions: Vec::new(),
            segment,
            sum: Sum::Right,
            padding: 0,
        }
    }

    /// The segment with its checksum.
    pub fn sealed(&self) -> Vec<u8> {
        let Segment {
            protocol,
            ref bytes,
            check,
        } = self.segment;
        let mut bytes = bytes.clone();
        let pseudo = match (protocol, self.src) {
            // The checksum of ICMPv4 knows no addresses.
            (1, _) => 0,
            _ => pseudo(self.src, self.dst, protocol, bytes.len()),
        };
        let full = !fold(pseudo + words(&bytes));
        let value = match self.sum {
            Sum::Right if protocol == UDP && full == 0 => 0xffff,
            Sum::Right => full,
            Sum::Wrong => full ^ 1,
            Sum::Is(value) => value,
            Sum::Partial => fold(pseudo),
        };
        if let Some(field) = bytes.get_mut(check..check + 2) {
            field.copy_from_slice(&value.to_be_bytes());
        }
        bytes
    }

    /// The packet in one piece.
    pub fn whole(&self) -> Vec<u8> {
        self.packet(&self.sealed(), None)
    }

    /// The packet in pieces, each with the offset and length of its payload;
    /// offsets are multiples of eight bytes.
    pub fn pieces(&self, pieces: &[(usize, usize)]) -> Vec<Vec<u8>> {
        let sealed = self.sealed();
        let piece = |&(offset, len): &(usize, usize)| {
            let end = (offset + len).min(sealed.len());
            self.packet(&sealed[offset..end], Some((offset, end == sealed.len())))
        };
        pieces.iter().map(piece).collect()
    }

    /// The packet in pieces of equal length.
    pub fn cut(&self, len: usize) -> Vec<Vec<u8>> {
        let total = self.segment.bytes.len();
        let pieces: Vec<_> = (0..total).step_by(len).map(|at| (at, len)).collect();
        self.pieces(&pieces)
    }

    /// One packet with this payload; a fragment has an offset and may be the
    /// last.
    pub fn packet(&self, payload: &[u8], fragment: Option<(usize, bool)>) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let len = 20 + self.options.len();
                let total = u16::try_from(len + payload.len()).expect("it fits");
                let ihl = u8::try_from(len / 4).expect("few options");
                let field = fragment.map_or(0, |(offset, is_last)| {
                    units(offset) | if is_last { 0 } else { 0x2000 }
                });
                let mut packet = vec![0x40 | ihl, self.tos];
                packet.extend(total.to_be_bytes());
                packet.extend(self.id.to_be_bytes());
                packet.extend(field.to_be_bytes());
                packet.extend([self.ttl, self.segment.protocol, 0, 0]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
                packet.extend(&self.options);
                let sum = !fold(words(&packet));
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
                packet.extend(payload);
                packet
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut extensions = self.extensions.clone();
                if let Some((offset, is_last)) = fragment {
                    let field = units(offset) << 3 | u16::from(!is_last);
                    let [high, low] = field.to_be_bytes();
                    let [a, b] = self.id.to_be_bytes();
                    extensions.push((44, vec![0, 0, high, low, 0, 0, a, b]));
                }
                let mut next = self.segment.protocol;
                let mut chain = payload.to_vec();
                for (header, mut bytes) in extensions.into_iter().rev() {
                    bytes[0] = next;
                    next = header;
                    chain = [bytes, chain].concat();
                }
                let mut packet = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
                let len = u16::try_from(chain.len()).expect("it fits");
                packet.extend(len.to_be_bytes());
                packet.extend([next, self.ttl]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
                packet.extend(chain);
                packet
            }
            _ => panic!("addresses of two families"),
        }
    }

    /// Where the transport header is in a packet that is no fragment.
    pub fn header_len(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
        match self.src {
            IpAddr::V4(_) => 20 + self.options.len(),
            IpAddr::V6(_) => 40 + extensions,
        }
    }
}

fn units(offset: usize) -> u16 {
    assert_eq!(offset % 8, 0, "fragments begin at multiples of eight");
    u16::try_from(offset / 8).expect("it fits")
}

/// An extension header of one option that fills it, `units` times eight bytes
/// long (RFC 8200, 4.2). Padding, or, as Linux takes no more of that than seven
/// bytes, an experimental option that is skipped by who does not know it (RFC
/// 4727).
pub fn options_header(units: u8) -> Vec<u8> {
    let len = usize::from(units) * 8;
    let mut bytes = vec![0; len];
    bytes[1] = units - 1;
    bytes[2] = if units == 1 { 1 } else { 0x1e };
    bytes[3] = u8::try_from(len - 4).expect("a short header");
    bytes
}

/// The sum of 16-bit words (RFC 1071).
pub fn words(bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2);
    pairs
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

/// The sum of the pseudo-header.
pub fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u32 {
    let addr = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => words(&addr.octets()),
        IpAddr::V6(addr) => words(&addr.octets()),
    };
    addr(src) + addr(dst) + u32::from(protocol) + u32::try_from(len).expect("a length")
}

/// To 16 bits, carries around the end.
pub fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}
