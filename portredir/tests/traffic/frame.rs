//! Packets of every shape that is supported, and of some that are not.

use std::net::{IpAddr, Ipv6Addr};

use arbitrary::{Result, Unstructured};
use portredir_common::wire::frame::Link;

use crate::packet::Hook;
use crate::packet::builder::{
    ACK, Body, CLIENT4, CLIENT6, FIN, MoreFragments, PSH, Packet, RST, SERVER4, SERVER6, SYN, URG,
    authentication_header, options_header, routing_header,
};
use crate::packet::scenario::{F, G};
use crate::reference::{Carried, Headers, number};

/// Few, so that flows meet.
pub const CLIENT_PORTS: [u16; 5] = [40_000, 40_001, 8080, 50_123, 80];

const FLAGS: [u8; 8] = [
    SYN,
    ACK,
    PSH | ACK,
    SYN | ACK,
    FIN | ACK,
    RST,
    FIN | PSH | URG,
    0,
];

/// A router between a host and the end of a packet.
pub fn router(end: IpAddr) -> IpAddr {
    match end {
        IpAddr::V4(_) => IpAddr::from([203, 0, 113, 1]),
        IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1]),
    }
}

/// IPv4 addresses of clients, and addresses that they send to: mostly of this host.
fn ends4() -> ([IpAddr; 4], [IpAddr; 6]) {
    let clients = [
        CLIENT4,
        CLIENT4,
        [198, 51, 100, 1].into(),
        [203, 0, 113, 9].into(),
    ];
    let locals = [
        SERVER4,
        SERVER4,
        SERVER4,
        [192, 0, 2, 2].into(),
        [127, 0, 0, 1].into(),
        [192, 0, 2, 9].into(),
    ];
    (clients, locals)
}

/// IPv6 addresses of clients, and addresses that they send to: mostly of this host.
fn ends6() -> ([IpAddr; 4], [IpAddr; 6]) {
    let far = [0x2001, 0xdb8, 2, 0, 0, 0, 0, 9];
    let elsewhere = [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2];
    let clients = [CLIENT6, CLIENT6, far.into(), CLIENT6];
    let locals = [
        SERVER6,
        SERVER6,
        SERVER6,
        SERVER6,
        [0, 0, 0, 0, 0, 0, 0, 1].into(),
        elsewhere.into(),
    ];
    (clients, locals)
}

/// Where packets come from.
pub struct Source {
    /// Ports of the host that something is to happen at.
    pub ports: &'static [u16],
    pub link: Link,
    /// Whether some packets are of targets with an address.
    pub has_targets: bool,
}

impl Source {
    /// A packet of a client, or of a server to one.
    pub fn packet(&self, bytes: &mut Unstructured<'_>, hook: Hook) -> Result<Packet> {
        let is_ipv4 = bytes.ratio(1, 2)?;
        let (clients, locals) = if is_ipv4 { ends4() } else { ends6() };
        let body = match bytes.int_in_range(0..=15_u8)? {
            0..=7 => Body::Tcp {
                flags: *bytes.choose(&FLAGS)?,
                options: vec![1; usize::from(bytes.ratio(1, 4)?) * 12],
            },
            8..=14 => Body::Udp,
            _ => Body::Other(bytes.arbitrary()?),
        };
        let port = if bytes.ratio(15, 16)? {
            *bytes.choose(self.ports)?
        } else {
            bytes.arbitrary()?
        };
        let client_port = if bytes.ratio(7, 8)? {
            *bytes.choose(&CLIENT_PORTS)?
        } else {
            bytes.arbitrary()?
        };
        let client = *bytes.choose(&clients)?;
        let local = if self.has_targets && hook == Hook::Egress && bytes.ratio(1, 2)? {
            let halves = *bytes.choose(&[F, G])?;
            IpAddr::from(Ipv6Addr::from(halves[usize::from(!is_ipv4)])).to_canonical()
        } else {
            *bytes.choose(&locals)?
        };
        let packet = Packet::new(client, local, port, body).from(client, client_port);
        let packet = if hook == Hook::Ingress {
            packet
        } else {
            packet.reply()
        };
        let len = *bytes.choose(&[26_usize, 0, 1, 7, 8, 64, 201, 1200])?;
        let packet = packet.payload(&vec![bytes.arbitrary()?; len]).on(self.link);
        if bytes.ratio(1, 3)? {
            shape(bytes, packet)
        } else {
            Ok(packet)
        }
    }
}

