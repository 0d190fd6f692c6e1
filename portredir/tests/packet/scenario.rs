//! Packets one after the other, of flows to targets with an address: each says what must
//! come of it, and the state that leads there is made by the packets before.
//!
//! A scenario runs through the datapath on the host and through the programs in the kernel.

use portredir_common::map::targets::{Service, Slot, Target};
use portredir_common::net::{Addr, Port};
use portredir_common::verdict::Reason;

use super::builder::Packet;
use super::{Hook, addr};

/// A client port that the datapath gives: none is known before.
pub const GIVEN: u16 = 1;

/// The first of two targets, by IP version.
pub const F: [[u16; 8]; 2] = [
    [0, 0, 0, 0, 0, 0xffff, 0x0a00, 5],
    [0x2001, 0xdb8, 5, 0, 0, 0, 0, 5],
];
/// The second one.
pub const G: [[u16; 8]; 2] = [
    [0, 0, 0, 0, 0, 0xffff, 0x0a00, 6],
    [0x2001, 0xdb8, 5, 0, 0, 0, 0, 6],
];

/// The IP versions.
const VERSIONS: [u8; 2] = [4, 6];

/// The targets of a rule.
const TARGETS: u16 = 5;

/// A target in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    F,
    G,
    /// Port 8080 of this host.
    Here,
    Rests,
    Drops,
}

/// The slots that all rules have, each for both versions of IP, and what is known of F.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// A power of two of them; the targets of one, the present one first.
    pub slots: &'static [&'static [To]],
    /// The flags of F.
    pub of_f: u16,
    /// The flags of the services.
    pub flags: u16,
    /// The versions that have targets.
    pub versions: &'static [u8],
}

impl Plan {
    /// The targets of one slot for everybody.
    pub const fn new(slots: &'static [&'static [To]]) -> Self {
        Self {
            slots,
            of_f: 0,
            flags: Service::USED,
            versions: &VERSIONS,
        }
    }

    pub const fn f_is(mut self, flags: u16) -> Self {
        self.of_f = flags;
        self
    }

    /// The services of so many rules, by number and version.
    pub fn services(&self, rules: u16) -> Vec<((u16, u8), Service)> {
        let mut services = Vec::new();
        for rule in 0..rules {
            for &version in self.versions {
                let service = Service {
                    first_slot: self.first_slot(rule, version),
                    mask: u16::try_from(self.slots.len() - 1).expect("few"),
                    flags: self.flags,
                };
                services.push(((rule + 1, version), service));
            }
        }
        services
    }

    /// The slots, by index.
    pub fn slots(&self, rules: u16) -> Vec<(u32, Slot)> {
        let mut slots = Vec::new();
        for rule in 0..rules {
            for version in VERSIONS {
                for (at, targets) in (0..).zip(self.slots) {
                    let mut slot = Slot::default();
                    for (place, to) in slot.0.iter_mut().zip(*targets) {
                        *place = to.number(rule, version);
                    }
                    slots.push((self.first_slot(rule, version) + at, slot));
                }
            }
        }
        slots
    }

    fn first_slot(&self, rule: u16, version: u8) -> u32 {
        let half = u32::from(version == 6);
        (u32::from(rule) * 2 + half) * u32::try_from(self.slots.len()).expect("few")
    }

    /// The targets; the number of one is its place, from 1.
    pub fn targets(&self, rules: u16) -> Vec<Target> {
        let target = |rule, halves: [u16; 8], flags| Target {
            addr: at(halves),
            port: Port::new(8080),
            rule,
            flags,
            ..Target::default()
        };
        let of_rule = |rule| {
            let [f4, f6] = F.map(|halves| target(rule, halves, self.of_f));
            let [g4, g6] = G.map(|halves| target(rule, halves, 0));
            let here = Target {
                addr: Addr::default(),
                ..target(rule, F[0], Target::HERE)
            };
            [f4, g4, f6, g6, here]
        };
        (0..rules).flat_map(of_rule).collect()
    }
}

impl To {
    fn number(self, rule: u16, version: u8) -> u16 {
        let place = match (self, version) {
            (Self::Rests, _) => return Slot::RESTS,
            (Self::Drops, _) => return Slot::DROPS,
            (Self::F, 4) => 1,
            (Self::G, 4) => 2,
            (Self::F, _) => 3,
            (Self::G, _) => 4,
            (Self::Here, _) => 5,
        };
        rule * TARGETS + place
    }
}

fn at(halves: [u16; 8]) -> Addr {
    addr(std::net::Ipv6Addr::from(halves).into())
}

