//! Traffic across a host, packet for packet beside the reference.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use arbitrary::Unstructured;
use portredir_common::kernel::{self, Hit};
use portredir_common::net::Port;
use portredir_common::verdict::{Reason, Verdict};
use portredir_common::wire::frame::Link;

use super::scene::{SCENES, Scene, sockets};
use super::{Step, Traffic};
use crate::packet::mock::{Hex, Mock};
use crate::packet::scenario::Plan;
use crate::packet::{Hook, Iface, key, local_addrs};
use crate::reference::{Ends, Fate, Passage, Reference, Socket};

/// No session has more packets.
const PACKETS: usize = 128;

/// Something that packets cross.
pub trait Host {
    /// The fate of a frame; `None` when it cannot be had.
    fn run(&mut self, hook: Hook, iface: Iface, frame: &[u8]) -> Option<Fate>;

    /// After [`Self::run`]: what else must have done the same, with the client
    /// port that was given.
    ///
    /// # Errors
    ///
    /// What is not the same.
    fn follow(
        &mut self,
        _passage: Passage<'_>,
        _fate: &Fate,
        _given: Option<u16>,
    ) -> Result<(), String> {
        Ok(())
    }

    /// After the last packet: compares what is left.
    ///
    /// # Errors
    ///
    /// What is not the same.
    fn end(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Has time go by, if it can.
    fn wait(&mut self, _ns: u64) -> bool {
        false
    }

    /// Has a connection come or go, if it can.
    fn set_socket(&mut self, _ends: Ends, _socket: Option<Socket>) -> bool {
        false
    }

    /// Gives all rules other targets.
    fn set_plan(&mut self, _plan: &'static Plan) {}

    /// Suggests a client port for the next flow that needs one.
    fn choose(&mut self, _port: u16) {}
}

/// How often something was the case.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub sessions: u64,
    pub packets: u64,
    pub refused: u64,
    pub rewritten: u64,
    pub dropped: u64,
    pub given: u64,
    pub reasons: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.sessions += other.sessions;
        self.packets += other.packets;
        self.refused += other.refused;
        self.rewritten += other.rewritten;
        self.dropped += other.dropped;
        self.given += other.given;
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
    }

    pub fn add_reasons(&mut self, counts: &[u64; Reason::COUNT]) {
        for (reason, count) in Reason::ALL.iter().zip(counts) {
            *self.reasons.entry(reason.label()).or_default() += count;
        }
    }

    /// Panics when there is a reason that no packet had.
    pub fn assert_all_reasons(&self) {
        for reason in Reason::ALL {
            // Ports are never all taken, tables never full, and no packet needs a
            // listener, or is about a local client.
            let is_rare = matches!(
                reason,
                Reason::NoFreePort
                    | Reason::TableFull
                    | Reason::WriteFailed
                    | Reason::NoListener
                    | Reason::BoundToLoopback
                    | Reason::CannotReachIpv4
            );
            let is_met = self
                .reasons
                .get(reason.label())
                .is_some_and(|&count| count > 0);
            assert!(is_met || is_rare, "{reason:?} was never met");
        }
    }
}

/// A session that bytes describe.
pub struct Session<'a> {
    bytes: Unstructured<'a>,
    pub scene: &'static Scene,
    pub link: Link,
}

impl<'a> Session<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        let mut bytes = Unstructured::new(input);
        let scene = bytes.choose(&SCENES).unwrap_or(&SCENES[0]);
        let is_ip = bytes.ratio(1, 6).unwrap_or_default();
        Self {
            bytes,
            scene,
            link: if is_ip { Link::Ip } else { Link::Ethernet },
        }
    }

    /// Has its packets cross a host.
    ///
    /// # Errors
    ///
    /// What differs, and all packets up to there.
    pub fn run(mut self, host: &mut impl Host, tally: &mut Tally) -> Result<(), String> {
        let mut reference = Reference::new(self.scene.setup, self.link, self.scene.listens());
        reference.flows.sockets = sockets();
        if let Some(plan) = self.scene.plans.first() {
            reference.forwards.set_plan(plan);
            host.set_plan(plan);
        }
        tally.sessions += 1;
        let mut crossing = Crossing {
            host,
            tally,
            reference,
            traffic: Traffic::new(self.scene, self.link),
            log: Vec::new(),
        };
        for _ in 0..PACKETS {
            if self.bytes.is_empty() {
                break;
            }
            let Ok(step) = crossing.traffic.next(&mut self.bytes) else {
                break;
            };
            if let Err(error) = crossing.step(step) {
                return Err(self.report(&crossing.log, &error));
            }
        }
        let end = crossing.host.end();
        end.map_err(|error| self.report(&crossing.log, &error))
    }

    fn report(&self, log: &[Event], error: &str) -> String {
        let mut text = format!("{:?}, {:?}\n", self.scene, self.link);
        for event in log {
            match event {
                Event::Other(step) => writeln!(text, "{step:?}"),
                Event::Frame(hook, iface, before, fate) => {
                    let before = Hex(before);
                    let fate = Shown(fate);
                    writeln!(
                        text,
                        "{hook:?} by {iface:?}\n         {before:?}\n      -> {fate}"
                    )
                }
            }
            .expect("a string takes all");
        }
        text + error
    }
}

/// A host in the middle of a session, and the reference beside it.
struct Crossing<'a, H> {
    host: &'a mut H,
    tally: &'a mut Tally,
    reference: Reference,
    traffic: Traffic,
    log: Vec<Event>,
}

