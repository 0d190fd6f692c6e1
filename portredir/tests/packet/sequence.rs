//! Sequences of packets: what flow state promises over time.

use std::cell::RefCell;

use portredir_common::datapath::conntrack;
use portredir_common::flow::{Epoch, FlowKey, FlowTable};
use portredir_common::kernel::{Host as _, Outcome, Socket, SocketCache as _};
use portredir_common::net::{Port, Protocol};
use portredir_common::verdict::{Reason, Verdict};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::packet::builder::{ACK, CLIENT_PORT, PSH, Packet, RST, syn4, tcp4, udp4};
use crate::packet::error::IcmpError;
use crate::packet::flows::KINDS;
use crate::packet::mock::{Hex, Mock, Tables};
use crate::packet::{RULES, key4, local_addrs, seen, seen_from};

pub fn mock(rules: &'static [&'static str]) -> Mock {
    Mock::new(rules, &local_addrs())
}

pub fn tcp_key(client_port: u16) -> FlowKey {
    key4(Protocol::Tcp, client_port, 8080)
}

/// Sends a packet of the client in, and returns the client port it has then.
pub fn try_arrive(mock: &Mock, packet: &Packet) -> Result<u16, TestCaseError> {
    let (reason, bytes) = mock.ingress(&packet.bytes());
    let at = packet.transport();
    let client_port = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let expected = packet.clone().ports(client_port, 8080).bytes();
    prop_assert_eq!(Hex(&bytes), Hex(&expected), "{:?}", reason);
    Ok(client_port)
}

fn arrive(mock: &Mock, packet: &Packet) -> u16 {
    try_arrive(mock, packet).unwrap_or_else(|error| panic!("{error}"))
}

/// Sends the answer out, to the client port that the server knows, and checks
/// that the client gets it from the port it dialled.
pub fn try_answer(mock: &Mock, packet: &Packet, client_port: u16) -> TestCaseResult {
    let reply = packet.clone().ports(client_port, 8080).reply();
    let (reason, bytes) = mock.egress(&reply.bytes());
    let expected = packet.clone().reply().bytes();
    prop_assert_eq!(Hex(&bytes), Hex(&expected), "{:?}", reason);
    Ok(())
}

fn answer(mock: &Mock, packet: &Packet, client_port: u16) {
    try_answer(mock, packet, client_port).unwrap_or_else(|error| panic!("{error}"));
}

pub fn ack(client_port: u16, dst_port: u16) -> Packet {
    tcp4(dst_port).src_port(client_port).flags(ACK)
}

pub fn syn(client_port: u16, dst_port: u16) -> Packet {
    syn4(dst_port).src_port(client_port)
}

#[test]
fn a_connection_is_confirmed_by_its_socket() {
    let mut mock = mock(RULES);
    assert_eq!(arrive(&mock, &syn(CLIENT_PORT, 80)), CLIENT_PORT);
    assert!(mock.tables.borrow().tcp.is_empty());
    answer(&mock, &syn(CLIENT_PORT, 80), CLIENT_PORT);
    let data = ack(CLIENT_PORT, 80).flags(ACK | PSH);
    arrive(&mock, &data);
    assert!(
        mock.tables.borrow().tcp.is_empty(),
        "nobody has confirmed it yet"
    );

    mock.sockets
        .insert(tcp_key(CLIENT_PORT), Socket::Connection);
    arrive(&mock, &data);
    let flows = Tables::default().flow(FlowTable::Tcp, tcp_key(CLIENT_PORT), seen(80, 0));
    assert_eq!(mock.tables.borrow().tcp, flows.tcp);
    let is_new: Vec<_> = mock
        .hits
        .borrow()
        .iter()
        .map(|hit| hit.begins_flow())
        .collect();
    assert_eq!(is_new, [true, false, false]);
}

#[test]
fn a_flood_of_syns_costs_no_connection() {
    let mut mock = mock(RULES);
    mock.sockets
        .insert(tcp_key(CLIENT_PORT), Socket::Connection);
    arrive(&mock, &ack(CLIENT_PORT, 80));
    for port in 1024..3000 {
        arrive(&mock, &syn(port, 80));
    }
    let tables = mock.tables.borrow();
    assert_eq!(
        (tables.tcp.len(), tables.syn.len(), tables.remap.len()),
        (1, 1976, 0)
    );
}

