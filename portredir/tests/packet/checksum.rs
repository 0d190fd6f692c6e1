//! Checksums where ones' complement has two zeros, and ones that are wrong.

use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::builder::{CLIENT_PORT, MoreFragments, Packet, udp4, udp6};
use super::error::IcmpError;
use super::flows::{KINDS, Kind};
use super::{Case, seen};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        cases.extend(of_kind(kind));
    }
    for (name, udp) in [("v4", udp4 as fn(u16) -> Packet), ("v6", udp6)] {
        let none = |frame: &mut Vec<u8>| set(frame, udp(0).transport() + 6, 0);
        // RFC 768: no checksum. Over IPv6 that is for tunnels alone
        // (RFC 6935), and not for us to judge.
        cases.push(
            Case::ingress(format!("udp {name}: no checksum"), &udp(80))
                .redirected(&udp(8080))
                .edit(none),
        );
        let kind = KINDS
            .into_iter()
            .find(|kind| kind.name == format!("udp {name}"));
        let key = kind.expect("one of four").key(8080);
        cases.push(
            Case::egress(
                format!("udp {name}: no checksum in the reply"),
                &udp(8080).reply(),
            )
            .flow(portredir_common::flow::FlowTable::Udp, key, seen(80, 0))
            .restored(&udp(80).reply())
            .edit(none),
        );
        let fragment = |port| {
            udp(port)
                .payload(&[7; 40])
                .fragment(0, 8, MoreFragments::Yes)
        };
        cases.push(
            Case::ingress(
                format!("udp {name}: no checksum in a fragment"),
                &fragment(80),
            )
            .redirected(&fragment(8080))
            .edit(|frame| set(frame, fragment(0).transport() + 6, 0)),
        );
    }
    cases
}

fn of_kind(kind: Kind) -> Vec<Case> {
    [
        payloads(kind),
        corner_sums(kind),
        vec![wrong_sum(kind)],
        icmp_sums(kind),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The offset of the checksum in the transport header.
fn sum_offset(kind: Kind) -> usize {
    match kind.protocol {
        Protocol::Tcp => 16,
        Protocol::Udp => 6,
    }
}

/// Payloads of even and odd length.
fn payloads(kind: Kind) -> Vec<Case> {
    let mut cases = Vec::new();
    let name = |what: &str| format!("{}: {what}", kind.name);
    for len in [0, 1, 2, 3, 25, 26, 1399] {
        let payload: Vec<u8> = (0..len)
            .map(|i| u8::try_from(i % 251).expect("small"))
            .collect();
        let packet = |port| kind.packet(port).payload(&payload);
        cases.push(
            Case::ingress(name(&format!("payload of {len} bytes")), &packet(80))
                .redirected(&packet(8080)),
        );
        cases.push(
            Case::egress(
                name(&format!("payload of {len} bytes in a reply")),
                &packet(8080).reply(),
            )
            .flow(kind.table(), kind.key(8080), seen(80, 0))
            .restored(&packet(80).reply()),
        );
    }
    cases
}

/// Sums at the ends of their range.
fn corner_sums(kind: Kind) -> Vec<Case> {
    let at = sum_offset(kind);
    let mut cases = Vec::new();
    let name = |what: &str| format!("{}: {what}", kind.name);
    // For UDP a sum of zero is sent as 0xffff; for TCP it is zero.
    let zero = if kind.protocol == Protocol::Udp {
        0xffff
    } else {
        0
    };
    for (what, sum) in [("zero", zero), ("one", 1), ("0xfffe", 0xfffe)] {
        let after = with_sum(kind.packet(8080), at, sum);
        cases.push(
            Case::ingress(
                name(&format!("new checksum is {what}")),
                &after.clone().dst_port(80),
            )
            .redirected(&after),
        );
        let before = with_sum(kind.packet(80), at, sum);
        cases.push(
            Case::ingress(name(&format!("old checksum is {what}")), &before)
                .redirected(&before.clone().dst_port(8080)),
        );
        let after = with_sum(kind.reply(80), at, sum);
        cases.push(
            Case::egress(
                name(&format!("new checksum of a reply is {what}")),
                &after.clone().src_port(8080),
            )
            .flow(kind.table(), kind.key(8080), seen(80, 0))
            .restored(&after),
        );
    }
    cases
}

/// A wrong sum is wrong by as much afterwards, so the stack still drops the packet.
fn wrong_sum(kind: Kind) -> Case {
    let at = sum_offset(kind);
    let off_by = |packet: &Packet, error: u16| {
        let mut frame = packet.bytes();
        let at = packet.transport() + at;
        let sum = u16::from_be_bytes([frame[at], frame[at + 1]]);
        set(&mut frame, at, sum.checked_sub(error).expect("no borrow"));
        frame
    };
    let before = with_sum(kind.packet(80), at, 0x8000);
    let mut case = Case::ingress(format!("{}: wrong checksum", kind.name), &before).becomes_bytes(
        Reason::Redirected,
        off_by(&before.clone().dst_port(8080), 0x11),
    );
    case.packet = off_by(&before, 0x11);
    case
}

/// ICMP errors with sums at the ends of their range.
fn icmp_sums(kind: Kind) -> Vec<Case> {
    let mut cases = Vec::new();
    let name = |what: &str| format!("{}: {what}", kind.name);
    let (error, code) = if kind.is_ipv4 { (3, 4) } else { (2, 0) };
    for sum in [0, 1, 0xfffe] {
        let mut error = IcmpError::new(error, code, kind.reply(80));
        let after = |error: &IcmpError| error.clone().ports(8080, CLIENT_PORT).packet();
        error.rest = [0; 4];
        let word = word_for(sum, sum_at(&after(&error), 2));
        error.rest[2..].copy_from_slice(&word.to_be_bytes());
        assert_eq!(sum_at(&after(&error), 2), sum);
        cases.push(
            Case::ingress(
                name(&format!("new checksum of an icmp error is {sum:#x}")),
                &error.packet(),
            )
            .flow(kind.table(), kind.key(8080), seen(80, 0))
            .becomes(Reason::IcmpTranslated, &after(&error)),
        );
    }
    cases
}

/// `packet` with a payload that makes its checksum `sum`.
fn with_sum(packet: Packet, at: usize, sum: u16) -> Packet {
    let packet = packet.payload(&[0, 0]);
    let word = word_for(sum, sum_at(&packet, at));
    let packet = packet.payload(&word.to_be_bytes());
    assert_eq!(sum_at(&packet, at), sum);
    packet
}

/// The word that changes a checksum to `sum`, where it is `now` with zero
/// instead.
fn word_for(sum: u16, now: u16) -> u16 {
    let (word, carry) = now.overflowing_add(!sum);
    word + u16::from(carry)
}

/// The checksum `at` bytes into the transport header.
fn sum_at(packet: &Packet, at: usize) -> u16 {
    let frame = packet.bytes();
    let at = packet.transport() + at;
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn set(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
