//! Random packets and states, near enough to each other to meet.
//!
//! For proptest, which makes a packet that fails smaller until it is the
//! smallest that does.

use std::net::IpAddr;

use portredir_common::flow::Flow;
use portredir_common::net::Port;
use portredir_common::wire::frame::Link;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

use crate::packet::builder::{
    ACK, Body, CLIENT_PORT, FIN, MoreFragments, PSH, Packet, RST, SYN, URG, authentication_header,
    options_header, other4, other6, routing_header,
};
use crate::packet::error::IcmpError;
use crate::packet::flows::{KINDS, Kind};
use crate::packet::mock::Tables;
use crate::packet::{Hook, seen, seen_from};

/// Every rule that random packets may meet.
pub const RULES: &[&str] = &[
    "80:8080/both",
    "81:8080/both",
    "443:9090/udp",
    "8080:7070/udp",
];

const CLIENT_PORTS: [u16; 3] = [CLIENT_PORT, CLIENT_PORT + 1, 8080];
/// Ports of this host that clients dial, and those that servers listen on.
const DIALLED: [u16; 8] = [80, 80, 80, 81, 443, 8080, 9090, 53];
const TARGETS: [u16; 8] = [8080, 8080, 8080, 8080, 9090, 7070, 80, 53];
const REMAPPED: [u16; 2] = [50_123, 50_124];

/// A packet that is what it claims to be.
#[derive(Clone, Debug)]
pub enum Sample {
    Packet(Packet),
    /// The checksum is left out.
    NoChecksum(Packet),
    Error(IcmpError),
}

impl Sample {
    /// The packet, or the one that carries the error.
    pub fn packet(&self) -> Packet {
        match self {
            Self::Packet(packet) | Self::NoChecksum(packet) => packet.clone(),
            Self::Error(error) => error.packet(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.packet().bytes();
        if let Self::NoChecksum(packet) = self {
            let at = packet.transport() + 6;
            if let Some(sum) = bytes.get_mut(at..at + 2) {
                sum.fill(0);
            }
        }
        bytes
    }

    /// Where the ports are that a rewrite changes.
    pub fn ports_at(&self) -> usize {
        match self {
            Self::Packet(packet) | Self::NoChecksum(packet) => packet.transport(),
            Self::Error(error) => error.packet().transport() + 8 + error.about.ip_header_len(),
        }
    }

    /// The sample with other ports.
    pub fn with_ports(&self, src: u16, dst: u16) -> Self {
        match self {
            Self::Packet(packet) => Self::Packet(packet.clone().ports(src, dst)),
            Self::NoChecksum(packet) => Self::NoChecksum(packet.clone().ports(src, dst)),
            Self::Error(error) => Self::Error(error.clone().ports(src, dst)),
        }
    }
}

/// Damage on the way.
#[derive(Clone, Debug)]
pub enum Damage {
    /// Bits of one byte of the headers are flipped.
    Flip(Index, u8),
    /// Two bytes of the headers are replaced.
    Replace(Index, [u8; 2]),
    /// The frame ends early.
    Cut(Index),
}

impl Damage {
    pub fn apply(&self, frame: &mut Vec<u8>) {
        // What is behind the headers interests nobody.
        let headers = frame.len().min(120);
        match self {
            _ if headers < 2 => {}
            Self::Flip(at, bits) => frame[at.index(headers)] ^= bits,
            Self::Replace(at, bytes) => {
                let at = at.index(headers - 1);
                frame[at..at + 2].copy_from_slice(bytes);
            }
            Self::Cut(at) => frame.truncate(at.index(frame.len())),
        }
    }
}

/// No damage, mostly.
pub fn damage() -> impl Strategy<Value = Vec<Damage>> {
    prop_oneof![2 => Just(Vec::new()), 1 => vec(one_damage(), 1..3)]
}

pub fn one_damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        2 => (any::<Index>(), 1..=u8::MAX).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        2 => (any::<Index>(), any::<[u8; 2]>()).prop_map(|(at, bytes)| Damage::Replace(at, bytes)),
        1 => any::<Index>().prop_map(Damage::Cut),
    ]
}

