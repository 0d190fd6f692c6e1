//! Millions of random packets through the programs: what they make of them must
//! be what the reference says, and what the datapath on the host does.
//!
//! Bytes and verdict are compared packet for packet; reasons, counters and flow
//! state at the end of each session.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use portredir::loader::trace::Tracer;
use portredir_common::flow::FlowKey;
use portredir_common::kernel;
use portredir_common::map::counters::{Counter, CounterKey};
use portredir_common::map::trace::{Record, TraceBytes};
use portredir_common::net::LOOPBACK_IFINDEX;
use portredir_common::verdict::Reason;

use crate::namespace::{self, OTHER_IFINDEX};
use crate::packet::mock::Tables;
use crate::packet::scenario::Plan;
use crate::packet::{Hook, Iface, Setup, key};
use crate::program::{PROGRAMS, Program, programs};
use crate::reference::{Ends, Fate, Passage};
use crate::rig::{Rig, SIZES};
use crate::table::Rigs;
use crate::traffic::random::{self, SEED};
use crate::traffic::scene::sockets;
use crate::traffic::session::{Host, OnHost, Session, Tally, fate};

/// Packets, bytes and flows, by interface and rule.
type Sums = BTreeMap<(u32, u32), (u64, u64, u64)>;

/// The counters that are left to compare at the end of a session.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    requests: Sums,
    replies: Sums,
    /// The refused and the accepted flows, by rule.
    outcomes: BTreeMap<u32, (u64, u64)>,
}

/// The programs of one kind, and the datapath on the host behind them.
struct InKernel<'a> {
    rig: &'a mut Rig,
    arrive: Program,
    leave: Program,
    host: OnHost,
    counts: Counts,
    before: Vec<u64>,
    runs: Runs,
    /// The trace of some sessions, which the fast path then takes no part in.
    tracer: Option<Tracer>,
}

