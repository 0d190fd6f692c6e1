//! Millions of random packets through the programs: what they make of them must
//! be what the reference says, and what the datapath on the host does.
//!
//! Bytes and verdict are compared packet for packet; reasons, counters and flow
//! state at the end of each session.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Instant;

use portredir_common::abi::{Counter, CounterKey, LOOPBACK_IFINDEX};
use portredir_common::flow;
use portredir_common::verdict::Reason;
use portredir_common::wire::Link;

use crate::cases::host::Tables;
use crate::cases::{Hook, Iface, key};
use crate::namespace::{self, OTHER_IFINDEX};
use crate::reference::{Ends, Fate};
use crate::rig::{Program, Rig, programs};
use crate::table::Rigs;
use crate::traffic::random::{self, SEED};
use crate::traffic::scene::sockets;
use crate::traffic::session::{Host, OnHost, Session, Tally, fate};

/// How many cross each kind of program on the way in.
const PACKETS: u64 = 1_000_000;

/// What is left to compare at the end of a session.
type Counts = BTreeMap<(u32, u32), (u64, u64, u64)>;

/// The programs of one kind, and the datapath on the host behind them.
struct InKernel<'a> {
    rig: &'a mut Rig,
    arrive: Program,
    leave: Program,
    host: OnHost,
    counts: Counts,
    before: Vec<u64>,
    runs: &'a mut BTreeMap<&'static str, u64>,
}

impl Host for InKernel<'_> {
    fn run(&mut self, hook: Hook, iface: Iface, frame: &[u8]) -> Option<Fate> {
        let program = match hook {
            Hook::Ingress => self.arrive,
            Hook::Egress => self.leave,
        };
        let (verdict, bytes) = self.rig.once(program, iface.into(), frame)?;
        *self.runs.entry(program.name).or_default() += 1;
        Some(fate(verdict, bytes))
    }

    fn follow(
        &mut self,
        hook: Hook,
        iface: Iface,
        frame: &[u8],
        fate: &Fate,
        given: Option<u16>,
    ) -> Result<(), String> {
        if let Some(port) = given {
            self.host.choose(port);
        }
        let on_host = self.host.run(hook, iface, frame);
        if on_host.as_ref() != Some(fate) {
            return Err(format!("the host differs: {on_host:?}"));
        }
        let ifindex = match iface {
            Iface::Lo => LOOPBACK_IFINDEX,
            Iface::Other => OTHER_IFINDEX,
        };
        for hit in self.host.hits.drain(..) {
            let counts = self.counts.entry((ifindex, hit.rule.into())).or_default();
            counts.0 += u64::from(hit.segments);
            counts.1 += u64::try_from(hit.bytes).expect("a length");
            counts.2 += u64::from(hit.is_new);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let counters = self.rig.datapath().counters().expect("read COUNTERS");
        let count = |(key, counter): (CounterKey, Counter)| {
            let counts = (counter.packets, counter.bytes, counter.flows);
            ((key.ifindex, key.rule), counts)
        };
        let counts: Counts = counters.into_iter().map(count).collect();
        if counts != self.counts {
            return Err(format!("counters {counts:?}, not {:?}", self.counts));
        }
        let now = self.rig.datapath().reasons().expect("read REASONS");
        for (i, reason) in Reason::ALL.iter().enumerate() {
            let (is, should) = (now[i] - self.before[i], self.host.reasons[i]);
            if reason.is_counted() && is != should {
                return Err(format!("{is} packets with {reason:?}, not {should}"));
            }
        }
        let tables = self.rig.read_tables();
        // The clocks are not the same.
        if tables.is(&self.host.mock.tables.borrow(), u64::MAX) {
            Ok(())
        } else {
            let should = &self.host.mock.tables.borrow();
            Err(format!("flow state\n{tables:?}is not\n{should:?}"))
        }
    }
}

/// Runs sessions until enough packets have come in by one kind of program.
fn cross(seed: u64, is_xdp: bool) -> (Tally, BTreeMap<&'static str, u64>) {
    namespace::enter();
    namespace::add_other();
    let held: Vec<_> = sockets()
        .into_keys()
        .map(|ends| (flow_key(ends), flow::Socket::Connection))
        .collect();
    let held = namespace::open(&held);
    // What scenes call a server, beside those that are there anyway.
    let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let servers = [7070, 8081, 9191].map(|port| UdpSocket::bind(any(port)).expect("bind"));
    let listener = namespace::server(any(9191));

    let mut rigs = Rigs::default();
    let mut tally = Tally::default();
    let mut runs = BTreeMap::new();
    let mut number = 0;
    // Each kind has its own sessions.
    let seed_of_kind = seed ^ u64::from(is_xdp);
    while came_in(&runs, is_xdp) < PACKETS {
        let input = random::session(seed_of_kind, number);
        let session = Session::new(&input);
        let of = |hook| programs(hook, session.link).filter(move |p| p.is_xdp == is_xdp);
        let mut arrive: Vec<_> = of(Hook::Ingress).collect();
        // With and without frags in turn.
        let turn = usize::try_from(number).expect("few") % arrive.len();
        let rig = rigs.at(session.scene.setup);
        rig.set_tables(&Tables::default());
        rig.clear_counters();
        let before = rig.datapath().reasons().expect("read REASONS");
        let mut host = InKernel {
            rig,
            arrive: arrive.swap_remove(turn),
            leave: programs(Hook::Egress, session.link)
                .next()
                .expect("there is one"),
            host: OnHost::new(session.scene, session.link),
            counts: Counts::new(),
            before,
            runs: &mut runs,
        };
        let result = session.run(&mut host, &mut tally);
        let reasons = host.host.reasons;
        // Sessions may end before their state was read.
        host.rig.read_tables();
        if let Err(error) = result {
            panic!("{SEED}={seed}, session {number}, XDP {is_xdp}: {error}");
        }
        tally.add_reasons(&reasons);
        number += 1;
    }
    drop((held, servers, listener));
    (tally, runs)
}

fn came_in(runs: &BTreeMap<&str, u64>, is_xdp: bool) -> u64 {
    [Link::Ethernet, Link::Ip]
        .into_iter()
        .flat_map(|link| programs(Hook::Ingress, link))
        .filter(|program| program.is_xdp == is_xdp)
        .filter_map(|program| runs.get(program.name))
        .sum()
}

fn flow_key(ends: Ends) -> portredir_common::abi::FlowKey {
    key(
        ends.protocol,
        (ends.client, ends.client_port),
        (ends.local, ends.local_port),
    )
}

pub fn run(_: &mut Rigs) {
    let seed = random::seed();
    println!("the same again: {SEED}={seed}");
    let start = Instant::now();
    thread::scope(|scope| {
        let threads = [true, false].map(|is_xdp| scope.spawn(move || cross(seed, is_xdp)));
        for thread in threads {
            let (tally, runs) = thread.join().expect("no difference");
            let time = start.elapsed().as_secs_f32();
            println!("{runs:?} in {time:.1} s\n{tally:?}");
            tally.assert_all_reasons();
        }
    });
}
