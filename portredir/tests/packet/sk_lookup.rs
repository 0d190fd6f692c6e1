//! The socket engine: which server gets a connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portredir_common::datapath::sk_lookup::find_listener;
use portredir_common::flow::FlowLookup;
use portredir_common::kernel::Hit;
use portredir_common::map::sockets::ListenerKey;
use portredir_common::net::{Addr, Port, Protocol};
use portredir_common::verdict::{Reason, Verdict};

use crate::packet::builder::{CLIENT_PORT, CLIENT4, CLIENT6, SERVER4, SERVER6};
use crate::packet::mock::Mock;
use crate::packet::{CHAINED, Iface, RULES, addr, key};
use crate::sequence::mock;

const V4: Ipv4Addr = Ipv4Addr::LOCALHOST;
const V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

fn at(ip: impl Into<IpAddr>) -> Addr {
    addr(ip.into())
}

fn listener(addr: Addr, port: u16, slot: u8) -> ListenerKey {
    ListenerKey {
        addr,
        port: Port::new(port),
        slot,
        pad: 0,
    }
}

/// Whether servers on loopback addresses may serve other hosts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnLoopback {
    Allowed,
    Refused,
}

fn look_up(mock: &Mock, dst: IpAddr, port: u16, on_loopback: OnLoopback) -> Reason {
    let client = if dst.is_ipv4() { CLIENT4 } else { CLIENT6 };
    let key = key(Protocol::Tcp, (client, CLIENT_PORT), (dst, port));
    mock.is_loopback_allowed
        .set(on_loopback == OnLoopback::Allowed);
    find_listener(mock, &key)
}

/// Rules whose conditions do not hold: the client, and the address of this host.
const OTHERS: &[&str] = &["80:8080 from 203.0.113.0/24", "203.0.113.9:81:8080"];

/// A target with an address, for all clients and for some.
const TARGET: &[&str] = &["80:10.0.0.5:8080"];
const SOME_TO_TARGET: &[&str] = &["80:10.0.0.5:8080 from 198.51.100.0/24", "80:8080"];

fn off_lo(rules: &'static [&'static str]) -> Mock {
    Mock {
        iface: Iface::Other,
        ..mock(rules)
    }
}

/// The servers that are asked, in this order, each by all its slots.
#[test]
fn the_nearest_server_is_asked_first() {
    let any4 = at(Ipv4Addr::UNSPECIFIED);
    let any6 = at(Ipv6Addr::UNSPECIFIED);
    for (dst, on_loopback, order) in [
        (
            SERVER4,
            OnLoopback::Refused,
            vec![addr(SERVER4), any4, any6],
        ),
        (
            SERVER4,
            OnLoopback::Allowed,
            vec![addr(SERVER4), any4, any6, at(V4)],
        ),
        (SERVER6, OnLoopback::Refused, vec![addr(SERVER6), any6]),
        (
            SERVER6,
            OnLoopback::Allowed,
            vec![addr(SERVER6), any6, at(V6)],
        ),
    ] {
        let slots = |addr: &Addr| [0, 1, 2, 3].map(|slot| listener(*addr, 8080, slot));
        let all: Vec<_> = order.iter().flat_map(slots).collect();
        // Nobody there: all are asked.
        let nobody = off_lo(RULES);
        let reason = look_up(&nobody, dst, 80, on_loopback);
        assert_eq!(
            (reason, reason.verdict()),
            (Reason::NoListener, Verdict::Drop)
        );
        assert_eq!(*nobody.asked.borrow(), all);
        assert_eq!(*nobody.hits.borrow(), []);
        // The first that is there gets it, whoever is behind.
        for first in 0..all.len() {
            let mock = Mock {
                listeners: all[first..].to_vec(),
                ..off_lo(RULES)
            };
            let reason = look_up(&mock, dst, 80, on_loopback);
            assert_eq!(
                (reason, reason.verdict()),
                (Reason::Redirected, Verdict::Pass)
            );
            assert_eq!(*mock.asked.borrow(), all[..=first]);
            let hit = Hit {
                rule: 0,
                segments: 0,
                bytes: 0,
                flow: FlowLookup::Inserted,
                at_ns: mock.now_ns,
            };
            assert_eq!(*mock.hits.borrow(), [hit]);
        }
    }
}

