//! The peers that are kept at the socket of a client on this host.

use portredir_common::map::rules::PortEntry;
use portredir_common::map::sockets::{ConnectedPeer, ConnectedPeers};
use portredir_common::net::{Addr, Port};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::connect::{Local, V4, V6, at};
use crate::packet::builder::{SERVER4, SERVER6};
use crate::packet::{TWO_TO_ONE, addr};
use crate::sequence::mock;

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

/// One use that a client makes of its socket.
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
