//! The engine without packets: which server gets a connection, and which port
//! a client on this host is pointed at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portredir_common::datapath::connect::{
    NamedPeer, PeerCall, original_peer_port, redirect_connect,
};
use portredir_common::datapath::sk_lookup::find_listener;
use portredir_common::flow::FlowLookup;
use portredir_common::kernel::{Client, Hit};
use portredir_common::map::rules::PortEntry;
use portredir_common::map::sockets::{ConnectedPeer, ConnectedPeers, ListenerKey};
use portredir_common::net::{Addr, Port, Protocol};
use portredir_common::verdict::{Reason, Verdict};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::cases::host::Mock;
use crate::cases::packet::{CLIENT_PORT, CLIENT4, CLIENT6, SERVER4, SERVER6};
use crate::cases::{CHAINED, Iface, RULES, TWO_TO_ONE, addr, key};
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

fn look_up(mock: &Mock, dst: IpAddr, port: u16, is_loopback_allowed: bool) -> Reason {
    let client = if dst.is_ipv4() { CLIENT4 } else { CLIENT6 };
    let key = key(Protocol::Tcp, (client, CLIENT_PORT), (dst, port));
    mock.is_loopback_allowed.set(is_loopback_allowed);
    find_listener(mock, &key)
}

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
    for (dst, is_loopback_allowed, order) in [
        (SERVER4, false, vec![addr(SERVER4), any4, any6]),
        (SERVER4, true, vec![addr(SERVER4), any4, any6, at(V4)]),
        (SERVER6, false, vec![addr(SERVER6), any6]),
        (SERVER6, true, vec![addr(SERVER6), any6, at(V6)]),
    ] {
        let slots = |addr: &Addr| [0, 1, 2, 3].map(|slot| listener(*addr, 8080, slot));
        let all: Vec<_> = order.iter().flat_map(slots).collect();
        // Nobody there: all are asked.
        let nobody = off_lo(RULES);
        let reason = look_up(&nobody, dst, 80, is_loopback_allowed);
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
            let reason = look_up(&mock, dst, 80, is_loopback_allowed);
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
    assert_eq!(look_up(&mock, SERVER4, 80, false), Reason::NoListener);
    assert_eq!(look_up(&mock, second, 80, false), Reason::Redirected);
    assert_eq!(look_up(&mock, SERVER4, 80, true), Reason::Redirected);
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
        assert_eq!(look_up(&on_lo, dst, 80, false), Reason::Redirected);
        assert_eq!(look_up(&on_lo, other, 80, false), Reason::NoListener);
        let elsewhere = Mock {
            iface: Iface::Other,
            ..on_lo
        };
        assert_eq!(look_up(&elsewhere, dst, 80, true), Reason::NotLocal);
    }
    // All of 127.0.0.0/8 is this host, but a server has one of it.
    let on_lo = Mock {
        listeners: vec![listener(at(V4), 8080, 0)],
        ..mock(RULES)
    };
    let other = IpAddr::from([127, 5, 5, 5]);
    assert_eq!(look_up(&on_lo, other, 80, false), Reason::NoListener);
    assert_eq!(look_up(&on_lo, other, 80, true), Reason::Redirected);
}

#[test]
fn connections_without_a_rule_go_their_way() {
    let everywhere = [SERVER4, SERVER6, [203, 0, 113, 9].into()];
    let all = |port| everywhere.map(|ip| listener(addr(ip), port, 0));
    let servers = [80, 81, 8080].map(all).concat();
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
        (mock(RULES), everywhere[2], 80, Reason::NotLocal),
        (mock(RULES).draining(), SERVER4, 80, Reason::Draining),
        (mock(RULES).draining(), SERVER6, 80, Reason::Draining),
    ] {
        let mock = with(mock);
        let found = look_up(&mock, dst, port, true);
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
        assert_eq!(look_up(&mock, SERVER4, port, false), Reason::Redirected);
        assert_eq!(mock.hits.borrow().last().map(|hit| hit.rule), Some(rule));
        let asked = mock.asked.borrow();
        assert_eq!(asked.last().map(|key| key.port.get()), Some(target));
    }
}

/// A peer that a client names.
fn named(protocol: Protocol, (addr, port): (Addr, u16)) -> NamedPeer {
    NamedPeer {
        protocol,
        addr,
        port: Port::new(port),
    }
}

