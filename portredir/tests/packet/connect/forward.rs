//! Clients on this host whose rule leads to targets with an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portredir_common::datapath::connect::{PeerCall, redirect_connect, restore_peer};
use portredir_common::map::targets::{Service, Slot, Target};
use portredir_common::net::{Addr, Protocol};
use portredir_common::verdict::{Reason, Verdict};

use super::{Local, V4, V6, at, hits, named};
use crate::packet::addr;
use crate::packet::builder::{SERVER4, SERVER6};
use crate::packet::mock::Mock;
use crate::packet::scenario::{F, G, Plan, To};
use crate::sequence::mock;

/// A rule with two targets in each version of IP.
const RULES: &[&str] =
    &["80:10.0.0.5:8080,10.0.0.6:8080,[2001:db8:5::5]:8080,[2001:db8:5::6]:8080/both"];

const TO_F: Plan = Plan::new(&[&[To::F]]);
const TO_G: Plan = Plan::new(&[&[To::G, To::F]]);

/// The calls by which a client names a peer, with the protocols that have them.
const CALLS: [(Protocol, PeerCall); 3] = [
    (Protocol::Tcp, PeerCall::Connect),
    (Protocol::Udp, PeerCall::Connect),
    (Protocol::Udp, PeerCall::Send),
];

fn planned(plan: &Plan) -> Mock {
    let mock = mock(RULES);
    mock.set_plan(plan);
    mock
}

/// The address of a target, in the IP version of another address.
fn target(halves: [[u16; 8]; 2], like: Addr) -> Addr {
    let halves = halves[usize::from(!like.is_v4())];
    addr(IpAddr::from(Ipv6Addr::from(halves)).to_canonical())
}

impl Local {
    /// The place it is pointed at by naming port 80 of an address.
    fn name_by(
        &mut self,
        mock: &Mock,
        (protocol, call): (Protocol, PeerCall),
        to: Addr,
    ) -> Result<(Addr, u16), Reason> {
        let mut peer = named(protocol, (to, 80));
        match redirect_connect(mock, self, &mut peer, call) {
            Reason::Redirected => Ok((peer.addr, peer.port.get())),
            reason => {
                assert_eq!(peer, named(protocol, (to, 80)), "it stays as it was");
                Err(reason)
            }
        }
    }

    /// The place it is pointed at by a datagram.
    fn send_to(&mut self, mock: &Mock, to: Addr) -> Result<(Addr, u16), Reason> {
        self.name_by(mock, (Protocol::Udp, PeerCall::Send), to)
    }

    /// The name of a peer that it is told.
    fn is_told(&mut self, mock: &Mock, peer: (Addr, u16)) -> Result<(Addr, u16), Reason> {
        let mut told = named(Protocol::Udp, peer);
        restore_peer(mock, self, &mut told)?;
        Ok((told.addr, told.port.get()))
    }
}

#[test]
fn a_client_is_pointed_at_a_target_and_told_what_it_named() {
    for by in CALLS {
        for ip in [SERVER4, SERVER6, V4.into(), V6.into()] {
            let (mock, mut client, to) = (planned(&TO_F), Local::new(), addr(ip));
            let f = (target(F, to), 8080);
            assert_eq!(client.name_by(&mock, by, to), Ok(f), "{by:?} {ip}");
            assert_eq!(client.is_told(&mock, f), Ok((to, 80)), "{by:?} {ip}");
            let g = (target(G, to), 8080);
            assert_eq!(client.is_told(&mock, g), Err(Reason::Direct));
            let segments = u32::from(by.1 == PeerCall::Send);
            assert_eq!(hits(&mock), [(0, segments, 0, true)], "{by:?}");
        }
    }
}

/// Linux takes address zero for loopback, or for the address that the socket is bound to, and
/// `getpeername` says so.
#[test]
fn a_client_that_named_address_zero_is_told_where_that_is() {
    let any = Addr::V4_ANY;
    for (zero, bound_to, told) in [
        (at(Ipv4Addr::UNSPECIFIED), any, at(V4)),
        (at(Ipv4Addr::UNSPECIFIED), addr(SERVER4), addr(SERVER4)),
        (at(Ipv6Addr::UNSPECIFIED), any, at(V6)),
    ] {
        for by in CALLS {
            let (mock, mut client) = (planned(&TO_F), Local::new());
            client.bound_to = bound_to;
            let f = (target(F, zero), 8080);
            assert_eq!(client.name_by(&mock, by, zero), Ok(f), "{by:?}");
            assert_eq!(client.is_told(&mock, f), Ok((told, 80)), "{by:?}");
        }
    }
}

