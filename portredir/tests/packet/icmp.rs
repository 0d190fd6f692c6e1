//! ICMP errors, which quote a packet that was rewritten.

use std::net::IpAddr;

use portredir_common::flow::FlowTable;
use portredir_common::verdict::Reason;
use portredir_common::wire::frame::Link;

use super::builder::{CLIENT_PORT, Dress, MoreFragments, Packet, options_header};
use super::error::IcmpError;
use super::flows::{KINDS, Kind};
use super::mock::Tables;
use super::{CHAINED, Case, seen};

/// A client port that was given on a collision.
const REMAPPED: u16 = 50_123;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        cases.extend(translated(kind));
        cases.extend(collisions(kind));
    }
    cases
}

/// Types and codes of errors.
pub fn errors(is_ipv4: bool) -> &'static [(u8, u8)] {
    if is_ipv4 {
        &[(3, 1), (3, 3), (3, 4), (4, 0), (11, 0), (12, 0)]
    } else {
        &[(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)]
    }
}

/// The error of a router about a reply, as the wire saw it.
pub fn about_reply(kind: Kind) -> IcmpError {
    let router = if kind.is_ipv4 {
        IpAddr::from([203, 0, 113, 1])
    } else {
        IpAddr::from([0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1])
    };
    let (kind_of_error, code) = errors(kind.is_ipv4)[0];
    IcmpError::new(kind_of_error, code, kind.reply(80)).router(router)
}

/// The error of this host about a client's packet, as we rewrote it.
pub fn about_request(kind: Kind) -> IcmpError {
    let (kind_of_error, code) = errors(kind.is_ipv4)[1];
    IcmpError::new(kind_of_error, code, kind.packet(8080))
}

fn incoming(name: String, kind: Kind, error: &IcmpError) -> Case {
    Case::ingress(name, &error.packet())
        .flow(kind.table(), kind.key(8080), seen(80, 0))
        .becomes(
            Reason::IcmpTranslated,
            &error.clone().ports(8080, CLIENT_PORT).packet(),
        )
        .leaves_state()
}

fn outgoing(name: String, kind: Kind, error: &IcmpError) -> Case {
    Case::egress(name, &error.packet())
        .flow(kind.table(), kind.key(8080), seen(80, 0))
        .becomes(
            Reason::IcmpTranslated,
            &error.clone().ports(CLIENT_PORT, 80).packet(),
        )
        .leaves_state()
}

fn translated(kind: Kind) -> Vec<Case> {
    let mut cases = Vec::new();
    let name = |what: String| format!("icmp about {}: {what}", kind.name);
    for &(error, code) in errors(kind.is_ipv4) {
        for quoted in [8, 20, usize::MAX] {
            let length = if quoted == usize::MAX {
                "all".into()
            } else {
                quoted.to_string()
            };
            let of = |about: IcmpError| {
                IcmpError {
                    kind: error,
                    code,
                    ..about
                }
                .quoted(quoted)
            };
            let what = |way| name(format!("{way} {error}/{code}, quoting {length}"));
            cases.push(incoming(what("in"), kind, &of(about_reply(kind))));
            cases.push(outgoing(what("out"), kind, &of(about_request(kind))));
        }
    }
    cases.extend(shapes(kind));
    cases.push(with_options(kind));
    cases.extend(corners(kind));
    cases
}

/// Shapes of the quoted packet.
fn shapes(kind: Kind) -> Vec<Case> {
    let mut cases = Vec::new();
    let name = |what: String| format!("icmp about {}: {what}", kind.name);
    let mut shapes: Vec<(&str, Dress)> = vec![
        ("in a VLAN", |packet| packet.tags(&[0x8100])),
        ("in two VLANs", |packet| packet.tags(&[0x88a8, 0x8100])),
        ("on an IP device", |packet| packet.on(Link::Ip)),
        ("about a first fragment", |packet| {
            packet.payload(&[9; 80]).fragment(0, 64, MoreFragments::Yes)
        }),
        ("about 1300 bytes", |packet| packet.payload(&[9; 1300])),
    ];
    if kind.is_ipv4 {
        shapes.push(("about 6 words of header", |packet| packet.ip_options(1)));
        shapes.push(("about 15 words of header", |packet| packet.ip_options(10)));
    } else {
        shapes.push(("about options", |packet| {
            packet.extension(options_header(60, 2))
        }));
        shapes.push(("about six headers", |packet| {
            (0..6).fold(packet, |packet, _| packet.extension(options_header(60, 1)))
        }));
    }
    for (what, shape) in shapes {
        for quoted in [8, usize::MAX] {
            let length = if quoted == 8 { "8" } else { "all" };
            let of = |about: IcmpError| {
                IcmpError {
                    about: shape(about.about.clone()),
                    ..about
                }
                .quoted(quoted)
            };
            let what = |way| name(format!("{way} {what}, quoting {length}"));
            cases.push(incoming(what("in"), kind, &of(about_reply(kind))));
            cases.push(outgoing(what("out"), kind, &of(about_request(kind))));
        }
    }
    cases
}