/// The socket of a client on this host.
#[derive(Clone, Debug)]
struct Local {
    is_in_netns: bool,
    bound_to: Addr,
    peer_port: Option<Port>,
    has_memory: bool,
    peers: Option<ConnectedPeers>,
}

impl Local {
    const fn new() -> Self {
        Self {
            is_in_netns: true,
            bound_to: Addr::V4_ANY,
            peer_port: None,
            has_memory: true,
            peers: None,
        }
    }

    /// The port it is pointed at.
    fn dial(
        &mut self,
        mock: &Mock,
        protocol: Protocol,
        to: (Addr, u16),
        dial: PeerCall,
    ) -> Result<u16, Reason> {
        let mut peer = named(protocol, to);
        match redirect_connect(mock, self, &mut peer, dial) {
            Reason::Redirected => Ok(peer.port.get()),
            reason => {
                assert_eq!(peer, named(protocol, to), "it stays as it was");
                Err(reason)
            }
        }
    }

    fn send(&mut self, mock: &Mock, addr: Addr, port: u16) -> Result<u16, Reason> {
        self.dial(mock, Protocol::Udp, (addr, port), PeerCall::Send)
    }

    fn connect(&mut self, mock: &Mock, addr: Addr, port: u16) -> Result<u16, Reason> {
        self.dial(mock, Protocol::Udp, (addr, port), PeerCall::Connect)
    }

    /// The port it is told of a peer.
    fn answered(&mut self, mock: &Mock, addr: Addr, port: u16) -> Result<u16, Reason> {
        original_peer_port(mock, self, &named(Protocol::Udp, (addr, port))).map(Port::get)
    }
}

impl Client for Local {
    fn is_in_netns(&self) -> bool {
        self.is_in_netns
    }

    fn bound_to(&self) -> Addr {
        self.bound_to
    }

    fn peer_port(&self) -> Option<Port> {
        self.peer_port
    }

    fn peers(&mut self) -> Option<&mut ConnectedPeers> {
        self.peers.as_mut()
    }

    fn peers_or_insert(&mut self) -> Option<&mut ConnectedPeers> {
        self.has_memory.then(|| self.peers.get_or_insert_default())
    }
}

fn hits(mock: &Mock) -> Vec<(u16, u32, usize, bool)> {
    let hits = mock.hits.borrow();
    hits.iter()
        .map(|hit| (hit.rule, hit.segments, hit.bytes, hit.begins_flow()))
        .collect()
}

#[test]
fn a_client_is_pointed_at_the_target_and_told_the_port_it_dialled() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for ip in [
            SERVER4,
            SERVER6,
            V4.into(),
            V6.into(),
            [127, 5, 5, 5].into(),
        ] {
            let (mock, mut client, to) = (mock(RULES), Local::new(), addr(ip));
            let target = client.dial(&mock, protocol, (to, 80), PeerCall::Connect);
            assert_eq!(target, Ok(8080), "{ip}");
            let told = original_peer_port(&mock, &mut client, &named(protocol, (to, 8080)));
            assert_eq!(told, Ok(Port::new(80)), "{ip}");
            assert_eq!(hits(&mock), [(0, 0, 0, true)]);
        }
    }
}

/// Linux takes address zero for loopback, and tells the client so.
#[test]
fn address_zero_is_loopback() {
    for (zero, loopback, other) in [
        (at(Ipv4Addr::UNSPECIFIED), at(V4), at(V6)),
        (at(Ipv6Addr::UNSPECIFIED), at(V6), at(V4)),
    ] {
        let (mock, mut client) = (mock(RULES), Local::new());
        assert_eq!(client.send(&mock, zero, 80), Ok(8080));
        assert_eq!(client.answered(&mock, loopback, 8080), Ok(80));
        assert_eq!(client.answered(&mock, zero, 8080), Err(Reason::Direct));
        assert_eq!(client.answered(&mock, other, 8080), Err(Reason::Direct));
        assert_eq!(client.send(&mock, zero, 8080), Err(Reason::Direct));
        assert_eq!(client.answered(&mock, loopback, 8080), Err(Reason::Direct));
    }
}