impl<H: Host> Crossing<'_, H> {
    /// Has the next event happen, to the host and to the reference.
    fn step(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Frame(hook, iface, frame) => return self.cross(hook, iface, frame),
            Step::Wait(ns) => {
                if self.host.wait(ns) {
                    self.reference.wait(ns);
                }
            }
            Step::Socket(ends, socket) => {
                if self.host.set_socket(ends, socket) {
                    let sockets = &mut self.reference.flows.sockets;
                    match socket {
                        Some(socket) => _ = sockets.insert(ends, socket),
                        None => _ = sockets.remove(&ends),
                    }
                }
            }
            Step::Choice(port) => {
                self.host.choose(port);
                return Ok(());
            }
            Step::Plan(plan) => {
                self.host.set_plan(plan);
                self.reference.forwards.set_plan(plan);
            }
        }
        self.log.push(Event::Other(step));
        Ok(())
    }

    /// Has a frame cross the host, and compares its fate with the reference.
    fn cross(&mut self, hook: Hook, iface: Iface, before: Vec<u8>) -> Result<(), String> {
        let Some(fate) = self.host.run(hook, iface, &before) else {
            self.tally.refused += 1;
            return Ok(());
        };
        self.tally.packets += 1;
        let after = match &fate {
            Fate::Pass(after) => after,
            Fate::Drop => &before,
        };
        let passage = Passage {
            hook,
            iface,
            before: &before,
            after,
            is_dropped: fate == Fate::Drop,
        };
        let expected = self.reference.fate(passage);
        let given = self.reference.given.take();
        self.tally.given += u64::from(given.is_some());
        let result = match expected {
            Ok(expected) if expected == fate => self.host.follow(passage, &fate, given),
            Ok(expected) => Err(format!("expected {}", Shown(&expected))),
            Err(why) => Err(why),
        };
        match &fate {
            _ if result.is_err() => {}
            Fate::Drop => self.tally.dropped += 1,
            Fate::Pass(after) => {
                let is_rewritten = *after != before;
                self.tally.rewritten += u64::from(is_rewritten);
                self.traffic.note(hook, after, is_rewritten);
            }
        }
        self.log.push(Event::Frame(hook, iface, before, fate));
        result
    }
}

enum Event {
    Frame(Hook, Iface, Vec<u8>, Fate),
    Other(Step),
}

struct Shown<'a>(&'a Fate);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Fate::Drop => f.write_str("dropped"),
            Fate::Pass(bytes) => write!(f, "{:?}", Hex(bytes)),
        }
    }
}

/// The fate that a verdict and the bytes make together.
pub fn fate(verdict: Verdict, bytes: Vec<u8>) -> Fate {
    match verdict {
        Verdict::Pass => Fate::Pass(bytes),
        Verdict::Drop => Fate::Drop,
    }
}

/// The datapath on this machine.
pub struct OnHost {
    pub mock: Mock,
    link: Link,
    pub reasons: [u64; Reason::COUNT],
    /// The hits that the last packet was counted as, and its replies.
    pub hits: Vec<Hit>,
    pub replies: Vec<Hit>,
}

impl OnHost {
    pub fn new(scene: &Scene, link: Link) -> Self {
        let mut mock = Mock::of(scene.setup, &local_addrs());
        mock.is_unserved = !scene.is_served;
        let mut host = Self {
            mock,
            link,
            reasons: [0; Reason::COUNT],
            hits: Vec::new(),
            replies: Vec::new(),
        };
        for (ends, socket) in sockets() {
            host.set_socket(ends, Some(socket));
        }
        host
    }
}

impl Host for OnHost {
    fn run(&mut self, hook: Hook, iface: Iface, frame: &[u8]) -> Option<Fate> {
        self.mock.iface = iface;
        let (reason, bytes) = self.mock.run(hook, self.link, frame);
        self.hits = self.mock.hits.take();
        self.replies = self.mock.replies.take();
        self.reasons[reason as usize] += 1;
        assert!(
            reason.verdict() == Verdict::Pass || bytes == frame,
            "{reason:?}: a packet that is dropped was changed"
        );
        Some(fate(reason.verdict(), bytes))
    }

    fn wait(&mut self, ns: u64) -> bool {
        self.mock.now_ns += ns;
        true
    }

    fn set_socket(&mut self, ends: Ends, socket: Option<Socket>) -> bool {
        let Ends {
            protocol,
            client,
            client_port,
            local,
            local_port,
        } = ends;
        let key = key(protocol, (client, client_port), (local, local_port));
        match socket {
            None => _ = self.mock.sockets.remove(&key),
            Some(Socket::Open) => _ = self.mock.sockets.insert(key, kernel::Socket::Connection),
            Some(Socket::TimeWait) => _ = self.mock.sockets.insert(key, kernel::Socket::TimeWait),
        }
        true
    }

    fn set_plan(&mut self, plan: &'static Plan) {
        self.mock.set_plan(plan);
    }

    fn choose(&mut self, port: u16) {
        self.mock.random.set(Mock::random_for(Port::new(port)));
    }
}

/// One session on this machine.
///
/// # Panics
///
/// The datapath is not as the reference says.
pub fn packet(input: &[u8]) {
    if let Err(error) = on_host(input, &mut Tally::default()) {
        panic!("{error}");
    }
}

/// Runs one session on this machine, and adds its packets to `tally`.
///
/// # Errors
///
/// The errors of [`Session::run`].
pub fn on_host(input: &[u8], tally: &mut Tally) -> Result<(), String> {
    let session = Session::new(input);
    let mut host = OnHost::new(session.scene, session.link);
    let result = session.run(&mut host, tally);
    tally.add_reasons(&host.reasons);
    result
}