pub fn hook() -> impl Strategy<Value = Hook> {
    select(vec![Hook::Ingress, Hook::Egress])
}

/// A packet that the hook may well have to do with.
pub fn sample(hook: Hook) -> impl Strategy<Value = Sample> {
    prop_oneof![
        8 => packet(hook).prop_map(Sample::Packet),
        1 => packet(hook).prop_map(|packet| match packet.body {
            Body::Udp => Sample::NoChecksum(packet),
            _ => Sample::Packet(packet),
        }),
        2 => error(hook).prop_map(Sample::Error),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    select(KINDS.to_vec())
}

/// A TCP or UDP packet in any shape, or now and then another.
pub fn packet(hook: Hook) -> impl Strategy<Value = Packet> {
    match hook {
        Hook::Ingress => packet_with(hook, &DIALLED),
        Hook::Egress => packet_with(hook, &TARGETS),
    }
}

/// A packet to one of `ports` of this host, or a reply from there.
fn packet_with(hook: Hook, ports: &[u16]) -> impl Strategy<Value = Packet> + use<> {
    let ports = (
        prop_oneof![8 => select(CLIENT_PORTS.to_vec()), 1 => any::<u16>()],
        prop_oneof![8 => select(ports.to_vec()), 1 => any::<u16>()],
        prop_oneof![6 => Just(None), 1 => select(REMAPPED.to_vec()).prop_map(Some)],
    );
    let body = (
        prop_oneof![9 => Just(None), 1 => any::<u8>().prop_map(Some)],
        flags(),
    );
    let payload = prop_oneof![4 => vec(any::<u8>(), 0..64), 1 => vec(any::<u8>(), 64..400)];
    let is_elsewhere = prop::bool::weighted(0.1);
    (kind(), ports, body, payload, shape(), is_elsewhere).prop_map(
        move |(kind, (client, port, remapped), (protocol, flags), payload, shape, is_elsewhere)| {
            let mut packet = kind
                .packet(port)
                .src_port(client)
                .flags(flags)
                .payload(&payload);
            if let Some(protocol) = protocol {
                let other = if kind.is_ipv4 { other4 } else { other6 };
                packet = other(protocol, &packet.payload);
            }
            packet.src_port = remapped.unwrap_or(packet.src_port);
            if hook == Hook::Egress {
                packet = packet.reply();
            }
            if is_elsewhere {
                let ip = if kind.is_ipv4 {
                    IpAddr::from([203, 0, 113, 9])
                } else {
                    IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, 9])
                };
                let end = if hook == Hook::Ingress {
                    &mut packet.dst
                } else {
                    &mut packet.src
                };
                *end = ip;
            }
            shape.apply(packet)
        },
    )
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        2 => Just(ACK),
        2 => Just(SYN),
        1 => subsequence(vec![FIN, SYN, RST, PSH, ACK, URG], 0..=6)
            .prop_map(|flags| flags.into_iter().fold(0, |all, flag| all | flag)),
    ]
}

/// Everything around the ports that parsing has to get past.
#[derive(Clone, Debug)]
struct Shape {
    link: Link,
    tags: Vec<u16>,
    option_words: usize,
    extensions: Vec<(u8, Vec<u8>)>,
    /// Where the fragment begins and ends, and whether it is the first.
    fragment: Option<(Index, Index, bool)>,
    padding: usize,
}