/// Of a client that has chosen an address of its own, zero is that one.
#[test]
fn address_zero_is_what_the_socket_is_bound_to() {
    let own = addr(SERVER4);
    let (mock, mut client) = (mock(RULES), Local::new());
    client.bound_to = own;
    let zero = at(Ipv4Addr::UNSPECIFIED);
    assert_eq!(client.send(&mock, zero, 80), Ok(8080));
    assert_eq!(client.answered(&mock, own, 8080), Ok(80));
    assert_eq!(client.answered(&mock, at(V4), 8080), Err(Reason::Direct));
    assert_eq!(client.send(&mock, zero, 8080), Err(Reason::Direct));
    assert_eq!(client.answered(&mock, own, 8080), Err(Reason::Direct));
    // There is no such thing in IPv6.
    assert_eq!(client.send(&mock, at(Ipv6Addr::UNSPECIFIED), 80), Ok(8080));
    assert_eq!(client.answered(&mock, at(V6), 8080), Ok(80));
}

#[test]
fn what_no_rule_is_about_is_let_alone() {
    let (mock, server) = (mock(&["80:8080"]), addr(SERVER4));
    let mut client = Local::new();
    assert_eq!(client.connect(&mock, server, 80), Err(Reason::NoRule));
    assert_eq!(client.connect(&mock, server, 8080), Err(Reason::NoRule));
    for port in [81, 9090] {
        let to = (server, port);
        let target = client.dial(&mock, Protocol::Tcp, to, PeerCall::Connect);
        assert_eq!(target, Err(Reason::NoRule));
    }
    assert_eq!(client.answered(&mock, server, 80), Err(Reason::NoRule));
    assert!(client.peers.is_none(), "nothing is kept");
    assert_eq!(hits(&mock), []);
}

#[test]
fn other_hosts_and_other_namespaces_are_let_alone() {
    let mock = mock(RULES);
    let mut client = Local::new();
    for other in [
        at([192, 0, 2, 99]),
        at([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99]),
        at([224, 0, 0, 251]),
        at(Ipv4Addr::BROADCAST),
    ] {
        for dial in [PeerCall::Connect, PeerCall::Send] {
            let target = client.dial(&mock, Protocol::Udp, (other, 80), dial);
            assert_eq!(target, Err(Reason::NotLocal));
        }
        assert_eq!(client.send(&mock, other, 8080), Err(Reason::NoRule));
    }
    assert!(client.peers.is_none());
    // Its addresses are others, though they look the same.
    let mut container = Local {
        is_in_netns: false,
        ..Local::new()
    };
    for port in [80, 8080] {
        assert_eq!(container.connect(&mock, at(V4), port), Err(Reason::NoRule));
        assert_eq!(container.send(&mock, at(V4), port), Err(Reason::NoRule));
        assert_eq!(container.answered(&mock, at(V4), port), Err(Reason::NoRule));
    }
    assert!(container.peers.is_none());
    assert_eq!(hits(&mock), []);
}

/// It hears nobody but its peer, who answers from the dialled port itself.
#[test]
fn a_socket_that_was_connected_before_goes_on() {
    let (mock, mut client, server) = (mock(RULES), Local::new(), addr(SERVER4));
    client.peer_port = Some(Port::new(80));
    assert_eq!(client.send(&mock, server, 80), Err(Reason::Direct));
    assert!(client.peers.is_none());
    assert_eq!(client.connect(&mock, server, 80), Ok(8080));
}

/// A client that was pointed elsewhere and is not told so would be surprised.
#[test]
fn without_memory_nothing_is_sent() {
    let mock = mock(RULES);
    let mut client = Local {
        has_memory: false,
        ..Local::new()
    };
    for dial in [PeerCall::Connect, PeerCall::Send] {
        let reason = client
            .dial(&mock, Protocol::Udp, (at(V4), 80), dial)
            .expect_err("refused");
        assert_eq!(
            (reason, reason.verdict()),
            (Reason::TableFull, Verdict::Drop)
        );
    }
    assert_eq!(client.send(&mock, at(V4), 8080), Err(Reason::Direct));
    assert_eq!(client.answered(&mock, at(V4), 8080), Err(Reason::Direct));
    assert_eq!(hits(&mock), []);
}

#[test]
fn a_peer_is_known_by_the_port_that_was_dialled_last() {
    let (mock, mut client, server) = (mock(TWO_TO_ONE), Local::new(), addr(SERVER4));
    for (port, known) in [
        (80, Ok(80)),
        (81, Ok(81)),
        (80, Ok(80)),
        (8080, Err(Reason::Direct)),
        (8080, Err(Reason::Direct)),
        (81, Ok(81)),
    ] {
        let target = match known {
            Ok(_) => Ok(8080),
            Err(reason) => Err(reason),
        };
        assert_eq!(client.send(&mock, server, port), target);
        assert_eq!(client.answered(&mock, server, 8080), known);
        // Another address is another peer.
        let other = client.answered(&mock, addr(SERVER6), 8080);
        assert_eq!(other, Err(Reason::Direct));
    }
    // A flow each time that the port changes.
    let flows: Vec<_> = hits(&mock).iter().map(|hit| (hit.0, hit.3)).collect();
    assert_eq!(flows, [(0, true), (1, true), (0, true), (1, true)]);
}