#[test]
fn servers_on_other_addresses_are_not_asked() {
    let second = IpAddr::from([192, 0, 2, 2]);
    let elsewhere = [
        listener(addr(second), 8080, 0),
        listener(addr(SERVER6), 8080, 0),
        listener(at(V4), 8080, 0),
        listener(at(V6), 8080, 0),
        // On the port that is dialled, or on that of another rule.
        listener(at(Ipv4Addr::UNSPECIFIED), 80, 0),
        listener(at(Ipv4Addr::UNSPECIFIED), 9090, 0),
    ];
    let mock = Mock {
        listeners: elsewhere.to_vec(),
        ..off_lo(RULES)
    };
    assert_eq!(
        look_up(&mock, SERVER4, 80, OnLoopback::Refused),
        Reason::NoListener
    );
    assert_eq!(
        look_up(&mock, second, 80, OnLoopback::Refused),
        Reason::Redirected
    );
    assert_eq!(
        look_up(&mock, SERVER4, 80, OnLoopback::Allowed),
        Reason::Redirected
    );
    assert_eq!(
        *mock.asked.borrow().last().expect("one was asked"),
        listener(at(V4), 8080, 0)
    );
}

/// From the host itself a server on loopback is on the address that is dialled.
#[test]
fn loopback_is_dialled_on_lo_alone() {
    for (dst, other) in [(IpAddr::from(V4), V6.into()), (IpAddr::from(V6), V4.into())] {
        let on_lo = Mock {
            listeners: vec![listener(addr(dst), 8080, 2)],
            ..mock(RULES)
        };
        assert_eq!(
            look_up(&on_lo, dst, 80, OnLoopback::Refused),
            Reason::Redirected
        );
        assert_eq!(
            look_up(&on_lo, other, 80, OnLoopback::Refused),
            Reason::NoListener
        );
        let elsewhere = Mock {
            iface: Iface::Other,
            ..on_lo
        };
        assert_eq!(
            look_up(&elsewhere, dst, 80, OnLoopback::Allowed),
            Reason::NotLocal
        );
    }
    // All of 127.0.0.0/8 is this host, but a server has one of it.
    let on_lo = Mock {
        listeners: vec![listener(at(V4), 8080, 0)],
        ..mock(RULES)
    };
    let other = IpAddr::from([127, 5, 5, 5]);
    assert_eq!(
        look_up(&on_lo, other, 80, OnLoopback::Refused),
        Reason::NoListener
    );
    assert_eq!(
        look_up(&on_lo, other, 80, OnLoopback::Allowed),
        Reason::Redirected
    );
}

#[test]
fn connections_without_a_rule_go_their_way() {
    let everywhere = [SERVER4, SERVER6, [203, 0, 113, 9].into()];
    let all = |port| everywhere.map(|ip| listener(addr(ip), port, 0));
    // The number of a service is no port to listen on.
    let servers = [1, 80, 81, 8080].map(all).concat();
    let with = |mock: Mock| Mock {
        listeners: servers.clone(),
        ..mock
    };
    let out_of_scope = Mock {
        is_in_scope: false,
        ..mock(RULES)
    };
    for (mock, dst, port, reason) in [
        (mock(RULES), SERVER4, 81, Reason::NoRule),
        // What is dialled itself.
        (mock(RULES), SERVER4, 8080, Reason::NoRule),
        (mock(&["80:8080/udp"]), SERVER4, 80, Reason::NoRule),
        (out_of_scope, SERVER4, 80, Reason::NoRule),
        (mock(OTHERS), SERVER4, 80, Reason::NoMatch),
        (mock(OTHERS), SERVER6, 81, Reason::NoMatch),
        (mock(TARGET), SERVER4, 80, Reason::NoMatch),
        (mock(SOME_TO_TARGET), SERVER4, 80, Reason::NoMatch),
        (mock(RULES), everywhere[2], 80, Reason::NotLocal),
        (mock(RULES).draining(), SERVER4, 80, Reason::Draining),
        (mock(RULES).draining(), SERVER6, 80, Reason::Draining),
    ] {
        let mock = with(mock);
        let found = look_up(&mock, dst, port, OnLoopback::Allowed);
        assert_eq!(
            (found, found.verdict()),
            (reason, Verdict::Pass),
            "{dst} {port}"
        );
        assert_eq!(*mock.asked.borrow(), [], "{dst} {port}");
        assert_eq!(*mock.hits.borrow(), []);
    }
}

/// `80:8080 8080:9090` do not chain.
#[test]
fn a_connection_is_given_by_one_rule() {
    let mock = Mock {
        listeners: [8080, 9090]
            .map(|port| listener(addr(SERVER4), port, 0))
            .to_vec(),
        ..mock(CHAINED)
    };
    for (port, rule, target) in [(80, 0, 8080), (8080, 1, 9090)] {
        assert_eq!(
            look_up(&mock, SERVER4, port, OnLoopback::Refused),
            Reason::Redirected
        );
        assert_eq!(mock.hits.borrow().last().map(|hit| hit.rule), Some(rule));
        let asked = mock.asked.borrow();
        assert_eq!(asked.last().map(|key| key.port.get()), Some(target));
    }
}