/// Datagrams go on to the target that the first one went to, by whatever name, until it is
/// dead; a connection may have another one each time.
#[test]
fn datagrams_stay_with_a_target_until_it_is_dead() {
    let (to, zero) = (at(V4), at(Ipv4Addr::UNSPECIFIED));
    let (f, g) = ((target(F, to), 8080), (target(G, to), 8080));
    let (mock, mut client) = (planned(&TO_F), Local::new());
    assert_eq!(client.send_to(&mock, zero), Ok(f));
    mock.set_plan(&TO_G);
    assert_eq!(client.send_to(&mock, zero), Ok(f));
    assert_eq!(client.send_to(&mock, to), Ok(f));
    // Another address is another peer.
    assert_eq!(client.send_to(&mock, addr(SERVER4)), Ok(g));
    let connect = (Protocol::Udp, PeerCall::Connect);
    assert_eq!(Local::new().name_by(&mock, connect, to), Ok(g));
    let known = client.clone();
    assert_eq!(client.name_by(&mock, connect, to), Ok(g));
    mock.set_plan(&TO_G.f_is(Target::DEAD));
    let mut client = known;
    assert_eq!(client.send_to(&mock, to), Ok(g));
    let begun: Vec<_> = hits(&mock).iter().map(|hit| hit.3).collect();
    assert_eq!(begun, [true, false, false, true, true, true, true]);
}

/// A target would answer to an address that it cannot reach.
#[test]
fn a_socket_that_is_bound_to_loopback_is_left_alone() {
    for (bound_to, to) in [
        (at(V4), at(V4)),
        (at([127, 5, 5, 5]), addr(SERVER4)),
        (at(V6), at(V6)),
    ] {
        for by in CALLS {
            let (mock, mut client) = (planned(&TO_F), Local::new());
            client.bound_to = bound_to;
            assert_eq!(client.name_by(&mock, by, to), Err(Reason::BoundToLoopback));
            assert!(client.forward_peers.is_none(), "nothing is kept");
            assert_eq!(hits(&mock), []);
        }
    }
}

/// An IPv6 socket reaches IPv4 targets where the kernel lets it.
#[test]
fn an_ipv6_client_of_an_ipv4_target() {
    const ONLY_V4: Plan = Plan {
        versions: &[4],
        ..TO_F
    };
    let to = addr(SERVER6);
    let f = (target(F, at(V4)), 8080);
    let mock = planned(&ONLY_V4);
    for by in CALLS {
        let any = || Local {
            bound_to: Addr::V6_ANY,
            ..Local::new()
        };
        let mut client = any();
        let reached = client.name_by(&mock, by, to);
        if by.1 == PeerCall::Send {
            assert_eq!(reached, Err(Reason::CannotReachIpv4));
        } else {
            assert_eq!(reached, Ok(f), "{by:?}");
            assert_eq!(client.is_told(&mock, f), Ok((to, 80)));
        }
        for mut client in [
            Local {
                is_v6_only: true,
                ..any()
            },
            Local {
                bound_to: addr(SERVER6),
                ..any()
            },
        ] {
            let reached = client.name_by(&mock, by, to);
            assert_eq!(reached, Err(Reason::CannotReachIpv4), "{client:?}");
            assert!(client.forward_peers.is_none(), "nothing is kept");
        }
    }
}

#[test]
fn a_service_without_targets_of_the_version_is_none() {
    const ONLY_V6: Plan = Plan {
        versions: &[6],
        ..TO_F
    };
    let mock = planned(&ONLY_V6);
    for by in CALLS {
        let reached = Local::new().name_by(&mock, by, at(V4));
        assert_eq!(reached, Err(Reason::NoMatch), "{by:?}");
        // A slot of IPv4 that leads to IPv6 is that of a change that is under way.
        let mock = planned(&TO_F);
        let slot = Slot([3, 0, 0, 0]);
        mock.forwards.borrow_mut().slots.insert(0, slot);
        let reached = Local::new().name_by(&mock, by, at(V4));
        assert_eq!(reached, Err(Reason::NoMatch), "{by:?}");
    }
}