#[test]
fn packets_are_counted_where_they_are_seen() {
    let (mock, mut client, server) = (mock(RULES), Local::new(), addr(SERVER4));
    for _ in 0..3 {
        assert_eq!(client.send(&mock, server, 80), Ok(8080));
    }
    assert_eq!(client.connect(&mock, server, 80), Ok(8080));
    assert_eq!(client.connect(&mock, server, 80), Ok(8080));
    let expected = [
        (0, 1, 0, true),
        (0, 1, 0, false),
        (0, 1, 0, false),
        (0, 0, 0, true),
        (0, 0, 0, true),
    ];
    assert_eq!(hits(&mock), expected);
}

#[test]
fn a_genuine_connect_forgets() {
    let (mock, mut client, server) = (mock(RULES), Local::new(), addr(SERVER4));
    assert_eq!(client.connect(&mock, server, 80), Ok(8080));
    client.peer_port = Some(Port::new(8080));
    // An IPv6 socket that is connected to an IPv4 address names its peer for
    // each packet.
    for _ in 0..3 {
        assert_eq!(client.send(&mock, server, 8080), Err(Reason::Direct));
        assert_eq!(client.answered(&mock, server, 8080), Ok(80));
    }
    assert_eq!(client.connect(&mock, server, 8080), Err(Reason::Direct));
    assert_eq!(client.answered(&mock, server, 8080), Err(Reason::Direct));
    assert_eq!(hits(&mock).len(), 1);
}

/// Also where the target is dialled itself by another rule.
#[test]
fn a_connected_socket_is_pointed_once() {
    let (mock, mut client, server) = (mock(CHAINED), Local::new(), addr(SERVER4));
    assert_eq!(client.connect(&mock, server, 80), Ok(8080));
    client.peer_port = Some(Port::new(8080));
    assert_eq!(client.send(&mock, server, 8080), Err(Reason::Direct));
    assert_eq!(client.answered(&mock, server, 8080), Ok(80));
    let mut other = Local::new();
    assert_eq!(other.send(&mock, server, 80), Ok(8080));
    assert_eq!(other.send(&mock, server, 8080), Ok(9090));
    assert_eq!(other.answered(&mock, server, 9090), Ok(8080));
    assert_eq!(other.answered(&mock, server, 8080), Ok(80));
}

#[test]
fn at_the_end_known_peers_go_on() {
    let (mock, server) = (mock(TWO_TO_ONE), addr(SERVER4));
    let mut client = Local::new();
    assert_eq!(client.send(&mock, server, 80), Ok(8080));
    let mock = mock.draining();
    let before = hits(&mock).len();
    assert_eq!(client.send(&mock, server, 80), Ok(8080));
    assert_eq!(client.answered(&mock, server, 8080), Ok(80));
    // The rule that would count it is gone.
    assert_eq!(hits(&mock)[before..], []);
    // New ones do not begin, and the known one is still there.
    assert_eq!(client.send(&mock, server, 81), Err(Reason::Draining));
    assert_eq!(client.send(&mock, addr(SERVER6), 80), Err(Reason::Draining));
    assert_eq!(client.connect(&mock, server, 80), Err(Reason::Draining));
    assert_eq!(client.send(&mock, server, 80), Ok(8080));
    let mut new = Local::new();
    assert_eq!(new.send(&mock, server, 80), Err(Reason::Draining));
    assert_eq!(new.send(&mock, server, 8080), Err(Reason::Direct));
    assert_eq!(
        new.send(&mock, at([192, 0, 2, 99]), 80),
        Err(Reason::NotLocal)
    );
    assert!(new.peers.is_none());
    assert_eq!(Reason::Draining.verdict(), Verdict::Pass);
}

fn peer(number: u8, target: u16, dialled: u16) -> ConnectedPeer {
    ConnectedPeer {
        addr: at([10, 0, 0, number]),
        port: Port::new(target),
        dst_port: Port::new(dialled),
    }
}

