//! Frames that end too early, at every length a header could end at.

use portredir_common::verdict::Reason;
use portredir_common::wire::frame::Link;

use super::builder::{Dress, Packet, options_header};
use super::error::IcmpError;
use super::flows::KINDS;
use super::{Case, seen};

/// No header of the packets below ends behind this.
const LENGTHS: std::ops::RangeInclusive<usize> = 14..=74;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        // Long enough to be cut at all lengths.
        let packet = |port| kind.packet(port).payload(&[0x5a; 64]);
        let mut dresses: Vec<(&str, Dress)> = vec![
            ("plain", |packet| packet),
            ("in a VLAN", |packet| packet.tags(&[0x88a8, 0x8100])),
            ("on an IP device", |packet| packet.on(Link::Ip)),
        ];
        if kind.is_ipv4 {
            dresses.push(("with options", |packet| packet.ip_options(3)));
        } else {
            dresses.push(("with options", |packet| {
                packet.extension(options_header(0, 1))
            }));
        }
        for (name, dress) in dresses {
            for len in LENGTHS {
                let packet = dress(packet(80));
                cases.push(
                    Case::ingress(format!("cut {} {name}: {len} bytes", kind.name), &packet)
                        .edit(|frame| frame.truncate(len))
                        .unchanged(reason(&packet, len))
                        .leaves_state(),
                );
                let reply = dress(packet.reply().src_port(8080));
                cases.push(
                    Case::egress(
                        format!("cut reply {} {name}: {len} bytes", kind.name),
                        &reply,
                    )
                    .edit(|frame| frame.truncate(len))
                    .flow(kind.table(), kind.key(8080), seen(80, 0))
                    .unchanged(reason(&reply, len))
                    .leaves_state(),
                );
            }
        }
        // Whole by its own length fields, but the frame ends in the quote.
        let error = if kind.is_ipv4 { (3, 3) } else { (1, 4) };
        let error = IcmpError::new(error.0, error.1, kind.reply(80).payload(&[0x5a; 64])).packet();
        let quote = error.transport() + 8;
        for len in LENGTHS {
            let mut case =
                Case::ingress(format!("cut icmp about {}: {len} bytes", kind.name), &error)
                    .edit(|frame| frame.truncate(len))
                    .flow(kind.table(), kind.key(8080), seen(80, 0))
                    .unchanged(reason_in_quote(&error, len))
                    .leaves_state();
            // The lengths of the error itself may be looked at before or after
            // the quote.
            if len > quote - 8 {
                case = case.or(Reason::Malformed);
            }
            cases.push(case);
        }
    }
    cases
}

/// Until it knows the protocol, the datapath cannot tell that a rule is
/// concerned; an IPv6 header is not read to its end for that.
fn reason(packet: &Packet, len: usize) -> Reason {
    let known = packet.link_len() + if packet.src.is_ipv4() { 20 } else { 8 };
    if len < known {
        Reason::NoRule
    } else {
        Reason::Malformed
    }
}

/// The reason for an ICMP error that is cut after `len` bytes: the datapath has to
/// know the protocol of the message and of the packet that it quotes.
fn reason_in_quote(packet: &Packet, len: usize) -> Reason {
    let message = packet.transport() + 8;
    let known = message + if packet.src.is_ipv4() { 20 } else { 8 };
    if len < known {
        Reason::NoRule
    } else {
        Reason::Malformed
    }
}