impl InKernel<'_> {
    /// Checks that the trace has the last packet, and what became of it.
    fn check_trace(&mut self, before: &[u8], fate: &Fate, reason: Reason) -> Result<(), String> {
        let Some(tracer) = &mut self.tracer else {
            return Ok(());
        };
        tracer.renew().expect("trace on");
        let records = tracer.take_records();
        if tracer.take_lost().expect("read TRACE_CPU") > 0 {
            return Ok(());
        }
        let should = usize::from(reason != Reason::NoRule);
        if records.len() != should {
            return Err(format!("{records:?} of a packet with {reason:?}"));
        }
        for record in records {
            let Record::Packet(packet) = record else {
                return Err(format!("{record:?}"));
            };
            let after = match fate {
                Fate::Pass(bytes) => bytes,
                Fate::Drop => before,
            };
            let bytes = |words: TraceBytes| {
                let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
                let captured = usize::try_from(packet.captured).expect("few");
                bytes.take(captured).collect::<Vec<_>>()
            };
            let is_right = usize::try_from(packet.len) == Ok(before.len())
                && packet.captured >= packet.len.min(128) / 2 * 2
                && packet.head.reason == reason as u32
                && before.starts_with(&bytes(packet.before))
                && after.starts_with(&bytes(packet.after));
            if !is_right {
                return Err(format!("{packet:?} of {before:?}, {reason:?}, {after:?}"));
            }
        }
        Ok(())
    }
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
        passage: Passage<'_>,
        fate: &Fate,
        given: Option<u16>,
    ) -> Result<(), String> {
        if let Some(port) = given {
            self.host.choose(port);
        }
        let Passage { hook, iface, .. } = passage;
        let reasons = self.host.reasons;
        let on_host = self.host.run(hook, iface, passage.before);
        if on_host.as_ref() != Some(fate) {
            return Err(format!("the host differs: {on_host:?}"));
        }
        let is_last = |(i, count): (usize, &u64)| *count != reasons[i];
        let last = self.host.reasons.iter().enumerate().position(is_last);
        let reason = Reason::ALL[last.expect("a reason")];
        self.check_trace(passage.before, fate, reason)?;
        let ifindex = match iface {
            Iface::Lo => LOOPBACK_IFINDEX,
            Iface::Other => OTHER_IFINDEX,
        };
        for (counts, hits) in [
            (&mut self.counts.requests, &mut self.host.hits),
            (&mut self.counts.replies, &mut self.host.replies),
        ] {
            for hit in hits.drain(..) {
                let counts = counts.entry((ifindex, hit.rule.into())).or_default();
                counts.0 += u64::from(hit.segments);
                counts.1 += u64::try_from(hit.bytes).expect("a length");
                counts.2 += u64::from(hit.begins_flow());
            }
        }
        for (rule, outcome) in self.host.mock.outcomes.take() {
            let counts = self.counts.outcomes.entry(rule.into()).or_default();
            match outcome {
                kernel::Outcome::Refused => counts.0 += 1,
                kernel::Outcome::Accepted => counts.1 += 1,
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let counters = self.rig.datapath().counters().expect("read COUNTERS");
        let count = |(key, counter): (CounterKey, Counter)| {
            let counts = (counter.packets, counter.bytes, counter.flows);
            ((key.ifindex, key.rule), counts)
        };
        let outcomes = counters.outcomes.into_iter();
        let counts = Counts {
            requests: counters.requests.into_iter().map(count).collect(),
            replies: counters.replies.into_iter().map(count).collect(),
            outcomes: outcomes
                .map(|(rule, outcomes)| (rule, (outcomes.refused, outcomes.accepted)))
                .collect(),
        };
        if counts != self.counts {
            return Err(format!("counters {counts:?}, not {:?}", self.counts));
        }
        let now = self.rig.datapath().reasons().expect("read REASONS");
        for (i, reason) in Reason::ALL.iter().enumerate() {
            let (is, should) = (now[i] - self.before[i], self.host.reasons[i]);
            if reason.is_counted_for_packets() && is != should {
                return Err(format!("{is} packets with {reason:?}, not {should}"));
            }
        }
        let should = self.host.mock.tables.borrow();
        let tables = [&should.syn, &should.tcp, &should.udp];
        let keys = tables.into_iter().flat_map(|table| table.keys().copied());
        let tables = self.rig.read_tables(keys.collect::<Vec<_>>());
        // The clocks are not the same.
        if !tables.is(&should, u16::MAX) {
            return Err(format!("flow state\n{tables:?}is not\n{should:?}"));
        }
        let sorted = |mut live: Vec<_>| {
            live.sort_unstable();
            live
        };
        let is = sorted(self.rig.live());
        let should = sorted(self.host.mock.forwards.borrow().live_flows().collect());
        if is != should {
            return Err(format!("live flows {is:?} are not {should:?}"));
        }
        Ok(())
    }

    fn set_plan(&mut self, plan: &'static Plan) {
        self.rig.set_plan(plan);
        self.host.set_plan(plan);
    }
}

/// How often each program was run.
type Runs = BTreeMap<&'static str, u64>;

/// Sessions that are taken at a time, to run those with the same rules in a row.
const BATCH: u64 = 128;

fn run_session(rig: &mut Rig, number: u64, input: &[u8]) -> (Result<(), String>, Tally, Runs) {
    let session = Session::new(input);
    // Replies cross TC whatever the way in is, so more come in by XDP.
    let is_xdp = !number.is_multiple_of(4);
    let mut arrive: Vec<_> = programs(Hook::Ingress, session.link)
        .filter(|program| program.is_xdp == is_xdp)
        .collect();
    let turn = usize::try_from(number).expect("few") % arrive.len();
    rig.set_tables(&Tables::default());
    rig.clear_forwards();
    rig.clear_counters();
    let before = rig.datapath().reasons().expect("read REASONS");
    let tracer = number.is_multiple_of(3);
    let tracer = tracer.then(|| Tracer::of(rig.datapath()).expect("trace"));
    let mut host = OnHost::new(session.scene, session.link);
    host.mock.seed = rig.seed();
    let mut in_kernel = InKernel {
        rig,
        arrive: arrive.swap_remove(turn),
        leave: programs(Hook::Egress, session.link)
            .next()
            .expect("there is one"),
        host,
        counts: Counts::default(),
        before,
        runs: Runs::new(),
        tracer,
    };
    let mut tally = Tally::default();
    let result = session.run(&mut in_kernel, &mut tally);
    let InKernel { host, runs, .. } = in_kernel;
    tally.add_reasons(&host.reasons);
    (result, tally, runs)
}

/// Runs sessions until enough packets have crossed programs of each kind.
fn cross(seed: u64, next: &AtomicU64, total: &Mutex<(Tally, Runs)>) {
    namespace::enter();
    namespace::add_other();
    let held: Vec<_> = sockets()
        .into_keys()
        .map(|ends| (flow_key(ends), kernel::Socket::Connection))
        .collect();
    let held = namespace::open(&held);
    // What scenes call a server, beside those that are there anyway.
    let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let servers = [7070, 8081, 9191].map(|port| UdpSocket::bind(any(port)).expect("bind"));
    let listener = namespace::server(any(9191));

    let mut rig = Rig::new(Setup::default(), SIZES);
    let packets = random::packets();
    let is_enough = || {
        let (_, runs) = &*total.lock().expect("no thread panics with it");
        [true, false].into_iter().all(|is_xdp| {
            let programs = PROGRAMS.iter().filter(|p| p.is_xdp == is_xdp);
            let runs = programs.filter_map(|program| runs.get(program.name));
            runs.sum::<u64>() >= packets
        })
    };
    while !is_enough() {
        let first = next.fetch_add(BATCH, Ordering::Relaxed);
        let inputs = (first..first + BATCH).map(|number| (number, random::session(seed, number)));
        let mut of_setup = BTreeMap::<Setup, Vec<_>>::new();
        for (number, input) in inputs {
            let setup = Session::new(&input).scene.setup;
            of_setup.entry(setup).or_default().push((number, input));
        }
        for (setup, inputs) in of_setup {
            rig.set_rules(setup);
            for (number, input) in inputs {
                let (result, tally, runs) = run_session(&mut rig, number, &input);
                let mut total = total.lock().expect("no thread panics with it");
                total.0.add(&tally);
                for (name, runs) in runs {
                    *total.1.entry(name).or_default() += runs;
                }
                drop(total);
                if let Err(error) = result {
                    panic!("{SEED}={seed}, session {number}: {error}");
                }
            }
        }
    }
    drop((held, servers, listener));
}

fn flow_key(ends: Ends) -> FlowKey {
    key(
        ends.protocol,
        (ends.client, ends.client_port),
        (ends.local, ends.local_port),
    )
}

pub fn run(_: &mut Rigs) {
    let (seed, next) = (random::seed(), AtomicU64::new(0));
    let total = Mutex::new((Tally::default(), Runs::new()));
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| cross(seed, &next, &total));
        }
    });
    let (tally, runs) = total.into_inner().expect("no thread panics with it");
    let time = start.elapsed().as_secs_f32();
    println!("{runs:?} in {time:.1} s\n{tally:?}");
    tally.assert_all_reasons();
}