#[test]
fn the_oldest_of_five_peers_is_forgotten() {
    let mut peers = ConnectedPeers::default();
    for round in 0..3_u8 {
        for number in 0..5 {
            assert!(peers.insert(peer(5 * round + number, 8080, 80)));
            assert!(!peers.insert(peer(5 * round + number, 8080, 80)));
        }
    }
    let known: Vec<_> = (0..15)
        .filter(|number| {
            peers
                .dst_port_of(at([10, 0, 0, *number]), Port::new(8080))
                .is_some()
        })
        .collect();
    assert_eq!(known, [11, 12, 13, 14]);
    // What was forgotten makes room.
    peers.remove(at([10, 0, 0, 13]), Port::new(8080));
    assert!(peers.insert(peer(1, 8080, 80)));
    for number in [11, 12, 14, 1] {
        let known = peers.dst_port_of(at([10, 0, 0, number]), Port::new(8080));
        assert_eq!(known, Some(Port::new(80)), "{number}");
    }
}

/// The number of peers may pass what a counter holds.
#[test]
fn a_busy_client_remembers_its_last_peers() {
    let mut peers = ConnectedPeers {
        next: u32::MAX - 2,
        ..ConnectedPeers::default()
    };
    for number in 0..20_u8 {
        peers.insert(peer(number, 8080, 80));
        let known = peers.dst_port_of(at([10, 0, 0, number]), Port::new(8080));
        assert_eq!(known, Some(Port::new(80)));
    }
}

/// What a client does with its socket.
#[derive(Clone, Copy, Debug)]
enum Step {
    Remember(u16),
    Forget,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4096) })]

    /// The memory of a socket is a map of four entries: none is lost while there
    /// is room, none is invented, and the newest is always there.
    #[test]
    fn memory_is_a_small_map(
        steps in vec(
            (
                (0_u8..7, select(vec![8080_u16, 9090])),
                prop_oneof![
                    4 => select(vec![80_u16, 81, 443]).prop_map(Step::Remember),
                    1 => Just(Step::Forget),
                ],
            ),
            1..60,
        ),
    ) {
        let mut peers = ConnectedPeers::default();
        let mut model = std::collections::HashMap::<(u8, u16), u16>::new();
        for ((number, target), step) in steps {
            let (ip, port) = (at([10, 0, 0, number]), Port::new(target));
            match step {
                Step::Remember(port) => {
                    let before = model.insert((number, target), port);
                    let is_new = peers.insert(peer(number, target, port));
                    prop_assert_eq!(is_new, before != Some(port));
                    let known = peers.dst_port_of(ip, Port::new(target));
                    prop_assert_eq!(known, Some(Port::new(port)));
                }
                Step::Forget => {
                    model.remove(&(number, target));
                    peers.remove(ip, port);
                    prop_assert_eq!(peers.dst_port_of(ip, port), None);
                }
            }
            let is_full = model.len() > ConnectedPeers::PEERS;
            let known = model.len();
            model.retain(|(number, target), port| {
                let found = peers.dst_port_of(at([10, 0, 0, *number]), Port::new(*target));
                assert!(found.is_none() || found == Some(Port::new(*port)));
                found.is_some()
            });
            prop_assert_eq!(model.len(), known - usize::from(is_full));
        }
    }

    /// Whatever a client dials, it is told the port it dialled last of every peer
    /// that it may hear.
    #[test]
    fn a_client_never_sees_the_target(
        dials in vec((0..4_usize, select(vec![80_u16, 81, 8080])), 1..30),
    ) {
        let mock = mock(TWO_TO_ONE);
        let mut client = Local::new();
        let addrs = [SERVER4, SERVER6, V4.into(), V6.into()].map(addr);
        let mut last = [8080; 4];
        for (peer, port) in dials {
            let target = client.send(&mock, addrs[peer], port);
            prop_assert_eq!(target.unwrap_or(port), 8080);
            last[peer] = port;
            for (addr, port) in addrs.into_iter().zip(last) {
                let told = client.answered(&mock, addr, 8080).unwrap_or(8080);
                prop_assert_eq!(told, port);
            }
        }
    }
}

/// All-zero entries are the unused ones: no peer is like them.
#[test]
fn nobody_dials_port_zero() {
    let mut peers = ConnectedPeers::default();
    assert_eq!(peers.dst_port_of(Addr::default(), Port::new(0)), None);
    peers.remove(Addr::default(), Port::new(0));
    assert_eq!(peers, ConnectedPeers::default());
    assert!(!PortEntry::default().is_match());
}