#[test]
fn a_lost_entry_is_healed_by_the_next_packet() {
    let mut mock = mock(RULES);
    arrive(&mock, &syn(CLIENT_PORT, 80));
    mock.sockets
        .insert(tcp_key(CLIENT_PORT), Socket::Connection);
    arrive(&mock, &ack(CLIENT_PORT, 80));
    mock.tables.replace(Tables::default());
    arrive(&mock, &ack(CLIENT_PORT, 80));
    answer(&mock, &ack(CLIENT_PORT, 80), CLIENT_PORT);
    assert_eq!(mock.tables.borrow().tcp.len(), 1);
}

/// A full table may lose the entry of a connection whose client is silent; the
/// socket still knows it.
#[test]
fn the_server_may_speak_first_after_eviction() {
    let mut mock = Mock {
        cache: Some(RefCell::default()),
        ..mock(RULES)
    };
    mock.sockets
        .insert(tcp_key(CLIENT_PORT), Socket::Connection);
    arrive(&mock, &ack(CLIENT_PORT, 80));
    answer(&mock, &ack(CLIENT_PORT, 80), CLIENT_PORT);
    mock.tables.replace(Tables::default());
    answer(&mock, &ack(CLIENT_PORT, 80), CLIENT_PORT);
}

/// A connection that is known to be direct stays so, whatever is sent to the
/// dialled port in its client's name.
#[test]
fn a_forged_packet_renames_no_direct_connection() {
    let mut mock = Mock {
        cache: Some(RefCell::default()),
        ..mock(RULES)
    };
    mock.sockets
        .insert(tcp_key(CLIENT_PORT), Socket::Connection);
    let direct = ack(CLIENT_PORT, 8080);
    arrive(&mock, &direct);
    answer(&mock, &direct, CLIENT_PORT);
    arrive(&mock, &ack(CLIENT_PORT, 80));
    answer(&mock, &direct, CLIENT_PORT);
    arrive(&mock, &syn(CLIENT_PORT, 80));
    answer(&mock, &direct, CLIENT_PORT);
}

/// Has the server accept a connection of the client's port.
fn accept(mock: &mut Mock, client_port: u16) {
    let key = tcp_key(client_port);
    mock.sockets.insert(key, Socket::Connection);
    let flow = conntrack::accept(mock, &key, Epoch::at(mock.now_ns()));
    mock.cache(&key, &flow);
}

/// A connection whose server has said nothing yet stays direct too; and a forged
/// packet takes no port of it.
#[test]
fn a_forged_packet_has_no_part_of_an_accepted_connection() {
    let mut mock = Mock {
        cache: Some(RefCell::default()),
        ..mock(RULES)
    };
    let direct = ack(CLIENT_PORT, 8080);
    arrive(&mock, &syn(CLIENT_PORT, 8080));
    accept(&mut mock, CLIENT_PORT);
    for forged in [ack(CLIENT_PORT, 80), syn(CLIENT_PORT, 80)] {
        assert_ne!(arrive(&mock, &forged), CLIENT_PORT);
        assert_eq!(arrive(&mock, &syn(CLIENT_PORT, 8080)), CLIENT_PORT);
        assert_eq!(arrive(&mock, &direct), CLIENT_PORT);
        answer(&mock, &direct, CLIENT_PORT);
    }
}

/// Both tables may lose what they know of an accepted connection.
#[test]
fn a_silent_connection_outlives_its_entries() {
    let mut mock = Mock {
        cache: Some(RefCell::default()),
        ..mock(RULES)
    };
    arrive(&mock, &syn(CLIENT_PORT, 80));
    accept(&mut mock, CLIENT_PORT);
    assert_eq!(mock.tables.borrow().tcp.len(), 1);
    let other = syn(CLIENT_PORT + 1, 80);
    mock.sockets
        .insert(tcp_key(CLIENT_PORT + 1), Socket::Connection);
    let given = arrive(&mock, &other);
    accept(&mut mock, given);
    mock.tables.replace(Tables::default());
    answer(&mock, &ack(CLIENT_PORT, 80), CLIENT_PORT);
    answer(&mock, &other, given);
}

