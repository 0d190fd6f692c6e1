//! The first packet of a flow, as bytes and back.

use std::net::IpAddr;

use portredir_common::net::{Port, Protocol};
use portredir_common::wire::frame::Link;
use serde::Serialize;

use super::query::end;
use crate::observe::listening::name_of;

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// The offsets of destination addresses.
const IPV4_DST: usize = 16;
const IPV6_DST: usize = 24;

/// A packet in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Packet {
    /// The protocol, `tcp` or `udp`.
    pub protocol: &'static str,
    /// The source address and port.
    pub src: String,
    /// The destination address and port.
    pub dst: String,
}

/// The ends of the first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The protocol.
    pub protocol: Protocol,
    /// The source.
    pub src: (IpAddr, Port),
    /// The destination.
    pub dst: (IpAddr, Port),
}

impl Ends {
    /// The packet in words.
    #[must_use]
    pub fn packet(&self) -> Packet {
        let text = |(addr, port): (IpAddr, Port)| end(addr, port.get());
        Packet {
            protocol: name_of(self.protocol),
            src: text(self.src),
            dst: text(self.dst),
        }
    }

    /// The packet as bytes: a SYN, or a datagram without data.
    #[must_use]
    pub fn frame(&self, link: Link) -> Vec<u8> {
        let transport = self.transport();
        let len = u16::try_from(transport.len()).expect("a header");
        let (ethertype, mut ip): ([u8; 2], Vec<u8>) = match (self.src.0, self.dst.0) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let total = (len + 20).to_be_bytes();
                let mut ip = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64];
                ip.extend([self.protocol as u8, 0, 0]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                let check = !sum(&ip);
                ip[10..12].copy_from_slice(&check.to_be_bytes());
                ([0x08, 0x00], ip)
            }
            (src, dst) => {
                let len = len.to_be_bytes();
                let mut ip = vec![0x60, 0, 0, 0, len[0], len[1], self.protocol as u8, 64];
                ip.extend(octets(src));
                ip.extend(octets(dst));
                ([0x86, 0xdd], ip)
            }
        };
        ip.extend(transport);
        match link {
            Link::Ip => ip,
            Link::Ethernet => {
                let addrs = [0; ETHERNET_LEN - 2];
                [&addrs[..], &ethertype, &ip].concat()
            }
        }
    }

    /// The TCP or UDP header, with its checksum.
    fn transport(&self) -> Vec<u8> {
        let mut header = [self.src.1.bytes(), self.dst.1.bytes()].concat();
        let at = match self.protocol {
            Protocol::Tcp => {
                // Sequence number 1; a SYN of 20 bytes; a window.
                header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0]);
                16
            }
            Protocol::Udp => {
                header.extend([0, 8, 0, 0]);
                6
            }
        };
        let len = u8::try_from(header.len()).expect("a header");
        let mut pseudo = octets(self.src.0);
        pseudo.extend(octets(self.dst.0));
        pseudo.extend([0, self.protocol as u8, 0, len]);
        pseudo.extend(&header);
        let check = match !sum(&pseudo) {
            0 if self.protocol == Protocol::Udp => 0xffff,
            check => check,
        };
        header[at..at + 2].copy_from_slice(&check.to_be_bytes());
        header
    }

    /// The ends of this packet after a program has had it; `None` when it has another length,
    /// or a checksum that is wrong. A program leaves the source address as it is.
    #[must_use]
    pub fn ends_of(&self, link: Link, frame: &[u8]) -> Option<Self> {
        let link_len = match link {
            Link::Ethernet => ETHERNET_LEN,
            Link::Ip => 0,
        };
        let (dst, ip_len): (IpAddr, _) = if self.dst.0.is_ipv4() {
            let addr: [u8; 4] = bytes(frame, link_len + IPV4_DST)?;
            (addr.into(), IPV4_LEN)
        } else {
            let addr: [u8; 16] = bytes(frame, link_len + IPV6_DST)?;
            (addr.into(), IPV6_LEN)
        };
        let port = |at: usize| {
            let port = bytes(frame, link_len + ip_len + at)?;
            Some(Port::new(u16::from_be_bytes(port)))
        };
        let ends = Self {
            src: (self.src.0, port(0)?),
            dst: (dst, port(2)?),
            ..*self
        };
        (ends.frame(link) == frame).then_some(ends)
    }
}

/// Some bytes of a frame.
fn bytes<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at + N)?.try_into().ok()
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The sum of RFC 1071 over an even number of bytes.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketHeaders, TransportHeader};

    use super::*;

    #[test]
    fn an_independent_parser_agrees() {
        let addrs = [["203.0.113.9", "10.0.0.5"], ["2001:db8::9", "2001:db8::1"]];
        for [src, dst] in addrs.map(|both| both.map(|addr| addr.parse().expect("an address"))) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let ends = Ends {
                    protocol,
                    src: (src, Port::new(40_000)),
                    dst: (dst, Port::new(80)),
                };
                let frame = ends.frame(Link::Ethernet);
                let headers = PacketHeaders::from_ethernet_slice(&frame).expect("a packet");
                let net = headers.net.expect("an IP header");
                let (ports, check, expected) = match headers.transport.expect("a header") {
                    TransportHeader::Tcp(tcp) => {
                        assert!(tcp.syn && !tcp.ack);
                        let expected = match &net {
                            etherparse::NetHeaders::Ipv4(ip, _) => tcp.calc_checksum_ipv4(ip, &[]),
                            etherparse::NetHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(ip, &[]),
                            etherparse::NetHeaders::Arp(_) => panic!("ARP"),
                        };
                        (
                            (tcp.source_port, tcp.destination_port),
                            tcp.checksum,
                            expected,
                        )
                    }
                    TransportHeader::Udp(udp) => {
                        let expected = match &net {
                            etherparse::NetHeaders::Ipv4(ip, _) => udp.calc_checksum_ipv4(ip, &[]),
                            etherparse::NetHeaders::Ipv6(ip, _) => udp.calc_checksum_ipv6(ip, &[]),
                            etherparse::NetHeaders::Arp(_) => panic!("ARP"),
                        };
                        (
                            (udp.source_port, udp.destination_port),
                            udp.checksum,
                            expected,
                        )
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(ports, (40_000, 80));
                assert_eq!(check, expected.expect("a checksum"));
                if let etherparse::NetHeaders::Ipv4(ip, _) = &net {
                    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                }
                for link in [Link::Ethernet, Link::Ip] {
                    // To another port, and to another address as well.
                    check_ends_of(&ends, link, [dst, src]);
                }
            }
        }
    }

    /// The ends of a packet that was given other destinations are read, unless it is damaged.
    fn check_ends_of(ends: &Ends, link: Link, dsts: [IpAddr; 2]) {
        for dst in dsts {
            let other = Ends {
                dst: (dst, Port::new(8080)),
                ..*ends
            };
            let rewritten = other.frame(link);
            assert_eq!(ends.ends_of(link, &rewritten), Some(other));
            let mut damaged = rewritten;
            *damaged.last_mut().expect("a byte") ^= 1;
            assert_eq!(ends.ends_of(link, &damaged), None);
        }
    }
}
