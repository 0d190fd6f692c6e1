//! One table of packets, for the datapath on the host (`tests/host.rs`) and for
//! the programs in the kernel (`tests/prog_run`).
//!
//! A [`Case`] says what is there before, which packet comes, and what must come
//! of it: the reason, every byte, and the state that is left.

pub mod address;
pub mod basic;
pub mod builder;
pub mod bytes;
pub mod checksum;
pub mod drain;
pub mod encode;
pub mod error;
pub mod flows;
pub mod forward;
pub mod fragment;
pub mod header;
pub mod icmp;
pub mod icmp_foreign;
pub mod mock;
pub mod own_flow;
pub mod rules;
pub mod scenario;
pub mod tables;
pub mod tcp;
pub mod tcp_collision;
pub mod tcp_remapped;
pub mod truncated;
pub mod udp;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use portredir::rule::Rule;
use portredir::ruleset::compile::{Table, TableOptions};
use portredir::ruleset::history::History;
use portredir_common::flow::{Epoch, Flow, FlowKey, FlowTable};
use portredir_common::kernel::Socket;
use portredir_common::map::local;
use portredir_common::net::{Addr, Port, Protocol};
use portredir_common::verdict::Reason;
use portredir_common::wire::frame::Link;

use builder::{CLIENT_PORT, CLIENT4, Packet, SERVER4, SERVER6};
use mock::{NOW_NS, Tables};

/// The rules of a case that names none.
pub const RULES: &[&str] = &["80:8080/both"];
/// Two ports that lead to one.
pub const TWO_TO_ONE: &[&str] = &["80:8080/both", "81:8080/both"];
/// A target that is dialled itself.
pub const CHAINED: &[&str] = &["80:8080/both", "8080:9090/both"];

/// Which way the packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Ingress,
    Egress,
}

/// The interface it crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iface {
    /// `lo`, where test runs take place unless told otherwise.
    Lo,
    /// Any other.
    Other,
}

/// A packet and a state that are fixed but for the client port that the
/// datapath picks.
type ForClientPort = Box<dyn Fn(u16) -> (Vec<u8>, Tables) + Send + Sync>;

/// The bytes that must come of the packet.
pub enum Out {
    /// Not a byte changes.
    Unchanged,
    /// The packet becomes these bytes.
    Is(Vec<u8>),
    /// A collision: the client gets any free port.
    Remapped(ForClientPort),
}

impl fmt::Debug for Out {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchanged => f.write_str("Unchanged"),
            Self::Is(bytes) => f.debug_tuple("Is").field(&mock::Hex(bytes)).finish(),
            Self::Remapped(_) => f.write_str("Remapped"),
        }
    }
}

/// The rules, and what there is beside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Setup {
    pub rules: &'static [&'static str],
    /// Those that were there before.
    pub earlier: &'static [&'static str],
    pub is_hiding: bool,
    pub if_listening: bool,
}

impl Setup {
    pub fn of(rules: &'static [&'static str]) -> Self {
        Self {
            rules,
            ..Self::default()
        }
    }

    /// The rules are gone.
    pub fn draining(self) -> Self {
        Self {
            rules: &[],
            earlier: self.rules,
            ..self
        }
    }

    /// The rules that hold.
    pub fn parsed(self) -> Vec<Rule> {
        parse(self.rules)
    }

    /// The table that the programs get; compiled once.
    pub fn table(self) -> Arc<Table> {
        static TABLES: Mutex<BTreeMap<Setup, Arc<Table>>> = Mutex::new(BTreeMap::new());
        let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
        tables.entry(self).or_insert_with(|| self.compile()).clone()
    }

    fn compile(self) -> Arc<Table> {
        let rules = self.parsed();
        let history = History::default().after(&parse(self.earlier), &rules, |_, _, _| false);
        let rules: Vec<(u16, Rule)> = (0..).zip(rules).collect();
        let Self {
            is_hiding,
            if_listening,
            ..
        } = self;
        let options = TableOptions {
            hide_target: is_hiding,
            if_listening,
            taken: None,
        };
        let service_of = |place: usize| {
            let (id, rule) = &rules[place];
            rule.forward().map(|_| id + 1)
        };
        let table = Table::compile(&rules, &history, options, service_of);
        Arc::new(table.expect("a table"))
    }
}

fn parse(rules: &[&str]) -> Vec<Rule> {
    rules
        .iter()
        .map(|rule| rule.parse().expect("a rule"))
        .collect()
}

