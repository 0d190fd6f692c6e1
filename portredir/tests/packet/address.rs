//! Only packets to this host are redirected.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portredir_common::flow::FlowTable;
use portredir_common::verdict::Reason;

use super::builder::{tcp4, tcp6, udp4, udp6};
use super::flows::{KINDS, Kind};
use super::mock::Tables;
use super::{Case, Iface, key, seen};

pub fn cases() -> Vec<Case> {
    let mut cases = not_local();
    cases.extend(loopback());
    for kind in KINDS.into_iter().filter(|kind| kind.is_ipv4) {
        let second = IpAddr::from([192, 0, 2, 2]);
        let packet = |port| kind.packet(port).to(second);
        let client = (packet(0).src, packet(0).src_port);
        cases.push(
            Case::ingress(format!("{}: to a second address", kind.name), &packet(80))
                .redirected(&packet(8080))
                .leaves(Tables::default().flow(
                    kind.new_table(),
                    key(kind.protocol, client, (second, 8080)),
                    seen(80, 0),
                )),
        );
        // The same ports, but the flow is one with the other address.
        cases.push(
            Case::egress(
                format!("{}: from a second address", kind.name),
                &packet(8080).reply(),
            )
            .flow(kind.table(), kind.key(8080), seen(80, 0))
            .unchanged(Reason::Direct),
        );
    }
    cases
}

fn not_local() -> Vec<Case> {
    let mut cases: Vec<_> = addrs_of_others()
        .into_iter()
        .flat_map(|(name, dst)| to_others(name, dst))
        .collect();
    cases.extend(KINDS.into_iter().map(forwarded_reply));
    cases
}

/// Addresses that are not of this host.
fn addrs_of_others() -> [(&'static str, IpAddr); 9] {
    [
        ("another host", IpAddr::from([192, 0, 2, 99])),
        (
            "the network's broadcast address",
            IpAddr::from([192, 0, 2, 255]),
        ),
        ("the broadcast address", IpAddr::from(Ipv4Addr::BROADCAST)),
        ("a multicast group", IpAddr::from([224, 0, 0, 251])),
        ("address zero", IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        (
            "another host v6",
            IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99]),
        ),
        (
            "a multicast group v6",
            IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 0xfb]),
        ),
        ("address zero v6", IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        (
            "an address of this host that is no IPv6 one",
            IpAddr::from(Ipv4Addr::from([192, 0, 2, 2]).to_ipv6_mapped()),
        ),
    ]
}

/// Packets to a destination port and to a target port of another host.
fn to_others(name: &str, dst: IpAddr) -> Vec<Case> {
    let (tcp, udp) = if dst.is_ipv4() {
        (tcp4(80), udp4(80))
    } else {
        (tcp6(80), udp6(80))
    };
    [("tcp", tcp.to(dst)), ("udp", udp.to(dst))]
        .into_iter()
        .flat_map(|(protocol, packet)| {
            let target = packet.clone().dst_port(8080);
            [
                Case::ingress(format!("{protocol} to {name}: port 80"), &packet)
                    .unchanged(Reason::NotLocal)
                    .leaves_state(),
                // No rule concerns forwarded traffic to a target port.
                Case::ingress(format!("{protocol} to {name}: port 8080"), &target)
                    .unchanged(Reason::NoRule)
                    .leaves_state(),
            ]
        })
        .collect()
}

/// A packet of another host, from a target port.
fn forwarded_reply(kind: Kind) -> Case {
    let forwarded = kind
        .reply(8080)
        .from(kind.packet(0).src, 8080)
        .to(kind.packet(0).dst);
    Case::egress(
        format!("{}: forwarded, from a target port", kind.name),
        &forwarded,
    )
    .flow(kind.table(), kind.key(8080), seen(80, 0))
    .unchanged(Reason::Direct)
    .leaves_state()
}

/// Loopback addresses are local on `lo`, and martians elsewhere.
fn loopback() -> Vec<Case> {
    let addrs = [
        ("loopback", IpAddr::from(Ipv4Addr::LOCALHOST)),
        ("another loopback", IpAddr::from([127, 5, 5, 5])),
        ("loopback v6", IpAddr::from(Ipv6Addr::LOCALHOST)),
    ];
    let mut cases = Vec::new();
    for (name, dst) in addrs {
        for protocol in ["tcp", "udp"] {
            let packet = |port| match (protocol, dst) {
                ("tcp", IpAddr::V4(_)) => tcp4(port).to(dst),
                ("tcp", IpAddr::V6(_)) => tcp6(port).to(dst),
                (_, IpAddr::V4(_)) => udp4(port).to(dst),
                (_, IpAddr::V6(_)) => udp6(port).to(dst),
            };
            cases.push(
                Case::ingress(format!("{protocol} to {name}: on lo"), &packet(80))
                    .redirected(&packet(8080)),
            );
            cases.push(
                Case::ingress(format!("{protocol} to {name}: elsewhere"), &packet(80))
                    .iface(Iface::Other)
                    .unchanged(Reason::NotLocal)
                    .leaves_state(),
            );
        }
    }
    for kind in KINDS {
        cases.push(
            Case::ingress(format!("{}: not on lo", kind.name), &kind.packet(80))
                .iface(Iface::Other)
                .redirected(&kind.packet(8080)),
        );
        cases.push(
            Case::egress(format!("{}: reply not on lo", kind.name), &kind.reply(8080))
                .iface(Iface::Other)
                .flow(FlowTable::Tcp, kind.key(8080), seen(80, 0))
                .flow(FlowTable::Udp, kind.key(8080), seen(80, 0))
                .restored(&kind.reply(80)),
        );
    }
    cases
}
