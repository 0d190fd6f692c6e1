//! The engines without packets: the functions that the programs for sockets run, over the
//! rules in force. What they would write is kept nowhere.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use portredir_common::datapath::connect::{NamedPeer, PeerCall, redirect_connect};
use portredir_common::datapath::forward;
use portredir_common::datapath::rule_match::{Probe, match_rule};
use portredir_common::datapath::sk_lookup::find_listener;
use portredir_common::flow::{Flow, FlowKey, FlowTable, Segment};
use portredir_common::kernel::forward::{
    ClientPacket, ForwardMaps, ForwardPlace, ForwardTables, Met, NewForward, Reply,
};
use portredir_common::kernel::{
    Client, FlowBuckets, FlowTables, Hit, Host, Listeners, NewFlow, Outcome, Route, Socket, Tables,
};
use portredir_common::map::bucket::Bucket;
use portredir_common::map::entry::{Connection, Entry};
use portredir_common::map::hash::Hash;
use portredir_common::map::rules::{Choice, PortEntry, PreviousTargets};
use portredir_common::map::sockets::{
    ConnectedPeers, ForwardPeer, ForwardPeers, ListenerKey, scope,
};
use portredir_common::map::targets::{Service, Slot, Target};
use portredir_common::net::{Addr, Flags, LOOPBACK_IFINDEX, Port, Protocol, Version};
use portredir_common::verdict::Reason;

use crate::loader::live::{Live, RuleCopy};
use crate::observe::listening::{Listener, Listeners as Servers};
use crate::rule::Ports;
use crate::sys::clock::monotonic_ns;

/// The rules and the sockets of this host, for one client.
pub struct Sockets<'a> {
    /// The rules in force.
    pub rules: &'a RuleCopy,
    /// The flow tables.
    pub live: &'a Live,
    /// The sockets that wait for clients.
    pub servers: &'a Servers,
    /// The connections of this host, where the client has a port of its own.
    pub connections: &'a [FlowKey],
    /// The interface that the client comes in by.
    pub ifindex: u32,
    /// The way in which connections are given to listeners.
    pub lookup: Lookup<'a>,
    /// The rule that was counted.
    hit: Cell<Option<u16>>,
    /// The number that stands for chance.
    chance: Cell<u32>,
    /// The slot that was looked at.
    slot: Cell<Option<u32>>,
}

/// The socket lookup.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookup<'a> {
    /// The name of the ingress interface.
    pub interface: &'a str,
    /// Whether connections that come in by any interface are meant.
    pub is_everywhere: bool,
    /// Whether servers on loopback addresses serve other hosts.
    pub is_loopback_allowed: bool,
}

/// The decision about a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The reason.
    pub reason: Reason,
    /// The rule that was counted.
    pub rule: Option<u16>,
    /// The address that the client reaches.
    pub addr: Addr,
    /// The port that the client reaches.
    pub port: Port,
}

impl<'a> Sockets<'a> {
    /// The sockets for clients of one interface.
    #[must_use]
    pub const fn new(
        (rules, live): (&'a RuleCopy, &'a Live),
        (servers, connections): (&'a Servers, &'a [FlowKey]),
        ifindex: u32,
        lookup: Lookup<'a>,
    ) -> Self {
        Self {
            rules,
            live,
            servers,
            connections,
            ifindex,
            lookup,
            hit: Cell::new(None),
            chance: Cell::new(0),
            slot: Cell::new(None),
        }
    }

    /// The slot of the service of a rule that the flow of a key has.
    #[must_use]
    pub fn slot_of(&self, key: &FlowKey, choice: Choice) -> Option<u32> {
        let route = Route {
            target: choice.target,
            rule: choice.rule,
            is_match: true,
            is_forward: true,
        };
        self.slot.set(None);
        let segment = Segment {
            flags: Flags::SYN,
            number: 0,
        };
        forward::find(self, &mut { *key }, route, segment).ok()?;
        self.slot.get()
    }

    /// The decisions about a process that connects, by all that chance can be below a number,
    /// each with how often it is made.
    #[must_use]
    pub fn chances(
        &self,
        protocol: Protocol,
        (to, own_port): ((IpAddr, Port), Port),
        below: u32,
    ) -> Vec<(Decision, u32)> {
        let mut decisions: Vec<(Decision, u32)> = Vec::new();
        for chance in 0..below {
            self.chance.set(chance);
            let decision = self.connect(protocol, to, own_port);
            match decisions.iter_mut().find(|(known, _)| *known == decision) {
                Some((_, times)) => *times += 1,
                None => decisions.push((decision, 1)),
            }
        }
        decisions
    }

    /// The decision about a process of this host that connects to a port.
    #[must_use]
    pub fn connect(&self, protocol: Protocol, to: (IpAddr, Port), own_port: Port) -> Decision {
        let mut peer = NamedPeer {
            protocol,
            addr: Addr::from(to.0),
            port: to.1,
        };
        let mut client = NewSocket {
            sockets: self,
            is_v4: to.0.is_ipv4(),
            own_port,
            peers: ConnectedPeers::default(),
            forward_peers: ForwardPeers::default(),
        };
        let reason = redirect_connect(self, &mut client, &mut peer, PeerCall::Connect);
        self.decision(reason, (peer.addr, peer.port))
    }

