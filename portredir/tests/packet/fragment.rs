//! Fragments: only the first has ports, and the checksum that covers them.

use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::builder::{ETHERNET, MoreFragments, Packet, options_header};
use super::flows::{KINDS, Kind};
use super::{Case, seen};

pub fn cases() -> Vec<Case> {
    let mut cases = first();
    cases.extend(later());
    cases.extend(too_short());
    cases.extend(atomic());
    cases
}

fn payload(kind: Kind, dst_port: u16) -> Packet {
    // Long enough for a TCP header and three fragments.
    kind.packet(dst_port).payload(&[0x5a; 76])
}

fn first() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        let lens: &[usize] = match kind.protocol {
            Protocol::Tcp => &[24, 48],
            Protocol::Udp => &[8, 16, 48],
        };
        for &len in lens {
            let fragment = |port| payload(kind, port).fragment(0, len, MoreFragments::Yes);
            let name = |what| format!("{}: {what} of {len} bytes", kind.name);
            cases.push(
                Case::ingress(name("first fragment"), &fragment(80)).redirected(&fragment(8080)),
            );
            cases.push(
                Case::egress(name("first fragment of a reply"), &fragment(8080).reply())
                    .flow(kind.table(), kind.key(8080), seen(80, 0))
                    .restored(&fragment(80).reply()),
            );
            let padded = |port| fragment(port).padding(30);
            cases.push(
                Case::ingress(name("padded first fragment"), &padded(80)).redirected(&padded(8080)),
            );
        }
        let tagged = |port| {
            payload(kind, port)
                .tags(&[0x8100])
                .fragment(0, 48, MoreFragments::Yes)
        };
        cases.push(
            Case::ingress(
                format!("{}: first fragment in a VLAN", kind.name),
                &tagged(80),
            )
            .redirected(&tagged(8080)),
        );
        cases.push(
            Case::ingress(
                format!("{}: first fragment to the target", kind.name),
                &payload(kind, 8080).fragment(0, 24, MoreFragments::Yes),
            )
            .unchanged(Reason::Direct),
        );
    }
    cases
}

/// Later fragments have payload where a first fragment has ports.
fn later() -> Vec<Case> {
    let mut cases = Vec::new();
    let looks_like_ports = [0x9c, 0x40, 0, 80, 0, 32, 0xab, 0xcd].repeat(12);
    let looks_like_reply = [0x1f, 0x90, 0x9c, 0x40, 0, 32, 0xab, 0xcd].repeat(12);
    for kind in KINDS {
        // The payload begins behind a header of 8 or 20 bytes.
        let shift = if kind.protocol == Protocol::Tcp { 4 } else { 0 };
        for (place, offset, len, more) in [
            ("second", 8, 48, MoreFragments::Yes),
            ("last", 48, 40, MoreFragments::No),
            ("tiny last", 80, 8, MoreFragments::No),
        ] {
            let fragment = kind.packet(443).payload(&looks_like_ports[8 - shift..]);
            cases.push(
                Case::ingress(
                    format!("{}: {place} fragment that looks like one to 80", kind.name),
                    &fragment.fragment(offset.max(24), len, more),
                )
                .leaves_state(),
            );
            let fragment = kind.reply(443).payload(&looks_like_reply[8 - shift..]);
            cases.push(
                Case::egress(
                    format!("{}: {place} fragment that looks like a reply", kind.name),
                    &fragment.fragment(offset.max(24), len, more),
                )
                .flow(kind.table(), kind.key(8080), seen(80, 0)),
            );
        }
    }
    // Every bit of the offset says so.
    for kind in KINDS {
        let packet = payload(kind, 80).fragment(0, 48, MoreFragments::Yes);
        let (at, shift) = if kind.is_ipv4 {
            (ETHERNET + 6, 0)
        } else {
            (ETHERNET + 42, 3)
        };
        for bit in 0..13 {
            cases.push(
                Case::ingress(
                    format!("{}: fragment offset {}", kind.name, 8 << bit),
                    &packet,
                )
                .edit(|frame| {
                    let [high, low] = u16::to_be_bytes(1 << (bit + shift));
                    frame[at] |= high;
                    frame[at + 1] |= low;
                })
                .leaves_state(),
            );
        }
    }
    cases
}

