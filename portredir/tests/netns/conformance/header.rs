//! Fragments, options, extension headers, and packets that are none.

use super::case::{Case, tcp, udp};
use super::client::{Conversation, converse};
use super::frame::{ETHERNET, SYN, Sum, options_header};
use super::ghost::Ghost;
use super::observe::{Observation, check, failure};
use super::site::Site;
use super::tcp::noise;
use super::udp::{send_all, whole};
use crate::lab::Family;
use crate::peer::conn::Proto;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    udp(34, "fragmented", "datagrams of 4000 and 20 000 bytes", fragmented),
    udp(35, "fragments_reversed", "a datagram in three fragments, the last one first", fragments_reversed),
    tcp(36, "tiny_fragments", "SYN in fragments of 8 bytes, the first without the checksum", tiny_fragments),
    udp(37, "looks_like_ports", "a datagram to 8080, whose second fragment begins like a datagram to 80", looks_like_ports),
    udp(38, "first_fragment_twice", "the first fragment twice; another one that overlaps it", first_fragment_twice),
    tcp(39, "ip_options", "SYN behind the IPv4 option record route", ip_options).v4(),
    tcp(40, "extension_headers", "SYN behind hop-by-hop, destination options, and a routing header without segments left", extension_headers).v6(),
    udp(41, "atomic_fragment", "an unfragmented datagram with a fragment header", atomic_fragment).v6(),
    tcp(42, "unknown_extensions", "SYN behind AH, ESP, no next header, eight options headers", unknown_extensions).v6(),
    tcp(43, "truncated", "a SYN that ends after each number of bytes", truncated),
    udp(109, "fragments_interleaved", "two datagrams whose fragments alternate", fragments_interleaved),
    tcp(110, "data_in_fragments", "a TCP segment in two fragments", data_in_fragments),
    tcp(111, "source_route", "SYN behind the IPv4 option loose source route", source_route).v4(),
    tcp(112, "segments_left", "SYN behind a routing header with segments left", segments_left).v6(),
    tcp(113, "six_extensions", "SYN behind six extension headers", six_extensions).v6(),
    tcp(114, "bad_header_checksum", "SYN with a wrong IPv4 header checksum", bad_header_checksum).v4(),
    tcp(115, "bad_data_offset", "SYN with a data offset that is too small; too large", bad_data_offset),
    tcp(116, "length_beyond_frame", "SYN whose IP header has a length beyond the frame", length_beyond_frame),
    tcp(117, "padded_syn", "SYN with Ethernet padding", padded_syn),
    tcp(118, "traffic_class", "SYN with a DSCP, and over IPv6 a flow label", traffic_class),
    udp(119, "tagged_frame", "a datagram in a VLAN for which the host has no device", tagged_frame),
    tcp(120, "ah_v4", "SYN behind AH over IPv4", ah_v4).v4(),
];

fn fragmented(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for len in [4000, 20_000] {
        let begun = Conversation::begin(&site.lab.client, Proto::Udp, 0, family.host(80));
        let fact = match begun.and_then(|mut conversation| conversation.echoes(&noise(len))) {
            Ok(is_same) => check(is_same, "every byte arrived"),
            Err(error) => failure(&error).to_owned(),
        };
        all = all.with(&len.to_string(), &Observation::of(fact));
    }
    all
}

fn fragments_reversed(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let ip = whole(&ghost, 80, &noise(600));
    let mut pieces = ip.cut(240);
    pieces.reverse();
    send_all(&ghost, pieces);
    ghost.seen()
}

fn tiny_fragments(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    ip.sum = Sum::Right;
    send_all(&ghost, ip.cut(8));
    ghost.seen()
}

fn looks_like_ports(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut payload = noise(400);
    // Where the ports of another datagram would be, in the second fragment.
    payload[192..194].copy_from_slice(&ghost.port.to_be_bytes());
    payload[194..196].copy_from_slice(&80_u16.to_be_bytes());
    let ip = whole(&ghost, 8080, &payload);
    send_all(&ghost, ip.cut(200));
    let answers = ghost.answers();
    let is_same = answers.iter().any(|arrival| match &arrival.body {
        super::decode::Body::Udp { payload: heard, .. } => heard.ends_with(&payload),
        _ => false,
    });
    ghost
        .describe(&answers)
        .and(check(is_same, "every byte arrived"))
}

fn first_fragment_twice(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for (name, offset) in [("twice", 0), ("overlap", 120)] {
        let ghost = Ghost::new(site, family);
        let mut ip = whole(&ghost, 80, &noise(600));
        ip.id = ghost.port;
        let pieces = ip.pieces(&[(0, 240), (offset, 240), (240, 400)]);
        send_all(&ghost, pieces);
        all = all.with(name, &ghost.seen());
    }
    all
}

fn ip_options(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for words in [1, 5, 10] {
        let ghost = Ghost::new(site, family);
        let mut ip = ghost.tcp(80, SYN);
        // RFC 791, 3.1: type, length, pointer, then room for addresses.
        ip.options = vec![0; words * 4];
        let len = u8::try_from(words * 4 - 1).expect("short");
        ip.options[..3].copy_from_slice(&[7, len, 4]);
        all = all.with(&format!("{} bytes", words * 4), &ghost.ask(&ip));
    }
    all
}

/// Extension headers and their types.
type Chain = Vec<(u8, Vec<u8>)>;

/// Asks with each of these chains of extension headers.
fn behind(site: &Site, family: Family, chains: &[(&str, Chain)]) -> Observation {
    let mut all = Observation::default();
    for (name, chain) in chains {
        let ghost = Ghost::new(site, family);
        let mut ip = ghost.tcp(80, SYN);
        ip.sum = Sum::Right;
        ip.extensions = chain.clone();
        all = all.with(name, &ghost.ask(&ip));
    }
    all
}

