//! The socket engine: which port a client on this host is pointed at.

#[path = "connect/forward.rs"]
mod forward;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portredir_common::datapath::connect::{NamedPeer, PeerCall, redirect_connect, restore_peer};
use portredir_common::flow::FlowKey;
use portredir_common::kernel::{Client, Socket};
use portredir_common::map::sockets::{ConnectedPeers, ForwardPeer, ForwardPeers};
use portredir_common::net::{Addr, Port, Protocol};
use portredir_common::verdict::{Reason, Verdict};

use crate::packet::builder::{SERVER4, SERVER6};
use crate::packet::mock::Mock;
use crate::packet::{CHAINED, RULES, TWO_TO_ONE, addr, key};
use crate::sequence::mock;

pub const V4: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub const V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

pub fn at(ip: impl Into<IpAddr>) -> Addr {
    addr(ip.into())
}

/// A peer that a client names.
fn named(protocol: Protocol, (addr, port): (Addr, u16)) -> NamedPeer {
    NamedPeer {
        protocol,
        addr,
        port: Port::new(port),
    }
}

/// The port that a client is told of a peer; the address stays.
fn told(mock: &Mock, client: &mut Local, peer: NamedPeer) -> Result<u16, Reason> {
    let mut told = peer;
    let result = restore_peer(mock, client, &mut told);
    assert_eq!(told.addr, peer.addr);
    assert!(result.is_ok() || told == peer, "it stays as it was");
    result.map(|()| told.port.get())
}

/// The socket of a client on this host.
#[derive(Clone, Debug)]
pub struct Local {
    is_in_netns: bool,
    bound_to: Addr,
    is_v6_only: bool,
    own_port: u16,
    is_syn_assigned: bool,
    /// Flows that connected UDP sockets of this host get.
    connected: Vec<FlowKey>,
    peer_port: Option<Port>,
    has_memory: bool,
    peers: Option<ConnectedPeers>,
    forward_peers: Option<ForwardPeers>,
    /// The target that a UDP socket is connected to.
    udp_peer: Option<ForwardPeer>,
}

impl Local {
    pub const fn new() -> Self {
        Self {
            is_in_netns: true,
            bound_to: Addr::V4_ANY,
            is_v6_only: false,
            own_port: 0,
            is_syn_assigned: false,
            connected: Vec::new(),
            peer_port: None,
            has_memory: true,
            peers: None,
            forward_peers: None,
            udp_peer: None,
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

    pub fn send(&mut self, mock: &Mock, addr: Addr, port: u16) -> Result<u16, Reason> {
        self.dial(mock, Protocol::Udp, (addr, port), PeerCall::Send)
    }

    pub fn connect(&mut self, mock: &Mock, addr: Addr, port: u16) -> Result<u16, Reason> {
        self.dial(mock, Protocol::Udp, (addr, port), PeerCall::Connect)
    }

    /// The port it is told of a peer.
    pub fn answered(&mut self, mock: &Mock, addr: Addr, port: u16) -> Result<u16, Reason> {
        told(mock, self, named(Protocol::Udp, (addr, port)))
    }
}

impl Client for Local {
    fn is_in_netns(&self) -> bool {
        self.is_in_netns
    }

    fn bound_to(&self) -> Addr {
        self.bound_to
    }

    fn is_v6_only(&self) -> bool {
        self.is_v6_only
    }

    fn own_port(&self) -> Port {
        Port::new(self.own_port)
    }

    fn is_syn_assigned(&self) -> bool {
        self.is_syn_assigned
    }

    fn is_connected_udp(&self, key: &FlowKey) -> bool {
        self.connected.contains(key)
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

    fn forward_peers(&mut self) -> Option<&mut ForwardPeers> {
        self.forward_peers.as_mut()
    }

    fn forward_peers_or_insert(&mut self) -> Option<&mut ForwardPeers> {
        let peers = self.forward_peers.get_or_insert_default();
        self.has_memory.then_some(peers)
    }

    fn keep_udp_peer(&mut self, peer: Option<&ForwardPeer>) {
        self.udp_peer = peer.copied();
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
            let answer = told(&mock, &mut client, named(protocol, (to, 8080)));
            assert_eq!(answer, Ok(80), "{ip}");
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

/// A client that has bound its socket to an address means this address by zero.
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

/// A local client comes in on `lo`, and the host asks for its own address.
#[test]
fn what_meets_no_condition_is_let_alone() {
    const OTHERS: [&[&str]; 2] = [
        &["80:8080/both from 203.0.113.0/24"],
        &["203.0.113.9:80:8080/both"],
    ];
    let server = addr(SERVER4);
    for rules in OTHERS {
        let mock = mock(rules);
        let mut client = Local::new();
        assert_eq!(client.connect(&mock, server, 80), Err(Reason::NoMatch));
        assert!(client.peers.is_none(), "nothing is kept");
        assert_eq!(hits(&mock), []);
    }
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

/// A connected socket hears nobody but its peer, and that peer answers from the
/// dialled port itself.
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

/// One source port may be used to two ports with one target: such a connection is not
/// pointed there if the listener gets it without that.
#[test]
fn a_bound_client_is_left_to_the_listener() {
    let bound = || Local {
        own_port: 5550,
        is_syn_assigned: true,
        ..Local::new()
    };
    let connect = |mock: &Mock, mut client: Local, (protocol, port)| {
        client.dial(mock, protocol, (at(V4), port), PeerCall::Connect)
    };
    let to_80 = (Protocol::Tcp, 80);
    let at_8080 = mock(RULES);
    assert_eq!(connect(&at_8080, bound(), to_80), Err(Reason::NoRule));
    assert_eq!(hits(&at_8080), []);
    assert_eq!(connect(&at_8080, bound(), (Protocol::Udp, 80)), Ok(8080));
    for client in [
        Local {
            own_port: 0,
            ..bound()
        },
        Local {
            is_syn_assigned: false,
            ..bound()
        },
    ] {
        assert_eq!(connect(&at_8080, client, to_80), Ok(8080));
    }
    // Nobody listens: the client is refused where it is pointed at.
    let unserved = Mock {
        is_unserved: true,
        ..mock(RULES)
    };
    assert_eq!(connect(&unserved, bound(), to_80), Ok(8080));
    // What an earlier connection has left at port 80 would get the SYN.
    let mut used = mock(RULES);
    let earlier = key(Protocol::Tcp, (V4.into(), 5550), (V4.into(), 80));
    used.sockets.insert(earlier, Socket::TimeWait);
    assert_eq!(connect(&used, bound(), to_80), Ok(8080));
    // A port that is a target as well gets connections that were pointed there.
    let to_8080 = (Protocol::Tcp, 8080);
    assert_eq!(connect(&mock(CHAINED), bound(), to_8080), Ok(9090));
}
