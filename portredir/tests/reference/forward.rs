//! Flows to targets with an address, as netfilter's DNAT has them, and as the documentation
//! says where there are several targets.
//!
//! Clients are spread over slots by a hash that nobody else can compute; the slot of a
//! client is learned from what the datapath did with its packets, and has to stay.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use portredir_common::map::targets::{Service, Target};
use portredir_common::net::Protocol;

use super::flows::Ends;
use crate::packet::scenario::{F, G, Plan, To};

/// The time for which a UDP flow, or a connection that nobody answers, has a claim to its port
/// (`nf_conntrack_udp_timeout_stream`, `nf_conntrack_tcp_timeout_syn_sent`).
const CLAIM_NS: u64 = 120_000_000_000;

/// The port that all targets have.
const PORT: u16 = 8080;

/// A TCP segment, or a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    Datagram,
    Tcp {
        flags: u8,
        sequence: u32,
        acknowledged: u32,
    },
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

impl Segment {
    fn has(self, wanted: u8, unwanted: u8) -> bool {
        matches!(self, Self::Tcp { flags, .. } if flags & (wanted | unwanted) == wanted)
    }

    /// Whether it asks for a connection.
    pub fn is_syn(self) -> bool {
        self.has(SYN, ACK | RST)
    }

    fn is_syn_ack(self) -> bool {
        self.has(SYN | ACK, RST)
    }

    /// Whether it says that something has arrived.
    pub fn is_ack(self) -> bool {
        self.has(ACK, SYN | RST)
    }

    fn is_reset(self) -> bool {
        self.has(RST, 0)
    }

    fn is_last(self) -> bool {
        self.has(FIN, 0)
    }
}

/// The life of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Datagrams,
    /// The target has not answered.
    Asked,
    /// The target has, and waits for this number.
    Answered(u32),
    Open {
        client_is_done: bool,
        target_is_done: bool,
    },
    Over,
}

/// The flow that has a client port at a target.
#[derive(Clone, Copy, Debug)]
struct Holder {
    /// The ends as the client knows them; none when the client knows the target itself.
    known: Option<Ends>,
    phase: Phase,
    seen_ns: u64,
}

/// The relation of a packet to the holder of its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    /// The flow that was there is over, and begins anew.
    Again,
    Taken,
    Its,
    /// The flow is its own, and the target has not answered.
    ItsUnanswered,
}

/// Where a packet of a client goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The ends behind the rewrite.
    Behind(Ends),
    /// The client port is another one, which the datapath chooses.
    WithAnother(Ends),
    /// The packet is not for a target.
    Past,
    Dropped,
}

/// A packet of a client.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The ends as the client wrote them.
    pub known: Ends,
    pub segment: Segment,
    /// Whether a new flow would not be ours.
    pub is_foreign: bool,
}

/// The facts that can be known of the flows.
#[derive(Clone, Debug, Default)]
struct State {
    now_ns: u64,
    holders: HashMap<Ends, Holder>,
    /// Client ports that were given, by the ends as the client knows them.
    given: HashMap<Ends, u16>,
}

/// The targets of all rules, and the flows to them.
#[derive(Debug, Default)]
pub struct Forwards {
    plan: Option<&'static Plan>,
    state: State,
    /// The slots that a client may have, one bit each.
    slots: HashMap<Ends, u64>,
}

/// The address of a target.
fn addr_of(halves: [[u16; 8]; 2], known: Ends) -> IpAddr {
    let halves = halves[usize::from(known.local.is_ipv6())];
    IpAddr::from(Ipv6Addr::from(halves)).to_canonical()
}

impl State {
    fn is_claimed(&self, holder: &Holder) -> bool {
        let is_recent = self.now_ns - holder.seen_ns < CLAIM_NS;
        match holder.phase {
            Phase::Over => false,
            Phase::Open { .. } => true,
            Phase::Datagrams => is_recent,
            Phase::Asked | Phase::Answered(_) => is_recent || holder.known.is_none(),
        }
    }

    /// Notes a packet that a client sent to `known`, and says what it finds at a place.
    fn visit(&mut self, place: Ends, known: Ends, segment: Segment) -> Place {
        let Some(mut holder) = self.holders.get(&place).copied() else {
            return Place::Free;
        };
        if holder.known != Some(known) {
            return if self.is_claimed(&holder) {
                Place::Taken
            } else {
                Place::Free
            };
        }
        if holder.phase == Phase::Over && segment.is_syn() {
            self.holders.remove(&place);
            return Place::Again;
        }
        let result = match (&mut holder.phase, segment) {
            (Phase::Answered(number), Segment::Tcp { acknowledged, .. })
                if segment.is_ack() && *number == acknowledged =>
            {
                holder.phase = Phase::Open {
                    client_is_done: false,
                    target_is_done: false,
                };
                Place::Its
            }
            (Phase::Asked, _) => Place::ItsUnanswered,
            (Phase::Open { .. }, _) if segment.is_reset() => {
                holder.phase = Phase::Over;
                Place::Its
            }
            (Phase::Open { client_is_done, .. }, _) if segment.is_last() => {
                *client_is_done = true;
                Place::Its
            }
            _ => Place::Its,
        };
        holder.seen_ns = self.now_ns;
        self.put(place, holder);
        result
    }