/// A packet, and what must come of it.
#[derive(Clone, Debug)]
pub struct Step {
    pub hook: Hook,
    /// A port of [`GIVEN`] is the one that was given last.
    pub packet: Packet,
    pub reason: Reason,
    /// The packet as it goes on; none where not a byte changes.
    pub out: Option<Packet>,
    /// Whether the datagram has no checksum.
    pub is_unsummed: bool,
    /// Whether it counts as the first of a flow.
    pub is_new: bool,
    /// Whether it counts as the refusal of a connection.
    pub is_refusal: bool,
}

impl Step {
    fn new(hook: Hook, packet: Packet) -> Self {
        Self {
            hook,
            packet,
            reason: Reason::NoRule,
            out: None,
            is_unsummed: false,
            is_new: false,
            is_refusal: false,
        }
    }

    /// The frame that comes and the one that must go on, when `given` is the port that was
    /// given.
    pub fn bytes(&self, given: u16) -> (Vec<u8>, Vec<u8>) {
        let bytes = |packet: &Packet| {
            let port = |port| if port == GIVEN { given } else { port };
            let (src, dst) = (port(packet.src_port), port(packet.dst_port));
            let mut bytes = packet.clone().ports(src, dst).bytes();
            if self.is_unsummed {
                let at = packet.transport() + 6;
                bytes[at..at + 2].fill(0);
            }
            bytes
        };
        let out = self.out.as_ref().unwrap_or(&self.packet);
        (bytes(&self.packet), bytes(out))
    }

    /// Whether a client port is given with this packet.
    pub fn gives(&self) -> bool {
        let out = self.out.as_ref();
        self.hook == Hook::Ingress
            && self.packet.src_port != GIVEN
            && out.is_some_and(|out| out.src_port == GIVEN)
    }
}

/// One event of a scenario.
#[derive(Clone, Debug)]
pub enum Event {
    Packet(Box<Step>),
    /// The slots and targets change.
    Plan(Plan),
    /// So many connections and UDP flows are live.
    Live(usize),
}

/// A sequence of packets.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: String,
    pub rules: &'static [&'static str],
    pub plan: Plan,
    pub events: Vec<Event>,
}

impl Scenario {
    pub fn new(name: impl Into<String>, rules: &'static [&'static str], plan: Plan) -> Self {
        Self {
            name: name.into(),
            rules,
            plan,
            events: Vec::new(),
        }
    }

    /// A packet that comes in, which stays as it is for now.
    pub fn arrives(self, packet: Packet) -> Self {
        self.step(Step::new(Hook::Ingress, packet))
    }

    /// A packet that goes out, which stays as it is for now.
    pub fn leaves(self, packet: Packet) -> Self {
        self.step(Step::new(Hook::Egress, packet))
    }

    fn step(mut self, step: Step) -> Self {
        self.events.push(Event::Packet(Box::new(step)));
        self
    }

    fn last(&mut self) -> &mut Step {
        match self.events.last_mut() {
            Some(Event::Packet(step)) => step,
            _ => panic!("a packet comes first"),
        }
    }

    /// The packet before is counted with a reason and becomes another one.
    pub fn becomes(mut self, reason: Reason, packet: Packet) -> Self {
        let step = self.last();
        (step.reason, step.out) = (reason, Some(packet));
        self
    }

    pub fn redirected(self, packet: Packet) -> Self {
        self.becomes(Reason::Redirected, packet)
    }

    pub fn restored(self, packet: Packet) -> Self {
        self.becomes(Reason::Restored, packet)
    }

    /// Not a byte of the packet before changes.
    pub fn unchanged(mut self, reason: Reason) -> Self {
        self.last().reason = reason;
        self
    }

    /// The packet before begins a flow.
    pub fn begins(mut self) -> Self {
        self.last().is_new = true;
        self
    }

    /// The packet before refuses a connection.
    pub fn refuses(mut self) -> Self {
        self.last().is_refusal = true;
        self
    }

    /// The datagram before has no checksum.
    pub fn unsummed(mut self) -> Self {
        self.last().is_unsummed = true;
        self
    }

    pub fn plan(mut self, plan: Plan) -> Self {
        self.events.push(Event::Plan(plan));
        self
    }

    pub fn live(mut self, flows: usize) -> Self {
        self.events.push(Event::Live(flows));
        self
    }

    pub fn reasons(&self) -> impl Iterator<Item = Reason> {
        self.events.iter().filter_map(|event| match event {
            Event::Packet(step) => Some(step.reason),
            _ => None,
        })
    }
}