#[test]
fn without_a_target_that_is_up_a_client_gets_what_the_rule_says() {
    const RESTS: Plan = Plan::new(&[&[To::Rests, To::F]]);
    const DROPS: Plan = Plan::new(&[&[To::Drops, To::F]]);
    for (plan, reason, verdict) in [
        (RESTS, Reason::NoTarget, Verdict::Pass),
        (DROPS, Reason::NoTargetDropped, Verdict::Drop),
    ] {
        for by in CALLS {
            let (mock, mut client) = (planned(&plan), Local::new());
            assert_eq!(client.name_by(&mock, by, at(V4)), Err(reason), "{by:?}");
            assert!(client.forward_peers.is_none(), "nothing is kept");
        }
        assert_eq!(reason.verdict(), verdict);
    }
    // A number that no target has.
    let mock = planned(&TO_F);
    mock.forwards.borrow_mut().targets = &[];
    for by in CALLS {
        let reached = Local::new().name_by(&mock, by, at(V4));
        assert_eq!(reached, Err(Reason::NoTarget), "{by:?}");
    }
}

/// A target that is a port of this host is on the address that the client named.
#[test]
fn a_target_here_keeps_the_address() {
    const HERE: Plan = Plan::new(&[&[To::Here]]);
    let zero = at(Ipv4Addr::UNSPECIFIED);
    for by in CALLS {
        for (to, here) in [
            (at(V4), at(V4)),
            (addr(SERVER6), addr(SERVER6)),
            (zero, at(V4)),
        ] {
            let (mock, mut client) = (planned(&HERE), Local::new());
            assert_eq!(client.name_by(&mock, by, to), Ok((here, 8080)), "{by:?}");
            assert_eq!(client.is_told(&mock, (here, 8080)), Ok((here, 80)));
        }
    }
}

#[test]
fn without_memory_a_client_is_pointed_nowhere() {
    for by in CALLS {
        let mock = planned(&TO_F);
        let mut client = Local {
            has_memory: false,
            ..Local::new()
        };
        assert_eq!(client.name_by(&mock, by, at(V4)), Err(Reason::TableFull));
        assert_eq!(hits(&mock), []);
    }
}

/// With affinity the address that a client is bound to names the slot, and all that are
/// bound to none have the same one; else each has one by chance.
#[test]
fn affinity_is_that_of_the_address_that_a_client_is_bound_to() {
    const TWO: Plan = Plan::new(&[&[To::F], &[To::G]]);
    const AFFINE: Plan = Plan {
        flags: Service::USED | Service::AFFINITY,
        ..TWO
    };
    let (f, g) = (target(F, at(V4)), target(G, at(V4)));
    let reached = |plan: &Plan, bound_to: Addr| {
        let mock = planned(plan);
        let reached = |_| {
            let mut client = Local {
                bound_to,
                ..Local::new()
            };
            let (to, _) = client.send_to(&mock, addr(SERVER4)).expect("a target");
            to
        };
        (0..8).map(reached).collect::<Vec<_>>()
    };
    assert_eq!(reached(&TWO, Addr::V4_ANY), [f, g, f, g, f, g, f, g]);
    assert_eq!(reached(&AFFINE, Addr::V4_ANY), [f; 8]);
    let of_address = |last: u8| {
        let all = reached(&AFFINE, at([192, 0, 2, last]));
        assert!(all.iter().all(|to| *to == all[0]), "{last}: {all:?}");
        all[0]
    };
    let all: Vec<_> = (1..=20).map(of_address).collect();
    assert!(all.contains(&f) && all.contains(&g), "{all:?}");
}

/// A client that names a target by its own address is told that one from then on.
#[test]
fn who_names_a_target_itself_is_told_its_own_address() {
    let (mock, mut client, to) = (planned(&TO_F), Local::new(), at(V4));
    let f = (target(F, to), 8080);
    assert_eq!(client.send_to(&mock, to), Ok(f));
    assert_eq!(client.is_told(&mock, f), Ok((to, 80)));
    assert_eq!(client.send(&mock, f.0, f.1), Err(Reason::NoRule));
    assert_eq!(client.is_told(&mock, f), Err(Reason::Direct));
}