/// One line of the table.
#[derive(Debug)]
pub struct Case {
    /// Cases of a series have one name up to a colon.
    pub name: String,
    pub hook: Hook,
    pub link: Link,
    pub iface: Iface,
    pub setup: Setup,
    /// Whether nobody listens on targets.
    pub is_unserved: bool,
    pub before: Tables,
    /// TCP connections that the host has.
    pub sockets: Vec<(FlowKey, Socket)>,
    pub packet: Vec<u8>,
    pub reason: Reason,
    /// Another reason that is as good, where two checks could come first.
    pub or_reason: Option<Reason>,
    pub out: Out,
    /// Whether it counts as the first of a flow, where that matters.
    pub is_new: Option<bool>,
    /// All flow state afterwards, unless it does not matter.
    pub after: Option<Tables>,
}

impl Case {
    fn new(hook: Hook, name: impl Into<String>, link: Link, packet: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            hook,
            link,
            iface: Iface::Lo,
            setup: Setup::of(RULES),
            is_unserved: false,
            before: Tables::default(),
            sockets: Vec::new(),
            packet,
            reason: Reason::NoRule,
            or_reason: None,
            out: Out::Unchanged,
            is_new: None,
            after: None,
        }
    }

    /// A packet that comes in.
    pub fn ingress(name: impl Into<String>, packet: &Packet) -> Self {
        Self::new(Hook::Ingress, name, packet.link, packet.bytes())
    }

    /// A packet that goes out.
    pub fn egress(name: impl Into<String>, packet: &Packet) -> Self {
        Self::new(Hook::Egress, name, packet.link, packet.bytes())
    }

    /// An Ethernet frame that no [`Packet`] describes.
    pub fn raw(hook: Hook, name: impl Into<String>, frame: &[u8]) -> Self {
        Self::new(hook, name, Link::Ethernet, frame.to_vec())
    }

    pub fn rules(mut self, rules: &'static [&'static str]) -> Self {
        self.setup.rules = rules;
        self
    }

    /// The rules that were there before, whose flows go on.
    pub fn earlier(mut self, rules: &'static [&'static str]) -> Self {
        self.setup.earlier = rules;
        self
    }

    /// Other hosts reach targets by their rules alone.
    pub fn hiding(mut self) -> Self {
        self.setup.is_hiding = true;
        self
    }

    /// Rules rest while nobody listens on their target.
    pub fn if_listening(mut self) -> Self {
        self.setup.if_listening = true;
        self
    }

    /// Nobody listens on targets.
    pub fn unserved(mut self) -> Self {
        self.is_unserved = true;
        self
    }

    /// The rules are gone.
    pub fn draining(mut self) -> Self {
        self.setup = self.setup.draining();
        self
    }

    pub fn iface(mut self, iface: Iface) -> Self {
        self.iface = iface;
        self
    }

    pub fn flow(mut self, table: FlowTable, key: FlowKey, flow: Flow) -> Self {
        self.before = self.before.flow(table, key, flow);
        self
    }

    /// A flow that this host began at a port of a rule.
    pub fn own_flow(mut self, table: FlowTable, key: FlowKey, flow: Flow) -> Self {
        self.before = self.before.own_flow(table, key, flow);
        self
    }

    pub fn remap(mut self, original: FlowKey, client_port: u16) -> Self {
        self.before = self.before.remap(original, client_port);
        self
    }

    pub fn socket(mut self, key: FlowKey, socket: Socket) -> Self {
        self.sockets.push((key, socket));
        self
    }

    /// Edits the frame, and the one that is expected, where etherparse would
    /// not write what the case is about.
    pub fn edit(mut self, edit: impl Fn(&mut Vec<u8>)) -> Self {
        edit(&mut self.packet);
        if let Out::Is(packet) = &mut self.out {
            edit(packet);
        }
        self
    }

    /// The packet is redirected and becomes `packet`.
    pub fn redirected(self, packet: &Packet) -> Self {
        self.becomes(Reason::Redirected, packet)
    }

    /// The packet is a reply and becomes `packet`.
    pub fn restored(self, packet: &Packet) -> Self {
        self.becomes(Reason::Restored, packet)
    }

    /// The packet is counted with `reason` and becomes `packet`.
    pub fn becomes(self, reason: Reason, packet: &Packet) -> Self {
        self.becomes_bytes(reason, packet.bytes())
    }

    /// The packet is counted with `reason` and becomes these bytes.
    pub fn becomes_bytes(mut self, reason: Reason, bytes: Vec<u8>) -> Self {
        assert_ne!(self.packet, bytes, "{}: nothing would change", self.name);
        (self.reason, self.out) = (reason, Out::Is(bytes));
        self
    }

    /// The client gets another port: `expected` says what the packet and the
    /// state become for a given one.
    pub fn remapped(
        mut self,
        reason: Reason,
        expected: impl Fn(u16) -> (Packet, Tables) + Send + Sync + 'static,
    ) -> Self {
        self.reason = reason;
        self.out = Out::Remapped(Box::new(move |client_port| {
            let (packet, tables) = expected(client_port);
            (packet.bytes(), tables)
        }));
        self
    }

    /// Not a byte of the packet changes.
    pub fn unchanged(mut self, reason: Reason) -> Self {
        (self.reason, self.out) = (reason, Out::Unchanged);
        self
    }

    /// The reason may be this one too.
    pub fn or(mut self, reason: Reason) -> Self {
        self.or_reason = Some(reason);
        self
    }

    /// The packet counts as the first of a flow.
    pub fn begins_flow(mut self) -> Self {
        self.is_new = Some(true);
        self
    }

    /// The packet does not count as the first of a flow.
    pub fn continues_flow(mut self) -> Self {
        self.is_new = Some(false);
        self
    }

    /// Whether `reason` is as it should be.
    pub fn allows(&self, reason: Reason) -> bool {
        reason == self.reason || Some(reason) == self.or_reason
    }

    /// The state it leaves.
    pub fn leaves(mut self, after: Tables) -> Self {
        self.after = Some(after);
        self
    }

    /// The state stays as it was.
    pub fn leaves_state(self) -> Self {
        let before = self.before.clone();
        self.leaves(before)
    }

    /// The packet and the state that must be there afterwards, when `tables` is
    /// the state that was found.
    pub fn expected(&self, tables: &Tables) -> (Vec<u8>, Option<Tables>) {
        match &self.out {
            Out::Unchanged => (self.packet.clone(), self.after.clone()),
            Out::Is(packet) => (packet.clone(), self.after.clone()),
            Out::Remapped(expected) => {
                let client_port = tables
                    .new_client_port(&self.before)
                    .expect("REMAP has a new entry");
                let (packet, tables) = expected(client_port.get());
                (packet, Some(tables))
            }
        }
    }

    /// The host before the packet.
    pub fn mock(&self) -> mock::Mock {
        let mock = mock::Mock::of(self.setup, &local_addrs());
        mock.tables.replace(self.before.clone());
        mock::Mock {
            iface: self.iface,
            is_unserved: self.is_unserved,
            sockets: self.sockets.iter().copied().collect(),
            ..mock
        }
    }
}