/// A routing header of an experimental type (RFC 4727).
fn routing(segments_left: u8) -> Vec<u8> {
    vec![0, 0, 253, segments_left, 0, 0, 0, 0]
}

fn extension_headers(site: &Site, family: Family) -> Observation {
    let chains = [
        ("hop-by-hop", vec![(0, options_header(1))]),
        ("destination options", vec![(60, options_header(3))]),
        ("routing", vec![(43, routing(0))]),
    ];
    behind(site, family, &chains)
}

fn atomic_fragment(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = whole(&ghost, 80, b"all of it");
    ip.extensions = vec![(44, vec![0, 0, 0, 0, 0, 0, 0x42, 0x42])];
    ghost.ask(&ip)
}

/// An authentication header with a digest of 96 bits (RFC 4302).
fn authentication() -> Vec<u8> {
    [&[0, 4, 0, 0][..], &[7; 20]].concat()
}

fn unknown_extensions(site: &Site, family: Family) -> Observation {
    let eight = [
        vec![(0, options_header(1))],
        vec![(60, options_header(1)); 7],
    ]
    .concat();
    let chains = [
        ("AH", vec![(51, authentication())]),
        ("ESP", vec![(50, vec![0; 16])]),
        ("no next header", vec![(59, vec![0; 8])]),
        ("eight", eight),
    ];
    behind(site, family, &chains)
}

fn truncated(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    ip.sum = Sum::Right;
    let packet = ip.whole();
    for len in ETHERNET..ETHERNET + packet.len() {
        ghost.send_part(&packet, len);
    }
    let short = ghost.seen();
    Observation::default()
        .with("too short", &short)
        .with("whole", &ghost.ask(&ip))
}

fn fragments_interleaved(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let [first, second] = [(1, 500), (2, 300)].map(|(id, len)| {
        let mut ip = whole(&ghost, 80, &noise(len));
        ip.id = id;
        ip.cut(160)
    });
    let mut pieces = Vec::new();
    for i in 0..first.len().max(second.len()) {
        pieces.extend(first.get(i).cloned());
        pieces.extend(second.get(i).cloned());
    }
    send_all(&ghost, pieces);
    let answers = ghost.answers();
    ghost
        .describe(&answers)
        .and(check(answers.len() == 2, "both are answered"))
}

fn data_in_fragments(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let Some(mut connection) = ghost.connect(80) else {
        return Observation::of("no connection");
    };
    let noise = noise(200);
    let mut ip = ghost.ip(connection.segment(0x18, &noise));
    ip.sum = Sum::Right;
    send_all(&ghost, ip.cut(120));
    connection.advance(0x18, noise.len());
    Observation::of(check(connection.is_said_back(&noise), "echoed"))
}

fn source_route(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    // Loose source and record route by an address, which has been passed.
    ip.options = vec![131, 7, 8, 10, 9, 1, 2, 0];
    ghost.ask(&ip)
}

fn segments_left(site: &Site, family: Family) -> Observation {
    behind(site, family, &[("one", vec![(43, routing(1))])])
}

fn six_extensions(site: &Site, family: Family) -> Observation {
    let mut chain = vec![(0, options_header(1))];
    chain.extend(vec![(60, options_header(1)); 5]);
    behind(site, family, &[("six", chain)])
}

fn bad_header_checksum(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    ip.sum = Sum::Right;
    let mut packet = ip.whole();
    packet[10] ^= 1;
    ghost.send_packet(&packet);
    ghost.seen()
}

fn bad_data_offset(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for (name, words) in [("too short", 4), ("too long", 15)] {
        let ghost = Ghost::new(site, family);
        let mut ip = ghost.tcp(80, SYN);
        ip.sum = Sum::Right;
        ip.segment.bytes[12] = words << 4;
        all = all.with(name, &ghost.ask(&ip));
    }
    all
}

fn length_beyond_frame(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    ip.sum = Sum::Right;
    let packet = ip.whole();
    // The headers of a longer packet, of which the rest is missing.
    ip.segment.bytes.extend([0; 100]);
    let longer = ip.whole();
    ghost.send_packet(&longer[..packet.len()]);
    ghost.seen()
}

fn padded_syn(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    ip.sum = Sum::Right;
    ip.padding = 11;
    ghost.ask(&ip)
}

fn traffic_class(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    ip.sum = Sum::Right;
    ip.tos = 0xb8;
    let mut packet = ip.whole();
    if family == Family::V6 {
        packet[2..4].copy_from_slice(&[0xab, 0xcd]);
    }
    ghost.send_packet(&packet);
    ghost.seen()
}

fn tagged_frame(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let ip = whole(&ghost, 80, b"tagged");
    let (to, from) = ghost.macs();
    let kind: [u8; 2] = match family {
        Family::V4 => [0x08, 0x00],
        Family::V6 => [0x86, 0xdd],
    };
    let frame = [&to[..], &from, &[0x81, 0, 0, 10], &kind, &ip.whole()].concat();
    ghost.send_frame(&frame);
    let seen = ghost.seen();
    // The host still works afterwards.
    Observation::default().with("tagged", &seen).with(
        "later",
        &converse(&site.lab.client, Proto::Udp, family.host(80)),
    )
}

fn ah_v4(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    ip.sum = Sum::Right;
    let mut header = authentication();
    header[0] = 6;
    let payload = [header, ip.sealed()].concat();
    ip.segment.protocol = 51;
    ghost.send_packet(&ip.packet(&payload, None));
    ghost.seen()
}