    /// The decision about a connection that looks for its listener.
    #[must_use]
    pub fn listener(&self, key: &FlowKey) -> Decision {
        let reason = find_listener(self, key);
        let choice = choose(self.rules, key, self.ifindex);
        let port = match (reason, choice) {
            (Reason::Redirected | Reason::NoListener, Some(choice)) => choice.target,
            _ => key.local_port,
        };
        self.decision(reason, (key.local, port))
    }

    const fn decision(&self, reason: Reason, (addr, port): (Addr, Port)) -> Decision {
        let rule = match reason {
            Reason::Redirected => self.hit.get(),
            _ => None,
        };
        Decision {
            reason,
            rule,
            addr,
            port,
        }
    }
}

/// The rule for a packet, by the function that the programs call.
#[must_use]
pub fn choose(rules: &RuleCopy, key: &FlowKey, ifindex: u32) -> Option<Choice> {
    let protocol = key.protocol().ok()?;
    let entry = rules.port(protocol, key.local_port);
    match entry {
        _ if !entry.is_match() => None,
        PortEntry {
            set: 0,
            target,
            rule,
            ..
        } => Some(Choice {
            target,
            rule,
            is_forward: entry.is_forward(),
        }),
        _ => match_rule(
            rules,
            entry,
            &Probe {
                key,
                dst_port: key.local_port,
                ifindex,
            },
        ),
    }
}

/// Whether a server gets what is sent to an address and a port.
pub fn is_for(listener: &Listener, addr: Addr) -> bool {
    let version = if addr.is_v4() {
        Version::V4
    } else {
        Version::V6
    };
    let is_any = listener.addr.is_unspecified();
    listener.accepts(version) && (is_any || Addr::from(listener.addr) == addr)
}

impl FlowBuckets for Sockets<'_> {
    type Word = AtomicU64;
    type Bucket<'b>
        = &'b Bucket<AtomicU64>
    where
        Self: 'b;

    fn hash(&self, key: &FlowKey) -> Hash {
        self.rules.seed.hash(key)
    }

    /// Packets of flows that have begun alone are looked up in buckets.
    fn bucket(&self, _: FlowTable, _: Hash) -> Option<Self::Bucket<'_>> {
        None
    }

    fn udp_slot(&self, _: Hash, _: usize) -> u32 {
        0
    }

    fn keep_ports(&self, _: u32, _: Port, _: Port) {}

    fn keep_addrs(&self, _: u32, _: &FlowKey) {}
}

impl FlowTables for Sockets<'_> {
    fn entry(&self, table: FlowTable, key: &FlowKey) -> Option<Entry> {
        self.live.flows().entry(table, key)
    }

    fn connection(&self, key: &FlowKey) -> Option<Connection> {
        let mut tables = [FlowTable::Tcp, FlowTable::Syn].into_iter();
        tables.find_map(|table| Some(Connection::new(table, self.entry(table, key)?)))
    }

    fn insert(&self, _: &Bucket<AtomicU64>, _: &NewFlow) -> Result<u32, Reason> {
        Ok(0)
    }

    fn set_flow(&self, _: FlowTable, _: &FlowKey, _: &Flow) -> Result<(), Reason> {
        Ok(())
    }

    fn remove_flow(&self, _: FlowTable, _: &FlowKey) {}

    fn own_port(&self, table: FlowTable, key: &FlowKey) -> Option<Port> {
        Some(self.live.own_port(table, key))
    }

    fn remap(&self, _: &FlowKey) -> Option<Port> {
        None
    }

    fn set_remap(&self, _: &FlowKey, _: Port) -> Result<(), Reason> {
        Ok(())
    }

    fn is_marked(&self, key: &FlowKey) -> bool {
        self.live.is_marked(key)
    }

    fn mark(&self, _: &FlowKey) {}
}

impl ForwardMaps for Sockets<'_> {
    /// Flows are not looked up by those who ask here.
    fn forward_bucket(&self, _: FlowTable, _: Hash) -> Option<Self::Bucket<'_>> {
        None
    }

    fn keep_forward_ends(&self, _: ForwardPlace, _: &FlowKey) {}

    fn service(&self, number: u16, version: u8) -> Service {
        self.rules.forward.service(number, version)
    }

    fn slot(&self, index: u32) -> Slot {
        self.slot.set(Some(index));
        self.rules.forward.slot(index)
    }

    fn target(&self, number: u16) -> Option<&Target> {
        self.rules.forward.target(number)
    }

    fn own_addr(&self, _: u16) -> Option<&Addr> {
        None
    }

    fn own_number(&self, _: &Addr) -> Option<u16> {
        None
    }

    fn is_target_addr(&self, _: &Addr) -> bool {
        false
    }
}

