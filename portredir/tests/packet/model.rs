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
use proptest::test_runner::TestCaseResult;

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
        let mut model = Connections::new();
        for (client, dialled, step) in steps {
            model.step((client, dialled), step)?;
            model.answer_all()?;
        }
    }
}

/// A flow by the ports that its client knows: its own, and the one it dialled.
type Ports = (u16, u16);

/// A host, and the TCP connections that are open to it.
struct Connections {
    mock: Mock,
    /// The client port that each connection has behind the target.
    open: HashMap<Ports, u16>,
}

impl Connections {
    fn new() -> Self {
        let mock = Mock {
            cache: Some(RefCell::default()),
            ..mock(TWO_TO_ONE)
        };
        Self {
            mock,
            open: HashMap::new(),
        }
    }

    fn step(&mut self, flow: Ports, step: Step) -> TestCaseResult {
        match (step, self.open.get(&flow).copied()) {
            (Step::Open, None) => self.open(flow),
            (Step::Data, Some(given)) => self.send(flow, given),
            (Step::Close(state), Some(given)) => {
                self.close(flow, given, state);
                Ok(())
            }
            (Step::Evict, _) => self.evict(),
            _ => Ok(()),
        }
    }

    fn open(&mut self, (client, dialled): Ports) -> TestCaseResult {
        let given = try_arrive(&self.mock, &syn(client, dialled))?;
        let is_taken = self.open.values().any(|other| *other == given);
        prop_assert!(!is_taken, "taken: {}", given);
        self.mock.sockets.insert(tcp_key(given), Socket::Connection);
        // The SYN is answered before there is a full socket.
        let cache = self.mock.cache.take();
        try_answer(&self.mock, &syn(client, dialled), given)?;
        self.mock.cache = cache;
        self.send((client, dialled), given)?;
        self.open.insert((client, dialled), given);
        Ok(())
    }

    /// Sends a segment of an open connection, which the server answers.
    fn send(&self, (client, dialled): Ports, given: u16) -> TestCaseResult {
        prop_assert_eq!(try_arrive(&self.mock, &ack(client, dialled))?, given);
        try_answer(&self.mock, &ack(client, dialled), given)
    }

    fn close(&mut self, flow: Ports, given: u16, state: Socket) {
        self.open.remove(&flow);
        self.mock.sockets.insert(tcp_key(given), state);
        let cache = self.mock.cache.as_ref().expect("there is one");
        cache.borrow_mut().remove(&tcp_key(given));
    }

    fn evict(&self) -> TestCaseResult {
        let remap = self.mock.tables.take().remap;
        self.mock.tables.borrow_mut().remap = remap;
        self.answer_all()?;
        // Until then a direct connection with the same client port would not be
        // told apart.
        for (&(client, dialled), &given) in &self.open {
            prop_assert_eq!(try_arrive(&self.mock, &ack(client, dialled))?, given);
        }
        Ok(())
    }

    /// Has the server answer on every open connection.
    fn answer_all(&self) -> TestCaseResult {
        for (&(client, dialled), &given) in &self.open {
            try_answer(&self.mock, &ack(client, dialled), given)?;
        }
        Ok(())
    }
}