#[test]
fn another_port_is_kept_over_packets() {
    let mut mock = mock(RULES);
    mock.sockets
        .insert(tcp_key(CLIENT_PORT), Socket::Connection);
    let given = arrive(&mock, &syn(CLIENT_PORT, 80));
    assert_ne!(given, CLIENT_PORT);
    for packet in [
        syn(CLIENT_PORT, 80),
        ack(CLIENT_PORT, 80),
        ack(CLIENT_PORT, 80),
    ] {
        assert_eq!(arrive(&mock, &packet), given);
        answer(&mock, &packet, given);
    }
    assert_eq!(arrive(&mock, &ack(CLIENT_PORT, 8080)), CLIENT_PORT);
    let is_new: Vec<_> = mock
        .hits
        .borrow()
        .iter()
        .map(|hit| hit.begins_flow())
        .collect();
    assert_eq!(is_new, [true, false, false, false]);
}

#[test]
fn a_reset_refuses_only_a_connection_that_begins() {
    let mut mock = mock(RULES);
    let refusal = |mock: &Mock, flags| {
        let reset = tcp4(8080).flags(flags).reply();
        assert_eq!(mock.egress(&reset.bytes()).0, Reason::Restored);
        mock.outcomes.take()
    };
    arrive(&mock, &syn(CLIENT_PORT, 80));
    // The answer to a segment with an ACK, be it of a connection or not.
    assert_eq!(refusal(&mock, RST), []);
    assert_eq!(refusal(&mock, RST | ACK), [(0, Outcome::Refused)]);
    accept(&mut mock, CLIENT_PORT);
    assert_eq!(refusal(&mock, RST | ACK), []);
    assert_eq!(mock.replies.borrow().len(), 3);
}

#[test]
fn errors_that_say_unreachable_refuse_a_flow() {
    for kind in KINDS {
        let errors: &[_] = if kind.is_ipv4 {
            &[(3, 3, true), (3, 1, true), (3, 4, false), (11, 1, false)]
        } else {
            &[(1, 4, true), (1, 1, true), (2, 0, false), (3, 1, false)]
        };
        for &(error, code, is_refusal) in errors {
            for (dst_port, is_redirected) in [(80, true), (8080, false)] {
                let flow = seen(dst_port, 0);
                let tables = Tables::default().flow(kind.table(), kind.key(8080), flow);
                let mock = mock(RULES);
                mock.tables.replace(tables);
                let error = IcmpError::new(error, code, kind.packet(8080));
                mock.egress(&error.packet().bytes());
                let expected = is_redirected && is_refusal;
                let expected = expected.then_some((0, Outcome::Refused));
                assert_eq!(mock.outcomes.take(), Vec::from_iter(expected), "{error:?}");
            }
        }
    }
}

/// The candidates after a random start, as the datapath visits them.
fn candidates(start: u32) -> impl Iterator<Item = u16> {
    (0..16).map(move |i| u16::try_from(1024 + (start + i * 7919) % 64_512).expect("a port"))
}

#[test]
fn sixteen_ports_are_tried() {
    for taken in [15, 16] {
        let mut tcp = mock(RULES);
        tcp.sockets.insert(tcp_key(CLIENT_PORT), Socket::Connection);
        // By an entry, by a connection, or by one that is not long gone.
        for (i, port) in candidates(0).take(taken).enumerate() {
            match i % 3 {
                0 => {
                    let flow = seen_from(port, 80, 0);
                    tcp.tables.borrow_mut().tcp.insert(tcp_key(port), flow);
                }
                1 => _ = tcp.sockets.insert(tcp_key(port), Socket::Connection),
                _ => _ = tcp.sockets.insert(tcp_key(port), Socket::TimeWait),
            }
        }
        let udp = mock(RULES);
        let udp_key = |port| key4(Protocol::Udp, port, 8080);
        udp.tables
            .borrow_mut()
            .udp
            .insert(udp_key(CLIENT_PORT), seen(8080, 0));
        for port in candidates(0).take(taken) {
            udp.tables
                .borrow_mut()
                .udp
                .insert(udp_key(port), seen_from(port, 80, 0));
        }
        for (mock, packet) in [(tcp, syn(CLIENT_PORT, 80)), (udp, udp4(80))] {
            let before = mock.tables.borrow().clone();
            if taken < 16 {
                assert_eq!(Some(arrive(&mock, &packet)), candidates(0).last());
                continue;
            }
            let (reason, bytes) = mock.ingress(&packet.bytes());
            assert_eq!(
                (reason, reason.verdict()),
                (Reason::NoFreePort, Verdict::Drop)
            );
            assert_eq!(bytes, packet.bytes());
            assert_eq!(*mock.tables.borrow(), before);
        }
    }
}