impl ForwardTables for Sockets<'_> {
    fn meet(&self, _: &FlowKey, _: &Addr, _: ClientPacket) -> Met {
        Met::Nothing
    }

    fn begin(&self, _: &FlowKey, _: NewForward) {}

    fn meet_reply(&self, _: &FlowKey, _: Segment) -> Option<Reply> {
        None
    }

    fn set_own_port(&self, _: &FlowKey, _: Port) -> Result<(), Reason> {
        Ok(())
    }
}

impl Host for Sockets<'_> {
    fn port(&self, protocol: Protocol, port: Port) -> PortEntry {
        self.rules.port(protocol, port)
    }

    fn socket(&self, key: &FlowKey) -> Socket {
        if self.connections.contains(key) {
            Socket::Connection
        } else {
            Socket::None
        }
    }

    fn is_served(&self, key: &FlowKey) -> bool {
        let Ok(protocol) = key.protocol() else {
            return false;
        };
        let mut within = self.servers.within(protocol, Ports::one(key.local_port));
        within.any(|(_, here)| {
            let unbound = here.iter().filter(|listener| listener.device.is_none());
            unbound
                .into_iter()
                .any(|listener| is_for(listener, key.local))
        })
    }

    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn random(&self) -> u32 {
        self.chance.get()
    }
}

impl Tables for Sockets<'_> {
    fn is_local(&self, addr: &Addr) -> bool {
        self.rules.is_local(addr, self.ifindex)
    }

    fn is_in_local_addr_cache(&self, _: &Addr) -> bool {
        false
    }

    fn came_in_on_loopback(&self) -> bool {
        self.ifindex == LOOPBACK_IFINDEX
    }

    fn match_rule(&self, entry: PortEntry, key: &FlowKey, dst_port: Port) -> Option<Choice> {
        let probe = Probe {
            key,
            dst_port,
            ifindex: self.ifindex,
        };
        match_rule(self.rules, entry, &probe)
    }

    fn previous_targets(
        &self,
        entry: PortEntry,
        protocol: Protocol,
        port: Port,
    ) -> PreviousTargets {
        let index = PortEntry::index(protocol, port);
        self.rules.previous_targets(entry, index)
    }

    fn note_rule(&self, _: u16) {}

    fn record(&self, hit: &Hit) {
        self.hit.set(Some(hit.rule));
    }

    fn record_reply(&self, _: &Hit) {}

    fn record_outcome(&self, _: u16, _: Outcome) {}
}

impl Listeners for Sockets<'_> {
    fn is_in_scope(&self) -> bool {
        let is_everywhere = self.lookup.is_everywhere && self.ifindex != LOOPBACK_IFINDEX;
        is_everywhere || self.rules.scope(self.ifindex) == Some(scope::LOOKUP)
    }

    fn is_loopback_allowed(&self) -> bool {
        self.lookup.is_loopback_allowed
    }

    /// The map of listeners does not tell which device a socket is bound to.
    fn assign(&self, key: &ListenerKey) -> bool {
        let is_there = |listener: &Listener| {
            let device = listener.device.as_deref();
            Addr::from(listener.addr) == key.addr
                && device.is_none_or(|device| device == self.lookup.interface)
        };
        let mut within = self.servers.within(Protocol::Tcp, Ports::one(key.port));
        self.rules.has_listener(key) && within.any(|(_, here)| here.iter().any(is_there))
    }
}

/// A socket that has just been opened.
struct NewSocket<'a> {
    sockets: &'a Sockets<'a>,
    is_v4: bool,
    own_port: Port,
    peers: ConnectedPeers,
    forward_peers: ForwardPeers,
}

impl Client for NewSocket<'_> {
    fn is_in_netns(&self) -> bool {
        true
    }

    fn bound_to(&self) -> Addr {
        if self.is_v4 {
            Addr::V4_ANY
        } else {
            Addr::V6_ANY
        }
    }

    fn is_v6_only(&self) -> bool {
        false
    }

    fn own_port(&self) -> Port {
        self.own_port
    }

    fn is_syn_assigned(&self) -> bool {
        self.sockets.rules.scope(LOOPBACK_IFINDEX) == Some(scope::ASSIGN)
    }

    fn is_connected_udp(&self, _: &FlowKey) -> bool {
        false
    }

    fn peer_port(&self) -> Option<Port> {
        None
    }

    fn peers(&mut self) -> Option<&mut ConnectedPeers> {
        None
    }

    fn peers_or_insert(&mut self) -> Option<&mut ConnectedPeers> {
        Some(&mut self.peers)
    }

    fn forward_peers(&mut self) -> Option<&mut ForwardPeers> {
        None
    }

    fn forward_peers_or_insert(&mut self) -> Option<&mut ForwardPeers> {
        Some(&mut self.forward_peers)
    }

    fn keep_udp_peer(&mut self, _: Option<&ForwardPeer>) {}
}
