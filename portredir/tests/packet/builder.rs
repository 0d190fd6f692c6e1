//! Packets, put together header by header.
//!
//! What a test expects is built like what it sends, with other ports, so its
//! checksums are computed in full and not updated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portredir_common::wire::frame::Link;

pub const CLIENT4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
pub const SERVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7));
pub const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
pub const CLIENT_PORT: u16 = 40_000;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// The part that follows the IP header and its extensions.
#[derive(Clone, Debug)]
pub enum Body {
    Tcp {
        flags: u8,
        options: Vec<u8>,
    },
    Udp,
    /// An ICMP or ICMPv6 message, after the address family.
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    /// A protocol without ports.
    Other(u8),
}

/// The bit of a fragment that says whether others follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoreFragments {
    Yes,
    No,
}

/// A part of the IP payload, in bytes; `offset` is a multiple of eight.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    pub offset: usize,
    pub len: usize,
    pub more: MoreFragments,
}

/// A packet before it is bytes.
#[derive(Clone, Debug)]
pub struct Packet {
    pub link: Link,
    /// EtherTypes of VLAN tags, outermost first.
    pub tags: Vec<u16>,
    pub src: IpAddr,
    pub dst: IpAddr,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers; the first byte of each is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub body: Body,
    pub src_port: u16,
    pub dst_port: u16,
    pub payload: Vec<u8>,
    pub fragment: Option<Fragment>,
    /// Bytes behind the end of the IP packet.
    pub padding: usize,
    /// The sequence number of a TCP segment, and the number that it acknowledges.
    pub numbers: (u32, u32),
}

impl Packet {
    pub fn new(src: IpAddr, dst: IpAddr, dst_port: u16, body: Body) -> Self {
        Self {
            link: Link::Ethernet,
            tags: Vec::new(),
            src,
            dst,
            options: Vec::new(),
            extensions: Vec::new(),
            body,
            src_port: CLIENT_PORT,
            dst_port,
            payload: b"the payload stays as it is".to_vec(),
            fragment: None,
            padding: 0,
            numbers: (0x0102_0304, 0x0506_0708),
        }
    }

    pub fn from(mut self, src: IpAddr, port: u16) -> Self {
        (self.src, self.src_port) = (src, port);
        self
    }

    pub fn to(mut self, dst: IpAddr) -> Self {
        self.dst = dst;
        self
    }

    pub fn ports(mut self, src: u16, dst: u16) -> Self {
        (self.src_port, self.dst_port) = (src, dst);
        self
    }

    pub fn src_port(mut self, port: u16) -> Self {
        self.src_port = port;
        self
    }

    pub fn dst_port(mut self, port: u16) -> Self {
        self.dst_port = port;
        self
    }

    /// The answer to this packet: addresses and ports change places.
    pub fn reply(mut self) -> Self {
        std::mem::swap(&mut self.src, &mut self.dst);
        std::mem::swap(&mut self.src_port, &mut self.dst_port);
        self
    }

    pub fn flags(mut self, set: u8) -> Self {
        if let Body::Tcp { flags, .. } = &mut self.body {
            *flags = set;
        }
        self
    }

    pub fn numbers(mut self, sequence: u32, acknowledged: u32) -> Self {
        self.numbers = (sequence, acknowledged);
        self
    }

    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        if let Body::Tcp { options, .. } = &mut self.body {
            *options = bytes.to_vec();
        }
        self
    }

    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub fn tags(mut self, tags: &[u16]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// IPv4 options of `words` times four bytes: no-operations.
    pub fn ip_options(mut self, words: usize) -> Self {
        self.options = vec![1; words * 4];
        self
    }

    pub fn extension(mut self, (header, bytes): (u8, Vec<u8>)) -> Self {
        self.extensions.push((header, bytes));
        self
    }

    pub fn fragment(mut self, offset: usize, len: usize, more: MoreFragments) -> Self {
        self.fragment = Some(Fragment { offset, len, more });
        self
    }

    pub fn padding(mut self, len: usize) -> Self {
        self.padding = len;
        self
    }

    /// Puts the packet on a device of this link type, with or without an Ethernet
    /// header.
    pub fn on(mut self, link: Link) -> Self {
        self.link = link;
        self
    }
}

/// A change of a packet that its ports have no part in.
pub type Dress = fn(Packet) -> Packet;

const TCP: Body = Body::Tcp {
    flags: PSH | ACK,
    options: Vec::new(),
};

/// A TCP segment of a client, in the middle of a connection.
pub fn tcp4(dst_port: u16) -> Packet {
    Packet::new(CLIENT4, SERVER4, dst_port, TCP)
}

/// A TCP segment of a client over IPv6, in the middle of a connection.
pub fn tcp6(dst_port: u16) -> Packet {
    Packet::new(CLIENT6, SERVER6, dst_port, TCP)
}

/// A SYN with the options that Linux sends.
pub fn syn4(dst_port: u16) -> Packet {
    let options = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    tcp4(dst_port).flags(SYN).payload(&[]).tcp_options(&options)
}

/// A SYN over IPv6 with the options that Linux sends.
pub fn syn6(dst_port: u16) -> Packet {
    Packet {
        src: CLIENT6,
        dst: SERVER6,
        ..syn4(dst_port)
    }
}

/// A datagram of a client.
pub fn udp4(dst_port: u16) -> Packet {
    Packet::new(CLIENT4, SERVER4, dst_port, Body::Udp)
}

/// A datagram of a client over IPv6.
pub fn udp6(dst_port: u16) -> Packet {
    Packet::new(CLIENT6, SERVER6, dst_port, Body::Udp)
}

/// A packet of another protocol, from client to server.
pub fn other4(protocol: u8, payload: &[u8]) -> Packet {
    Packet::new(CLIENT4, SERVER4, 0, Body::Other(protocol)).payload(payload)
}

/// A packet of another protocol over IPv6, from client to server.
pub fn other6(protocol: u8, payload: &[u8]) -> Packet {
    Packet::new(CLIENT6, SERVER6, 0, Body::Other(protocol)).payload(payload)
}

/// An extension header of `units` times eight bytes, filled with padding
/// options (RFC 8200, 4.2).
pub fn options_header(header: u8, units: u8) -> (u8, Vec<u8>) {
    let mut bytes = vec![0; usize::from(units) * 8];
    bytes[1] = units - 1;
    // One option cannot be longer than 255 bytes.
    let mut at = 2;
    while at + 2 <= bytes.len() {
        let len = (bytes.len() - at - 2).min(254);
        bytes[at] = 1;
        bytes[at + 1] = u8::try_from(len).expect("less than 255");
        at += 2 + len;
    }
    (header, bytes)
}

/// A routing header of an experimental type (RFC 4727).
pub fn routing_header(segments_left: u8) -> (u8, Vec<u8>) {
    (43, vec![0, 0, 253, segments_left, 0, 0, 0, 0])
}

/// An authentication header with a 96-bit digest (RFC 4302).
pub fn authentication_header() -> (u8, Vec<u8>) {
    (51, [&[0, 4, 0, 0][..], &[7; 20]].concat())
}