    /// Writes down a holder; one that both ends have left is over.
    fn put(&mut self, place: Ends, mut holder: Holder) {
        if let Phase::Open {
            client_is_done: true,
            target_is_done: true,
        } = holder.phase
        {
            holder.phase = Phase::Over;
        }
        self.holders.insert(place, holder);
    }

    fn begin(&mut self, place: Ends, known: Option<Ends>) {
        let phase = match place.protocol {
            Protocol::Udp => Phase::Datagrams,
            Protocol::Tcp => Phase::Asked,
        };
        let seen_ns = self.now_ns;
        let holder = Holder {
            known,
            phase,
            seen_ns,
        };
        self.holders.insert(place, holder);
    }

    /// The places that a flow may have at a target: by its own client port, and by the one
    /// that it was given.
    fn places(&self, known: Ends, target: (IpAddr, u16)) -> impl Iterator<Item = Ends> + use<> {
        let own = Ends {
            local: target.0,
            local_port: target.1,
            ..known
        };
        let given = self.given.get(&known).copied();
        let given = given.map(|client_port| Ends { client_port, ..own });
        [Some(own), given].into_iter().flatten()
    }
}

impl Forwards {
    pub fn set_plan(&mut self, plan: &'static Plan) {
        self.plan = Some(plan);
    }

    pub fn wait(&mut self, ns: u64) {
        self.state.now_ns += ns;
    }

    /// Remembers the port that a client was given; it is one wherever a rule leads.
    pub fn remember(&mut self, known: Ends, port: u16) {
        self.state.given.insert(known, port);
    }

    /// Whether a port may be that of a target.
    pub fn is_target(&self, port: u16) -> bool {
        self.plan.is_some() && port == PORT
    }

    /// The slots that a client may have.
    fn slots_of(&self, known: Ends) -> (Ends, u64) {
        let plan = self.plan.expect("a plan");
        let client = if plan.flags & Service::AFFINITY == 0 {
            known
        } else {
            // The address alone.
            Ends {
                client_port: 0,
                local: known.client,
                local_port: 0,
                protocol: Protocol::Tcp,
                ..known
            }
        };
        let all = (1 << plan.slots.len()) - 1;
        (client, self.slots.get(&client).copied().unwrap_or(all))
    }

    /// The address and port of a target that keeps its flows.
    fn target(&self, to: To, known: Ends) -> Option<(IpAddr, u16)> {
        let plan = self.plan?;
        let is_dead = plan.of_f & Target::DEAD != 0;
        let is_cut = plan.of_f & Target::CUT != 0 || known.protocol == Protocol::Udp;
        match to {
            To::F if is_dead && is_cut => None,
            To::F | To::G | To::Here => Some(self.end_of(to, known)),
            To::Rests | To::Drops => None,
        }
    }

    fn end_of(&self, to: To, known: Ends) -> (IpAddr, u16) {
        let addr = match to {
            To::F => addr_of(F, known),
            To::G => addr_of(G, known),
            _ => known.local,
        };
        (addr, PORT)
    }

    /// Where a packet of a client goes if it has a slot with these targets.
    fn way(
        &self,
        state: &mut State,
        request: Request,
        (slot, is_connected): (&[To], &dyn Fn(Ends) -> bool),
    ) -> Way {
        let Request {
            known,
            segment,
            is_foreign,
        } = request;
        let mut is_taken = false;
        for (number, &to) in slot.iter().enumerate() {
            let Some(target) = self.target(to, known) else {
                continue;
            };
            for place in state.places(known, target).collect::<Vec<_>>() {
                match state.visit(place, known, segment) {
                    Place::Its => return Way::Behind(place),
                    // A repeated SYN need not wait for an earlier target.
                    Place::ItsUnanswered if number == 0 || !segment.is_syn() => {
                        return Way::Behind(place);
                    }
                    Place::Taken if number == 0 && place.client_port == known.client_port => {
                        is_taken = true;
                    }
                    Place::ItsUnanswered | Place::Again => break,
                    Place::Free | Place::Taken => {}
                }
            }
        }
        let now = slot[0];
        match now {
            _ if is_foreign => return Way::Past,
            To::Rests => return Way::Past,
            To::Drops => return Way::Dropped,
            _ => {}
        }
        let (local, local_port) = self.end_of(now, known);
        let place = Ends {
            local,
            local_port,
            ..known
        };
        if is_taken || now == To::Here && is_connected(place) {
            return Way::WithAnother(place);
        }
        state.begin(place, Some(known));
        Way::Behind(place)
    }