/// The error itself has options.
fn with_options(kind: Kind) -> Case {
    let dress = |packet: Packet| {
        if kind.is_ipv4 {
            packet.ip_options(2)
        } else {
            packet.extension(options_header(0, 1))
        }
    };
    let error = about_reply(kind);
    let mut case = incoming(
        format!("icmp about {}: in an error with options", kind.name),
        kind,
        &error,
    )
    .becomes(
        Reason::IcmpTranslated,
        &dress(error.clone().ports(8080, CLIENT_PORT).packet()),
    );
    case.packet = dress(error.packet()).bytes();
    case
}

/// A flow without a socket, and a target port that clients connect to.
fn corners(kind: Kind) -> Vec<Case> {
    let mut cases = Vec::new();
    let name = |what: String| format!("icmp about {}: {what}", kind.name);
    let mut case = incoming(
        name("in, flow without a socket yet".into()),
        kind,
        &about_reply(kind),
    );
    case.before = Tables::default().flow(kind.new_table(), kind.key(8080), seen(80, 0));
    cases.push(case.leaves_state());

    let error = about_reply(kind);
    let chained = IcmpError {
        about: kind.reply(8080),
        ..error
    };
    cases.push(
        Case::ingress(
            name("in, of a target port that is also a destination port".into()),
            &chained.packet(),
        )
        .rules(CHAINED)
        .flow(kind.table(), kind.key(9090), seen(8080, 0))
        .becomes(
            Reason::IcmpTranslated,
            &chained.ports(9090, CLIENT_PORT).packet(),
        ),
    );
    cases
}

/// Flows with another client port: both quoted ports change.
fn collisions(kind: Kind) -> Vec<Case> {
    let name = |what| format!("icmp about {}: {what}", kind.name);
    let remapped = kind.key_from(REMAPPED, 8080);
    let redirected = about_reply(kind);
    let direct = IcmpError {
        about: kind.reply(8080),
        ..redirected.clone()
    };
    let request = about_request(kind);
    let request = IcmpError {
        about: request.about.clone().src_port(REMAPPED),
        ..request
    };
    vec![
        Case::ingress(name("in, remapped"), &redirected.packet())
            .flow(kind.table(), remapped, seen(80, 0))
            .flow(FlowTable::Udp, kind.key(8080), seen(8080, 0))
            .remap(kind.key(80), REMAPPED)
            .becomes(
                Reason::IcmpTranslated,
                &redirected.ports(8080, REMAPPED).packet(),
            )
            .leaves_state(),
        Case::ingress(name("in, direct and remapped"), &direct.packet())
            .flow(kind.table(), remapped, seen(8080, 0))
            .flow(kind.table(), kind.key(8080), seen(80, 0))
            .remap(kind.key(8080), REMAPPED)
            .becomes(
                Reason::IcmpTranslated,
                &direct.ports(8080, REMAPPED).packet(),
            )
            .leaves_state(),
        Case::egress(name("out, remapped"), &request.packet())
            .flow(kind.table(), remapped, seen(80, 0))
            .remap(kind.key(80), REMAPPED)
            .becomes(
                Reason::IcmpTranslated,
                &request.clone().ports(CLIENT_PORT, 80).packet(),
            )
            .leaves_state(),
        Case::egress(name("out, direct and remapped"), &request.packet())
            .flow(kind.table(), remapped, seen(8080, 0))
            .becomes(
                Reason::IcmpTranslated,
                &request.ports(CLIENT_PORT, 8080).packet(),
            ),
    ]
}