/// Every case. Names are unique.
pub fn table() -> Vec<Case> {
    let cases: Vec<Case> = [
        basic::cases(),
        address::cases(),
        header::cases(),
        fragment::cases(),
        truncated::cases(),
        checksum::cases(),
        icmp::cases(),
        icmp_foreign::cases(),
        tcp::cases(),
        tcp_collision::cases(),
        tcp_remapped::cases(),
        udp::cases(),
        own_flow::cases(),
        drain::cases(),
        rules::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut names: Vec<_> = cases.iter().map(|case| &case.name).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1], "two cases have one name");
    }
    cases
}

/// The addresses of the host in every case.
pub fn local_addrs() -> HashMap<[u8; 16], u8> {
    let second = IpAddr::from([192, 0, 2, 2]);
    let loopback = IpAddr::from(Ipv6Addr::LOCALHOST);
    let anywhere = [SERVER4, SERVER6, second].map(|ip| (addr(ip).octets(), local::ANYWHERE));
    anywhere
        .into_iter()
        .chain([(addr(loopback).octets(), local::LOOPBACK)])
        .collect()
}

/// The address as the maps have it.
pub fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(ip) => Addr::v4(ip.octets()),
        IpAddr::V6(ip) => Addr::new(ip.octets()),
    }
}

/// The flow between a client and a port of this host.
pub fn key(
    protocol: Protocol,
    (client, client_port): (IpAddr, u16),
    (local, local_port): (IpAddr, u16),
) -> FlowKey {
    FlowKey {
        client: addr(client),
        local: addr(local),
        client_port: Port::new(client_port),
        local_port: Port::new(local_port),
        protocol: protocol as u8,
        version: if local.is_ipv4() { 4 } else { 6 },
        pad: [0; 2],
    }
}

/// The flow of the usual client from `client_port` to `local_port`.
pub fn key4(protocol: Protocol, client_port: u16, local_port: u16) -> FlowKey {
    key(protocol, (CLIENT4, client_port), (SERVER4, local_port))
}

/// The flow as the usual client knows it, last seen `age_s` ago.
pub fn seen(dst_port: u16, age_s: u64) -> Flow {
    seen_from(CLIENT_PORT, dst_port, age_s)
}

/// The flow as a client with another port knows it, last seen `age_s` ago.
pub fn seen_from(client_port: u16, dst_port: u16, age_s: u64) -> Flow {
    Flow {
        dst_port: Port::new(dst_port),
        client_port: Port::new(client_port),
        rule: 0,
        seen: Epoch::at(NOW_NS - age_s * 1_000_000_000),
    }
}
