//! From a [`Packet`] to its bytes.
//!
//! Every header and every checksum comes from etherparse, which shares nothing
//! with the datapath; what it cannot write (IPv6 extension chains, tags of any
//! kind, fragments) is a few raw bytes here.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Type, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv4Options, Ipv6Header, TcpHeader, UdpHeader,
};
use portredir_common::wire::frame::Link;

use super::builder::{
    ACK, Body, ETHERNET, FIN, Fragment, MoreFragments, PSH, Packet, RST, SYN, URG,
};

/// The reason that lengths fit into their fields.
const SHORT: &str = "no payload is that long";

impl Packet {
    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.link == Link::Ethernet {
            let ip = if self.src.is_ipv4() {
                EtherType::IPV4.0
            } else {
                EtherType::IPV6.0
            };
            let mut types = self.tags.iter().copied().chain([ip]);
            let header = Ethernet2Header {
                destination: [2, 0, 0, 0, 0, 1],
                source: [2, 0, 0, 0, 0, 2],
                ether_type: EtherType(types.next().expect("the IP header has a type")),
            };
            bytes.extend(header.to_bytes());
            for (i, ethertype) in types.enumerate() {
                bytes.extend([0, u8::try_from(i + 10).expect("few tags")]);
                bytes.extend(ethertype.to_be_bytes());
            }
        }
        bytes.extend(self.ip_bytes());
        // No zeros: a change there has to show.
        bytes.extend(vec![0xee; self.padding]);
        bytes
    }

    /// Bytes before the IP header.
    pub fn link_len(&self) -> usize {
        match self.link {
            Link::Ethernet => ETHERNET + 4 * self.tags.len(),
            Link::Ip => 0,
        }
    }

    /// Bytes of the IP header and its extensions.
    pub fn ip_header_len(&self) -> usize {
        if self.src.is_ipv4() {
            return 20 + self.options.len();
        }
        let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
        40 + extensions + if self.fragment.is_some() { 8 } else { 0 }
    }

    /// Where the TCP, UDP or ICMP header is in the frame.
    pub fn transport(&self) -> usize {
        self.link_len() + self.ip_header_len()
    }

    /// The IP packet.
    pub fn ip_bytes(&self) -> Vec<u8> {
        let (protocol, mut payload) = self.transport_bytes();
        let fragment = self.fragment;
        if let Some(Fragment { offset, len, .. }) = fragment {
            payload = payload[offset..offset + len].to_vec();
        }
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header = Ipv4Header {
                    identification: 0x4242,
                    time_to_live: 64,
                    protocol: IpNumber(protocol),
                    source: src.octets(),
                    destination: dst.octets(),
                    options: Ipv4Options::try_from(&self.options[..]).expect("whole words"),
                    ..Default::default()
                };
                if let Some(Fragment { offset, more, .. }) = fragment {
                    header.more_fragments = more == MoreFragments::Yes;
                    header.fragment_offset = fragment_offset(offset);
                }
                header.set_payload_len(payload.len()).expect("it fits");
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], &payload].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut extensions = self.extensions.clone();
                if let Some(Fragment { offset, more, .. }) = fragment {
                    let more = u16::from(more == MoreFragments::Yes);
                    let field = fragment_offset(offset).value() << 3 | more;
                    let [high, low] = field.to_be_bytes();
                    extensions.push((44, vec![0, 0, high, low, 0, 0, 0x42, 0x42]));
                }
                let mut next = protocol;
                let mut chain = Vec::new();
                for (header, mut bytes) in extensions.into_iter().rev() {
                    bytes[0] = next;
                    next = header;
                    chain = [bytes, chain].concat();
                }
                chain.extend(payload);
                let header = Ipv6Header {
                    payload_length: u16::try_from(chain.len()).expect("it fits"),
                    next_header: IpNumber(next),
                    hop_limit: 64,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Default::default()
                };
                [&header.to_bytes()[..], &chain].concat()
            }
            _ => panic!("addresses of two families"),
        }
    }

    /// The IP protocol and the whole datagram, before it is cut in fragments.
    fn transport_bytes(&self) -> (u8, Vec<u8>) {
        match &self.body {
            Body::Tcp { flags, options } => (6, self.tcp_bytes(*flags, options)),
            Body::Udp => (17, self.udp_bytes()),
            &Body::Icmp { kind, code, rest } => match (self.src, self.dst) {
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    let message = Icmpv6Type::Unknown {
                        type_u8: kind,
                        code_u8: code,
                        bytes5to8: rest,
                    };
                    let sum = message.calc_checksum(src.octets(), dst.octets(), &self.payload);
                    let sum = sum.expect(SHORT);
                    (58, self.icmp_bytes([kind, code], sum, rest))
                }
                _ => {
                    let message = Icmpv4Type::Unknown {
                        type_u8: kind,
                        code_u8: code,
                        bytes5to8: rest,
                    };
                    let sum = message.calc_checksum(&self.payload);
                    (1, self.icmp_bytes([kind, code], sum, rest))
                }
            },
            Body::Other(protocol) => (*protocol, self.payload.clone()),
        }
    }

    fn tcp_bytes(&self, flags: u8, options: &[u8]) -> Vec<u8> {
        let payload = &self.payload[..];
        let (sequence, acknowledged) = self.numbers;
        let mut header = TcpHeader::new(self.src_port, self.dst_port, sequence, 502);
        header.acknowledgment_number = acknowledged;
        header.fin = flags & FIN != 0;
        header.syn = flags & SYN != 0;
        header.rst = flags & RST != 0;
        header.psh = flags & PSH != 0;
        header.ack = flags & ACK != 0;
        header.urg = flags & URG != 0;
        header.set_options_raw(options).expect("whole words");
        header.checksum = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
            }
            _ => panic!("addresses of two families"),
        }
        .expect(SHORT);
        [&header.to_bytes()[..], payload].concat()
    }

    fn udp_bytes(&self) -> Vec<u8> {
        let payload = &self.payload[..];
        let mut header = UdpHeader {
            source_port: self.src_port,
            destination_port: self.dst_port,
            length: u16::try_from(8 + payload.len()).expect(SHORT),
            checksum: 0,
        };
        header.checksum = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
            }
            _ => panic!("addresses of two families"),
        }
        .expect(SHORT);
        [&header.to_bytes()[..], payload].concat()
    }

    /// A message of ICMP or ICMPv6, which begin alike.
    fn icmp_bytes(&self, kind_and_code: [u8; 2], sum: u16, rest: [u8; 4]) -> Vec<u8> {
        let sum = sum.to_be_bytes();
        [&kind_and_code[..], &sum, &rest, &self.payload].concat()
    }
}

fn fragment_offset(bytes: usize) -> IpFragOffset {
    assert_eq!(bytes % 8, 0, "fragments begin at multiples of eight");
    let units = u16::try_from(bytes / 8).expect("it fits");
    IpFragOffset::try_new(units).expect("it fits")
}
