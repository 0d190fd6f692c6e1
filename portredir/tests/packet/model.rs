//! Random sequences of packets.
//!
//! The host remembers flows; here a model does too, in the simplest way, and
//! the two must agree on which connection a packet belongs to.

use std::cell::RefCell;
use std::collections::HashMap;

use portredir_common::flow::{Epoch, UDP_IDLE};
use portredir_common::kernel::Socket;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::packet::TWO_TO_ONE;
use crate::packet::builder::{CLIENT_PORT, udp4};
use crate::packet::mock::Mock;
use crate::sequence::{ack, mock, syn, tcp_key, try_answer, try_arrive};

const SECOND: u64 = 1_000_000_000;
const UDP_IDLE_NS: u64 = UDP_IDLE as u64 * Epoch::UNIT_NS;

/// The next step of a client.
#[derive(Clone, Debug)]
enum Step {
    Open,
    Data,
    /// The server's end is gone, or in `TIME_WAIT`.
    Close(Socket),
    /// The tables lose what they know of live connections.
    Evict,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2048) })]

    /// No two live UDP flows become one, each keeps its port, and each gets its
    /// own answers.
    #[test]
    fn udp_flows_do_not_mix(
        packets in vec(
            (
                select(vec![CLIENT_PORT, CLIENT_PORT + 1]),
                select(vec![80_u16, 81, 8080]),
                select(vec![0, SECOND / 2, 10 * SECOND, 60 * SECOND, 130 * SECOND]),
            ),
            1..40,
        ),
    ) {
        let mut mock = mock(TWO_TO_ONE);
        let mut flows = HashMap::<(u16, u16), (u16, u64)>::new();
        for (client, dialled, pause_ns) in packets {
            mock.now_ns += pause_ns;
            // Up to an epoch of it may be forgotten, and nobody minds.
            flows.retain(|_, (_, seen_ns)| mock.now_ns - *seen_ns < UDP_IDLE_NS - 2 * Epoch::UNIT_NS);
            let packet = udp4(dialled).src_port(client);
            let given = try_arrive(&mock, &packet)?;
            try_answer(&mock, &packet, given)?;
            if let Some((before, _)) = flows.insert((client, dialled), (given, mock.now_ns)) {
                prop_assert_eq!(before, given);
            }
            for (flow, (other, _)) in &flows {
                prop_assert!(*other != given || *flow == (client, dialled), "one with {:?}", flow);
            }
        }
        for ((client, dialled), (given, _)) in flows {
            try_answer(&mock, &udp4(dialled).src_port(client), given)?;
        }
    }

    /// No two open TCP connections become one, while connections come and go.
    #[test]
    fn tcp_connections_do_not_mix(
        steps in vec(
            (
                select(vec![CLIENT_PORT, CLIENT_PORT + 1]),
                select(vec![80_u16, 81, 8080]),
                prop_oneof![
                    3 => Just(Step::Open),
                    2 => Just(Step::Data),
                    2 => select(vec![Socket::None, Socket::TimeWait]).prop_map(Step::Close),
                    1 => Just(Step::Evict),
                ],
            ),
            1..40,
        ),
    ) {
        let mut mock = Mock { cache: Some(RefCell::default()), ..mock(TWO_TO_ONE) };
        let mut open = HashMap::<(u16, u16), u16>::new();
        for (client, dialled, step) in steps {
            let flow = (client, dialled);
            match (step, open.get(&flow).copied()) {
                (Step::Open, None) => {
                    let given = try_arrive(&mock, &syn(client, dialled))?;
                    prop_assert!(!open.values().any(|other| *other == given), "taken: {}", given);
                    mock.sockets.insert(tcp_key(given), Socket::Connection);
                    // The SYN is answered before there is a full socket.
                    let cache = mock.cache.take();
                    try_answer(&mock, &syn(client, dialled), given)?;
                    mock.cache = cache;
                    prop_assert_eq!(try_arrive(&mock, &ack(client, dialled))?, given);
                    try_answer(&mock, &ack(client, dialled), given)?;
                    open.insert(flow, given);
                }
                (Step::Data, Some(given)) => {
                    prop_assert_eq!(try_arrive(&mock, &ack(client, dialled))?, given);
                    try_answer(&mock, &ack(client, dialled), given)?;
                }
                (Step::Close(state), Some(given)) => {
                    open.remove(&flow);
                    mock.sockets.insert(tcp_key(given), state);
                    let cache = mock.cache.as_ref().expect("there is one");
                    cache.borrow_mut().remove(&tcp_key(given));
                }
                (Step::Evict, _) => {
                    let remap = mock.tables.take().remap;
                    mock.tables.borrow_mut().remap = remap;
                    for (&(client, dialled), &given) in &open {
                        try_answer(&mock, &ack(client, dialled), given)?;
                    }
                    // Until then a direct connection with the same client port
                    // would not be told apart.
                    for (&(client, dialled), &given) in &open {
                        prop_assert_eq!(try_arrive(&mock, &ack(client, dialled))?, given);
                    }
                }
                _ => {}
            }
            for (&(client, dialled), &given) in &open {
                try_answer(&mock, &ack(client, dialled), given)?;
            }
        }
    }
}