#[test]
fn without_room_a_packet_is_dropped() {
    let full = Mock {
        is_full: true,
        ..mock(RULES)
    };
    let mut collision = full.clone();
    collision
        .sockets
        .insert(tcp_key(CLIENT_PORT), Socket::Connection);
    for (mock, packet) in [
        (&full, syn(CLIENT_PORT, 80)),
        (&full, ack(CLIENT_PORT, 80)),
        (&full, udp4(80)),
        (&full, udp4(8080)),
        (&collision, syn(CLIENT_PORT, 80)),
    ] {
        let (reason, bytes) = mock.ingress(&packet.bytes());
        assert_eq!(
            (reason, reason.verdict()),
            (Reason::TableFull, Verdict::Drop)
        );
        assert_eq!(bytes, packet.bytes());
    }
    // What needs no new entry goes on.
    full.tables
        .borrow_mut()
        .tcp
        .insert(tcp_key(CLIENT_PORT), seen(80, 60));
    arrive(&full, &ack(CLIENT_PORT, 80));
    arrive(&full, &syn(CLIENT_PORT + 1, 8080));
}

/// A port that one flow was given, and that the client later took for another
/// flow, is not given back to the first.
#[test]
fn a_given_port_that_is_in_use_is_given_anew() {
    let given = 50_123;
    // TCP: the first connection is over, and the client uses its port itself.
    let mut mock = mock(RULES);
    let own = Tables::default()
        .flow(FlowTable::Tcp, tcp_key(given), seen_from(given, 80, 0))
        .remap(key4(Protocol::Tcp, CLIENT_PORT, 80), given);
    mock.tables.replace(own);
    mock.sockets.insert(tcp_key(given), Socket::Connection);
    mock.sockets
        .insert(tcp_key(CLIENT_PORT), Socket::Connection);
    let new = arrive(&mock, &syn(CLIENT_PORT, 80));
    answer(&mock, &ack(given, 80), given);
    assert_ne!(new, given, "two connections became one");
}

/// A UDP port that a flow was given, and that the client later took for another
/// flow while the first one was idle, is not given back to the first.
#[test]
fn a_given_port_that_is_in_use_is_given_anew_udp() {
    let given = 50_123;
    let key = |port| key4(Protocol::Udp, port, 8080);
    let mock = mock(RULES);
    let own = Tables::default()
        .flow(FlowTable::Udp, key(CLIENT_PORT), seen(8080, 0))
        .flow(FlowTable::Udp, key(given), seen_from(given, 80, 0))
        .remap(key4(Protocol::Udp, CLIENT_PORT, 80), given);
    mock.tables.replace(own);
    let new = arrive(&mock, &udp4(80));
    answer(&mock, &udp4(80).src_port(given), given);
    assert_ne!(new, given, "two flows became one");
}

/// The ports above are the ones that the datapath visits.
#[test]
fn candidates_are_as_expected() {
    let mut mock = mock(RULES);
    mock.sockets
        .insert(tcp_key(CLIENT_PORT), Socket::Connection);
    mock.random.set(Mock::random_for(Port::new(31_337)));
    assert_eq!(arrive(&mock, &syn(CLIENT_PORT, 80)), 31_337);
    assert_eq!(candidates(31_337 - 1024).next(), Some(31_337));
}
