//! SYNs on `lo` that are given to the listener on the target.

use portredir_common::datapath::assign::assign;
use portredir_common::flow::FlowKey;
use portredir_common::kernel::Socket;
use portredir_common::net::{Port, Protocol};
use portredir_common::verdict::Reason;
use portredir_common::wire::frame::Link;

use crate::packet::builder::{
    CLIENT_PORT, CLIENT4, CLIENT6, Packet, SERVER4, SERVER6, options_header, syn4, syn6, tcp4,
    tcp6, udp4, udp6,
};
use crate::packet::bytes::Bytes;
use crate::packet::mock::Mock;
use crate::packet::{CHAINED, Iface, RULES, key};
use crate::sequence::mock;

/// The reason for a packet, which stays as it is, and the flow that a listener is looked for,
/// if any.
fn run(mock: &Mock, packet: &Packet) -> (Reason, Option<FlowKey>) {
    let before = packet.bytes();
    let mut bytes = before.clone();
    let reason = assign(&mut Bytes(&mut bytes), mock, Link::Ethernet);
    assert_eq!(bytes, before);
    let assigned = mock.assigned.borrow();
    assert!(assigned.len() <= 1);
    assert_eq!(
        mock.hits.borrow().len(),
        usize::from(reason == Reason::Redirected)
    );
    (reason, assigned.first().copied())
}

fn listener(ends: [std::net::IpAddr; 2], port: u16) -> Option<FlowKey> {
    Some(key(Protocol::Tcp, (ends[0], 0), (ends[1], port)))
}

#[test]
fn a_syn_gets_the_listener_on_the_target() {
    let (v4, v6) = ([CLIENT4, SERVER4], [CLIENT6, SERVER6]);
    for (rules, packet, ends, target) in [
        (RULES, syn4(80), v4, 8080),
        (RULES, syn6(80), v6, 8080),
        (RULES, syn6(80).extension(options_header(0, 1)), v6, 8080),
        (CHAINED, syn4(80), v4, 8080),
    ] {
        let found = run(&mock(rules), &packet);
        assert_eq!(found, (Reason::Redirected, listener(ends, target)));
    }
}

#[test]
fn other_packets_are_left_alone() {
    let others = [tcp4(80), tcp6(80), udp4(80), udp6(80), syn4(8080), syn6(81)];
    for packet in others {
        assert_eq!(run(&mock(RULES), &packet), (Reason::NoRule, None));
    }
    // Connections to a target may have been pointed there: rules do not chain.
    assert_eq!(run(&mock(CHAINED), &syn4(8080)), (Reason::NoRule, None));
    let draining = mock(RULES).draining();
    assert_eq!(run(&draining, &syn4(80)), (Reason::NoRule, None));
    // The number of a service is no port to listen on.
    let forward = mock(&["80:10.0.0.5:8080,10.0.0.6:8080"]);
    assert_eq!(run(&forward, &syn4(80)), (Reason::NoRule, None));
    let elsewhere = Mock {
        local: std::collections::HashMap::new(),
        iface: Iface::Other,
        ..mock(RULES)
    };
    assert_eq!(run(&elsewhere, &syn4(80)), (Reason::NoRule, None));
}

/// A repeated SYN has its request, and a SYN may meet what an earlier connection left.
#[test]
fn a_syn_of_a_socket_is_left_to_it() {
    for socket in [Socket::Connection, Socket::TimeWait] {
        let mut mock = mock(RULES);
        let flow = key(Protocol::Tcp, (CLIENT4, CLIENT_PORT), (SERVER4, 80));
        mock.sockets.insert(flow, socket);
        assert_eq!(run(&mock, &syn4(80)), (Reason::NoRule, None));
    }
    // A connection of the same client to the target itself is no listener.
    let mut mock = mock(RULES);
    let flow = key(Protocol::Tcp, (CLIENT4, CLIENT_PORT), (SERVER4, 8080));
    mock.sockets.insert(flow, Socket::Connection);
    let found = run(&mock, &syn4(80));
    assert_eq!(
        found,
        (Reason::Redirected, listener([CLIENT4, SERVER4], 8080))
    );
}

#[test]
fn without_a_listener_the_syn_goes_its_way() {
    let mock = Mock {
        is_unserved: true,
        ..mock(RULES)
    };
    let (reason, asked) = run(&mock, &syn4(80));
    assert_eq!(reason, Reason::NoRule);
    assert_eq!(asked.map(|key| key.client_port), Some(Port::CLOSED));
}