impl Shape {
    fn apply(&self, mut packet: Packet) -> Packet {
        packet.link = self.link;
        packet.tags.clone_from(&self.tags);
        packet.padding = self.padding;
        if packet.src.is_ipv4() {
            packet = packet.ip_options(self.option_words);
        } else {
            packet.extensions.clone_from(&self.extensions);
        }
        let len = packet.ip_bytes().len() - packet.ip_header_len();
        if let Some((from, to, is_first)) = self.fragment {
            let units = len / 8;
            let from = if is_first || units == 0 {
                0
            } else {
                from.index(units)
            };
            let to = from + to.index(units - from + 1);
            let (end, more) = if to == units {
                (len, MoreFragments::No)
            } else {
                (to * 8, MoreFragments::Yes)
            };
            packet = packet.fragment(from * 8, end - from * 8, more);
        }
        packet
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let rarely = |n| prop_oneof![4 => Just(0), 1 => 0..=n];
    let tags = prop_oneof![
        4 => Just(Vec::new()),
        1 => vec(select(vec![0x8100, 0x88a8, 0x9100]), 0..4),
    ];
    let extension = prop_oneof![
        4 => (select(vec![0, 60]), 1_u8..4).prop_map(|(header, units)| options_header(header, units)),
        1 => (0_u8..2).prop_map(routing_header),
        1 => Just(authentication_header()),
        1 => Just((44, vec![0, 0, 0, 0, 0, 0, 0x42, 0x42])),
    ];
    let extensions = prop_oneof![2 => Just(Vec::new()), 1 => vec(extension, 1..8)];
    let fragment = prop_oneof![
        5 => Just(None),
        1 => any::<(Index, Index, bool)>().prop_map(Some),
    ];
    let link = prop_oneof![5 => Just(Link::Ethernet), 1 => Just(Link::Ip)];
    (
        link,
        tags,
        rarely(10_usize),
        extensions,
        fragment,
        rarely(20),
    )
        .prop_map(
            |(link, tags, option_words, extensions, fragment, padding)| Shape {
                link,
                tags,
                option_words,
                extensions,
                fragment,
                padding,
            },
        )
}

/// An ICMP message with a packet in it.
pub fn error(hook: Hook) -> impl Strategy<Value = IcmpError> {
    // A router quotes a reply as we restored it, this host a request as we
    // redirected it.
    let about = match hook {
        Hook::Ingress => packet_with(Hook::Egress, &DIALLED).boxed(),
        Hook::Egress => packet_with(Hook::Ingress, &TARGETS).boxed(),
    };
    let quoted = prop_oneof![1 => Just(8), 1 => Just(usize::MAX), 1 => 0..40_usize];
    let kind = prop_oneof![6 => select(vec![1, 2, 3, 4, 11, 12]), 1 => any::<u8>()];
    let is_from_router = option::weighted(0.5, Just(()));
    (about, kind, any::<u8>(), quoted, is_from_router).prop_map(
        |(mut about, kind, code, quoted, is_from_router)| {
            // It is the error that a frame's padding would be behind.
            about.padding = 0;
            let error = IcmpError::new(kind, code, about).quoted(quoted);
            match (is_from_router, error.router) {
                (None, _) => error,
                (Some(()), IpAddr::V4(_)) => error.router(IpAddr::from([203, 0, 113, 1])),
                (Some(()), IpAddr::V6(_)) => {
                    error.router(IpAddr::from([0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1]))
                }
            }
        },
    )
}

/// Flow state that random packets may meet.
pub fn tables() -> impl Strategy<Value = Tables> {
    let age = || select(vec![0_u64, 0, 60, 130]);
    let flow = (
        kind(),
        select(CLIENT_PORTS.to_vec()),
        any::<bool>(),
        select(vec![80_u16, 81, 8080]),
        age(),
    );
    let remap = (
        kind(),
        select(CLIENT_PORTS.to_vec()),
        select(vec![80_u16, 81, 8080]),
        select(REMAPPED.to_vec()),
        option::of(age()),
    );
    (vec(flow, 0..20), vec(remap, 0..10)).prop_map(|(flows, remaps)| {
        let mut tables = Tables::default();
        for (kind, client, is_new, dialled, age) in flows {
            let table = if is_new {
                kind.new_table()
            } else {
                kind.table()
            };
            let rule = u16::from(dialled == 81);
            let flow = Flow {
                rule,
                ..seen_from(client, dialled, age)
            };
            let key = kind.key_from(client, 8080);
            // A flow moves from SYN to TCP; another there is out of date.
            tables.syn.remove(&key);
            tables.tcp.remove(&key);
            tables = tables.flow(table, key, flow);
        }
        for (kind, client, dialled, remapped, age) in remaps {
            tables = tables.remap(kind.key_from(client, dialled), remapped);
            if let Some(age) = age {
                let flow = Flow {
                    client_port: Port::new(client),
                    ..seen(dialled, age)
                };
                tables = tables.flow(kind.table(), kind.key_from(remapped, 8080), flow);
            }
        }
        tables
    })
}