/// Everything around the ports that parsing has to get past.
fn shape(bytes: &mut Unstructured<'_>, mut packet: Packet) -> Result<Packet> {
    if bytes.ratio(1, 3)? {
        for _ in 0..bytes.int_in_range(1..=3)? {
            packet
                .tags
                .push(*bytes.choose(&[0x8100, 0x88a8, 0x8100, 0x9100])?);
        }
    }
    if bytes.ratio(1, 4)? {
        packet.padding = bytes.int_in_range(1..=20)?;
    }
    if packet.src.is_ipv4() {
        packet = packet.ip_options(bytes.int_in_range(0..=10)?);
    } else {
        for _ in 0..bytes.int_in_range(0..=7)? {
            packet = packet.extension(extension(bytes)?);
        }
    }
    if bytes.ratio(1, 3)? {
        let len = packet.ip_bytes().len() - packet.ip_header_len();
        let first = if bytes.ratio(2, 3)? {
            0
        } else {
            bytes.int_in_range(0..=len / 8)?
        };
        let last = bytes.int_in_range(first..=len / 8)?;
        let (end, more) = if last == len / 8 {
            (len, MoreFragments::No)
        } else {
            (last * 8, MoreFragments::Yes)
        };
        packet = packet.fragment(first * 8, end - first * 8, more);
    }
    Ok(packet)
}

fn extension(bytes: &mut Unstructured<'_>) -> Result<(u8, Vec<u8>)> {
    Ok(match bytes.int_in_range(0..=9_u8)? {
        0..=2 => options_header(0, bytes.int_in_range(1..=3)?),
        3..=5 => options_header(60, bytes.int_in_range(1..=3)?),
        6 => routing_header(0),
        7 => routing_header(bytes.int_in_range(0..=1)?),
        8 => (44, vec![0, 0, 0, 0, 0, 0, 0x42, 0x42]),
        _ => authentication_header(),
    })
}

/// The frame of a packet; of UDP sometimes without a checksum.
pub fn with_bad_luck(bytes: &mut Unstructured<'_>, packet: &Packet) -> Result<Vec<u8>> {
    let mut frame = packet.bytes();
    if matches!(packet.body, Body::Udp) && bytes.ratio(1, 8)? {
        let at = packet.transport() + 6;
        if let Some(check) = frame.get_mut(at..at + 2) {
            check.fill(0);
        }
    }
    Ok(frame)
}

/// Gives a TCP segment other flags, and the checksum that goes with them.
pub fn set_flags(bytes: &mut Unstructured<'_>, frame: &mut [u8], packet: &Headers) -> Result<()> {
    let at = packet.start + 12;
    let Some(word) = number(frame, at) else {
        return Ok(());
    };
    if packet.carried == Carried::Icmp || number(frame, packet.checksum()).is_none() {
        return Ok(());
    }
    let [high, _] = word.to_be_bytes();
    set(frame, packet, at, [high, *bytes.choose(&FLAGS)?]);
    Ok(())
}

/// Makes a TCP segment, whose ends have changed places, what the other end says next: to a
/// SYN that it agrees, to that an acknowledgement.
pub fn go_on(frame: &mut [u8], packet: &Headers) {
    let at = packet.start + 12;
    let Some([high, flags]) = number(frame, at).map(u16::to_be_bytes) else {
        return;
    };
    if number(frame, packet.checksum()).is_none() {
        return;
    }
    let said: [u8; 8] = frame[packet.start + 4..at].try_into().expect("two numbers");
    let (sequence, acknowledged) = said.split_at(4);
    let sequence = u32::from_be_bytes(sequence.try_into().expect("a number"));
    let next = sequence.wrapping_add(1).to_be_bytes();
    let flags = match flags & (SYN | ACK | RST) {
        SYN => SYN | ACK,
        answer if answer == SYN | ACK => ACK,
        _ => flags,
    };
    let numbers = [acknowledged, &next].concat();
    for (i, half) in numbers.chunks_exact(2).enumerate() {
        set(frame, packet, packet.start + 4 + 2 * i, [half[0], half[1]]);
    }
    set(frame, packet, at, [high, flags]);
}

/// Replaces two bytes of a segment, and has the checksum follow.
fn set(frame: &mut [u8], packet: &Headers, at: usize, new: [u8; 2]) {
    let half = |at: usize| u32::from(number(frame, at).expect("it is there"));
    let check_at = packet.checksum();
    let sum = half(check_at) + half(at) + 65_535 - u32::from(u16::from_be_bytes(new));
    let check = u16::try_from(sum % 65_535).expect("less than 65 535");
    frame[at..at + 2].copy_from_slice(&new);
    frame[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
}