    /// Where a packet of a client goes, of which the datapath made the ends `after`.
    ///
    /// # Errors
    ///
    /// The datapath chose a client port that is not free.
    pub fn arrives(
        &mut self,
        request: Request,
        after: Ends,
        is_connected: &dyn Fn(Ends) -> bool,
    ) -> Result<(Way, Option<u16>), String> {
        let plan = self.plan.expect("a plan");
        let (client, possible) = self.slots_of(request.known);
        let mut found: Option<(Way, State)> = None;
        let mut other = None;
        let mut still_possible = 0_u64;
        for (number, slot) in plan.slots.iter().enumerate() {
            if possible >> number & 1 == 0 {
                continue;
            }
            let mut state = self.state.clone();
            let way = self.way(&mut state, request, (slot, is_connected));
            let fits = match way {
                Way::Behind(ends) => ends == after,
                Way::WithAnother(ends) => {
                    let client_port = after.client_port;
                    Ends {
                        client_port,
                        ..ends
                    } == after
                        && client_port != ends.client_port
                }
                Way::Past | Way::Dropped => request.known == after,
            };
            if fits {
                still_possible |= 1 << number;
                found.get_or_insert((way, state));
            } else {
                other.get_or_insert((way, state));
            }
        }
        let (way, state) = found.or(other).expect("a client has a slot");
        self.slots.insert(client, still_possible.max(1));
        self.state = state;
        let Way::WithAnother(place) = way else {
            return Ok((way, None));
        };
        let chosen = after.client_port;
        self.check_choice(
            Ends {
                client_port: chosen,
                ..place
            },
            is_connected,
        )?;
        let place = Ends {
            client_port: chosen,
            ..place
        };
        self.state.begin(place, Some(request.known));
        self.state.given.insert(request.known, chosen);
        Ok((Way::Behind(place), Some(chosen)))
    }

    fn check_choice(&self, place: Ends, is_connected: &dyn Fn(Ends) -> bool) -> Result<(), String> {
        let port = place.client_port;
        let holder = self.state.holders.get(&place);
        if port < 1024 {
            return Err(format!("client port {port} is privileged"));
        }
        if let Some(holder) = holder.filter(|holder| self.state.is_claimed(holder)) {
            return Err(format!("client port {port} is given twice: {holder:?}"));
        }
        if is_connected(place) {
            return Err(format!("client port {port} has a connection"));
        }
        Ok(())
    }

    /// The ends behind the rewrite of a flow that may be known, for an error about a reply:
    /// for each slot that the client may have.
    pub fn behind(&self, known: Ends) -> Vec<Option<Ends>> {
        let Some(plan) = self.plan else {
            return vec![None];
        };
        let (_, possible) = self.slots_of(known);
        let slots = plan.slots.iter().enumerate();
        let possible = slots.filter(|(number, _)| possible >> number & 1 != 0);
        let place = |(_, slot): (usize, &&[To])| {
            let targets = slot.iter().filter_map(|&to| self.target(to, known));
            let mut places = targets.flat_map(|target| self.state.places(known, target));
            places.find(|place| {
                let holder = self.state.holders.get(place);
                holder.is_some_and(|holder| holder.known == Some(known))
            })
        };
        possible.map(place).collect()
    }

    /// The ends as the client knows them of a packet that was sent to a target.
    pub fn known_of(&self, behind: Ends) -> Option<Ends> {
        self.state.holders.get(&behind)?.known
    }

    /// A packet leaves from `behind.local`; the ends as its client knows them, if it is of a
    /// flow to a target.
    pub fn leaves(&mut self, behind: Ends, segment: Segment) -> Option<Ends> {
        let now_ns = self.state.now_ns;
        // After its end a flow has no more to agree to: this is a new one.
        let is_of = |holder: &&mut Holder| holder.phase != Phase::Over || !segment.is_syn_ack();
        let Some(holder) = self.state.holders.get_mut(&behind).filter(is_of) else {
            let begins = segment == Segment::Datagram || segment.is_syn_ack();
            let is_of_target = [F, G].map(|halves| addr_of(halves, behind));
            if begins && is_of_target.contains(&behind.local) {
                self.state.begin(behind, None);
            }
            return None;
        };
        let mut new = *holder;
        match (&mut new.phase, segment) {
            (Phase::Datagrams, _) => new.seen_ns = now_ns,
            (Phase::Asked | Phase::Answered(_), Segment::Tcp { sequence, .. })
                if segment.is_syn_ack() && new.known.is_some() =>
            {
                new.phase = Phase::Answered(sequence.wrapping_add(1));
            }
            (Phase::Asked | Phase::Answered(_), _) if segment.is_reset() => {
                new.phase = Phase::Over;
            }
            (Phase::Open { .. }, _) if segment.is_syn_ack() => {}
            (Phase::Open { .. }, _) if segment.is_reset() => new.phase = Phase::Over,
            (Phase::Open { target_is_done, .. }, _) if segment.is_last() => {
                *target_is_done = true;
                new.seen_ns = now_ns;
            }
            (Phase::Open { .. }, _) => new.seen_ns = now_ns,
            _ => {}
        }
        self.state.put(behind, new);
        new.known
    }
}