fn too_short() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        let name = |what: &str| format!("{}: {what}", kind.name);
        if kind.protocol == Protocol::Udp {
            // Half a header, and padding where the rest would be.
            cases.push(
                Case::ingress(
                    name("first fragment that ends before the checksum"),
                    &payload(kind, 80)
                        .fragment(0, 4, MoreFragments::Yes)
                        .padding(30),
                )
                .unchanged(Reason::Malformed)
                .leaves_state(),
            );
            continue;
        }
        for (len, padding) in [(8, 0), (8, 30), (16, 0), (16, 30)] {
            cases.extend(too_short_for_tcp(kind, len, padding));
        }
    }
    cases
}

/// A first fragment of `len` bytes, which does not reach the TCP checksum.
fn too_short_for_tcp(kind: Kind, len: usize, padding: usize) -> Vec<Case> {
    let name = |what: &str| format!("{}: {what}", kind.name);
    let mut cases = Vec::new();
    let what = format!("first fragment of {len} bytes, padding {padding}");
    let fragment = |port| {
        payload(kind, port)
            .fragment(0, len, MoreFragments::Yes)
            .padding(padding)
    };
    cases.push(
        Case::ingress(name(&what), &fragment(80))
            .unchanged(Reason::FragmentTooShort)
            .leaves_state(),
    );
    cases.push(
        Case::ingress(name(&format!("{what}, to the target")), &fragment(8080))
            .unchanged(Reason::Direct),
    );
    cases.push(Case::ingress(
        name(&format!("{what}, to another port")),
        &fragment(443),
    ));
    let mut elsewhere = fragment(80);
    elsewhere.dst = elsewhere.src;
    cases.push(
        Case::ingress(name(&format!("{what}, to another host")), &elsewhere)
            .unchanged(Reason::NotLocal),
    );
    cases.push(
        Case::egress(
            name(&format!("{what}, of a reply")),
            &fragment(8080).reply(),
        )
        .flow(kind.table(), kind.key(8080), seen(80, 0))
        .unchanged(Reason::FragmentTooShort),
    );
    cases.push(
        Case::egress(name(&format!("{what}, direct")), &fragment(8080).reply())
            .unchanged(Reason::Direct),
    );
    cases
}

/// Headers about fragments, in packets that are whole.
fn atomic() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        let name = |what: &str| format!("{}: {what}", kind.name);
        if kind.is_ipv4 {
            for (what, flags) in [("do not fragment", 0x40), ("reserved flag", 0x80)] {
                cases.push(
                    Case::ingress(name(what), &kind.packet(80))
                        .redirected(&kind.packet(8080))
                        .edit(|frame| frame[ETHERNET + 6] = flags),
                );
            }
            continue;
        }
        // RFC 6946.
        let atomic = |packet: Packet| {
            let len = packet.ip_bytes().len() - 40;
            packet.fragment(0, len, MoreFragments::No)
        };
        cases.push(
            Case::ingress(name("atomic fragment"), &atomic(kind.packet(80)))
                .redirected(&atomic(kind.packet(8080))),
        );
        cases.push(
            Case::egress(
                name("atomic fragment of a reply"),
                &atomic(kind.reply(8080)),
            )
            .flow(kind.table(), kind.key(8080), seen(80, 0))
            .restored(&atomic(kind.reply(80))),
        );
        let behind = |packet: Packet| {
            packet
                .extension((44, vec![0, 0, 0, 0, 0, 0, 0x42, 0x42]))
                .extension(options_header(60, 1))
        };
        cases.push(
            Case::ingress(
                name("options behind a fragment header"),
                &behind(kind.packet(80)),
            )
            .redirected(&behind(kind.packet(8080))),
        );
    }
    cases
}
