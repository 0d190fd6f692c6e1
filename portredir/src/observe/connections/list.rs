//! Makes the list: one walk over the TCP sockets, one over the UDP sockets, and one over the
//! table of UDP flows.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use jiff::Timestamp;
use portredir_common::flow::FlowKey;
use portredir_common::net::{Addr, Port, Protocol};
use thiserror::Error;

use super::{Connection, Filter, List, Redirect, SCHEMA};
use crate::config::engine::Engine;
use crate::loader::DatapathError;
use crate::loader::flow_view::{self, FlowView, Place, Redirected, UdpFlow};
use crate::observe::listening::name_of;
use crate::rule::Rule;
use crate::sys::bpffs::PinDir;
use crate::sys::process::{self, Process};
use crate::sys::sock_detail::{self, Question, Socket, TcpState, Traffic};
use crate::sys::sock_diag::SockDiagError;

/// The reason why there is no list.
#[derive(Debug, Error)]
pub enum ListError {
    /// The maps of the redirect cannot be read.
    #[error(transparent)]
    Maps(#[from] DatapathError),
    /// Sockets cannot be listed.
    #[error(transparent)]
    Sockets(#[from] SockDiagError),
}

/// Lists the flows that a filter wants. The maps are those of `pins`, or of the process that
/// the redirect names.
///
/// # Errors
///
/// [`ListError`].
pub fn list(
    redirect: &Redirect,
    pins: Option<&PinDir>,
    filter: &Filter,
) -> Result<List, ListError> {
    let place = pins.map_or(Place::Ids(&redirect.maps), Place::Pins);
    let view = FlowView::open(place, redirect.sizes)?;
    let time = Timestamp::now();
    let since = redirect.since;
    let rewriting = redirect.engines.iter();
    let rewriting = rewriting.filter(|engine| Engine::sees_packets(engine));
    let mut lister = Lister {
        redirect,
        filter,
        rules: redirect
            .rules
            .iter()
            .map(|(id, rule)| (*id, rule))
            .collect(),
        // The beginning is rounded to a second, and may be a little later than now.
        age: since.map(|since| Duration::try_from(time.duration_since(since)).unwrap_or_default()),
        rewriting: rewriting.cloned().collect(),
        found: Vec::new(),
    };
    let servers = lister.tcp(&view)?;
    let mut unknown_udp_flows = lister.forwarded(&view, &servers)?;
    if filter.wants_udp() {
        unknown_udp_flows += lister.udp(&view)?;
    } else {
        unknown_udp_flows = 0;
    }
    Ok(List {
        schema: SCHEMA,
        running: true,
        time,
        connections: lister.finish(),
        unknown_udp_flows,
    })
}

pub(super) struct Lister<'a> {
    redirect: &'a Redirect,
    pub(super) filter: &'a Filter,
    pub(super) rules: HashMap<u16, &'a Rule>,
    /// The time since the redirect began.
    age: Option<Duration>,
    /// The engines that rewrite packets.
    pub(super) rewriting: Vec<String>,
    /// The flows that were found, each with the inode of the server's socket.
    found: Vec<(Connection, u32)>,
}

/// The socket of a server, of a connection that no packet program redirects.
pub(super) struct Server {
    pub(super) inode: u32,
    pub(super) state: TcpState,
    pub(super) traffic: Option<Traffic>,
}

/// The ends of connections, with the sockets of their servers.
pub(super) type Servers = HashMap<(Addr, Port, Addr, Port), Server>;

/// The way of a flow.
#[derive(Clone, Copy)]
pub(super) struct Way {
    /// The flow, as the server knows it.
    pub(super) key: FlowKey,
    pub(super) protocol: Protocol,
    pub(super) dst_port: Port,
    pub(super) target: Port,
}

impl Lister<'_> {
    /// Adds connections with a socket; returns the servers of all others.
    fn tcp(&mut self, view: &FlowView) -> Result<Servers, ListError> {
        let stored = view.stored();
        let storages = view.storages();
        let states = self.filter.states();
        let question = Question {
            protocol: Protocol::Tcp,
            states: &states,
            storages: &storages,
        };
        let mut servers = Servers::new();
        let mut clients = Vec::new();
        let mut clients_of_targets = Vec::new();
        sock_detail::each(question, |socket| {
            let key = &socket.key;
            let is_peer = |port: Port, addr: Addr| port == key.client_port && addr.is(key.client);
            let mut peers = stored.peers(&socket);
            if let Some(peer) = stored.target_of_client(&socket) {
                clients_of_targets.push((socket, peer));
            } else if let Some(peer) = peers.find(|peer| is_peer(peer.port, peer.addr)) {
                clients.push((socket, peer.dst_port));
            } else if let Some(target) = stored.target(&socket) {
                self.assigned(&socket, target);
            } else if let Some(flow) = view.redirected(&socket, &stored) {
                self.rewritten(&socket, flow);
            } else {
                let server = Server {
                    inode: socket.inode,
                    state: socket.state,
                    traffic: socket.traffic,
                };
                servers.insert(ends(key), server);
            }
        })?;
        for (socket, dst_port) in clients {
            self.dialled(&socket, dst_port, &servers);
        }
        for (socket, peer) in clients_of_targets {
            let rule = view.rule_of_target(peer.target);
            self.dialled_target((&socket, &peer), rule, &servers);
        }
        Ok(servers)
    }

    /// Adds a connection whose packets are rewritten.
    fn rewritten(&mut self, socket: &Socket, flow: Redirected) {
        let way = Way {
            key: socket.key,
            protocol: Protocol::Tcp,
            dst_port: flow.dst_port,
            target: socket.key.local_port,
        };
        let rule = self.rule(flow.rule, way);
        let accepted = flow.accepted;
        let age = accepted.and_then(|accepted| flow_view::age(accepted, self.age));
        let connection = Connection {
            client_port: flow.client_port.map(Port::get),
            rule,
            engines: self.rewriting.clone(),
            age_seconds: age.map(|age| age.as_secs()),
            ..of_socket(way, socket.state, socket.traffic)
        };
        self.push(connection, socket.inode);
    }

    /// Adds a connection that was given to the listener on the target.
    fn assigned(&mut self, socket: &Socket, target: Port) {
        let way = Way {
            key: socket.key,
            protocol: Protocol::Tcp,
            dst_port: socket.key.local_port,
            target,
        };
        let connection = Connection {
            rule: self.rule_for(way),
            engines: vec![self.assigning(way.key).name().to_owned()],
            ..of_socket(way, socket.state, socket.traffic)
        };
        self.push(connection, socket.inode);
    }

    /// The engine that gave a connection to the listener on the target: for a client of this
    /// host that has bound its own port, the one of `lo`.
    fn assigning(&self, key: FlowKey) -> Engine {
        let is_here = ip(key.client).is_loopback() || key.client == key.local;
        let local = Engine::Cgroup.name();
        if is_here && self.redirect.engines.iter().any(|name| name == local) {
            Engine::Cgroup
        } else {
            Engine::Lookup
        }
    }

    /// Adds the connection of a client on this host. Its server is the other socket, if that
    /// is in this network namespace too.
    fn dialled(&mut self, socket: &Socket, dst_port: Port, servers: &Servers) {
        let client = &socket.key;
        let key = FlowKey {
            client: client.local,
            local: client.client,
            client_port: client.local_port,
            local_port: client.client_port,
            ..*client
        };
        let way = Way {
            key,
            protocol: Protocol::Tcp,
            dst_port,
            target: key.local_port,
        };
        // The other half of a connection in another namespace has counted the same bytes.
        let (state, traffic, inode) = match servers.get(&ends(&key)) {
            Some(server) => (server.state, server.traffic, server.inode),
            None => (socket.state, socket.traffic.map(reversed), 0),
        };
        let connection = Connection {
            rule: self.rule_for(way),
            engines: vec![Engine::Cgroup.name().to_owned()],
            ..of_socket(way, state, traffic)
        };
        self.push(connection, inode);
    }

    /// Adds UDP flows; returns the number of those that cannot be listed.
    fn udp(&mut self, view: &FlowView) -> Result<usize, ListError> {
        let (flows, unknown) = view.udp();
        let mut servers = HashMap::<Port, Vec<Socket>>::new();
        // The kernel tells no values at UDP sockets, so the peers of local clients are
        // unknown.
        let question = Question {
            protocol: Protocol::Udp,
            states: &[TcpState::Established, TcpState::Close],
            storages: &[],
        };
        sock_detail::each(question, |socket| {
            let here = servers.entry(socket.key.local_port).or_default();
            here.push(socket);
        })?;
        for flow in flows {
            self.rewritten_udp(&flow, &servers);
        }
        Ok(unknown)
    }

    fn rewritten_udp(&mut self, flow: &UdpFlow, servers: &HashMap<Port, Vec<Socket>>) {
        let way = Way {
            key: flow.key,
            protocol: Protocol::Udp,
            dst_port: flow.dst_port,
            target: flow.key.local_port,
        };
        let connection = Connection {
            client_port: flow.client_port.map(Port::get),
            rule: self.rule(flow.rule, way),
            engines: self.rewriting.clone(),
            age_seconds: Some(flow.age.as_secs()),
            idle_seconds: Some(flow.idle.as_secs()),
            ..new(way)
        };
        self.push(connection, inode_of(&flow.key, servers));
    }

    /// The text of a rule by its number. A number that was used again is no rule of the flow.
    fn rule(&self, id: u16, way: Way) -> Option<String> {
        let rule = self.rules.get(&id)?;
        leads(rule, way).then(|| rule.to_string())
    }

    /// The text of the one running rule that leads the way of a flow, whose number is not
    /// kept; none where several could have.
    fn rule_for(&self, way: Way) -> Option<String> {
        let rules = self.redirect.rules.iter().map(|(_, rule)| rule);
        let mut rules = rules.filter(|rule| leads(rule, way) && is_for(rule, way));
        let rule = rules.next()?;
        rules.next().is_none().then(|| rule.to_string())
    }

    pub(super) fn push(&mut self, connection: Connection, inode: u32) {
        if self.filter.matches(&connection) {
            self.found.push((connection, inode));
        }
    }

    /// The list in order, with processes.
    fn finish(self) -> Vec<Connection> {
        let inodes: HashSet<_> = self.found.iter().map(|(_, inode)| *inode).collect();
        let holders = process::holders(inodes);
        let found = self.found.into_iter();
        let mut list: Vec<_> = found
            .map(|(connection, inode)| Connection {
                processes: process_of(inode, &holders),
                ..connection
            })
            .collect();
        list.sort_by(|a, b| order(a).cmp(&order(b)));
        list
    }
}

fn order(flow: &Connection) -> (&str, u16, IpAddr, IpAddr, Option<u16>) {
    (
        flow.protocol,
        flow.dst_port,
        flow.dst_addr,
        flow.client_addr,
        flow.client_port,
    )
}

fn process_of(inode: u32, holders: &HashMap<u32, Process>) -> Vec<Process> {
    holders.get(&inode).cloned().into_iter().collect()
}

/// Whether a rule leads from one port to the other.
fn leads(rule: &Rule, way: Way) -> bool {
    rule.protocols.each().contains(&way.protocol)
        && rule.redirects(way.dst_port)
        && rule.target_of(way.dst_port) == Some(way.target)
}

/// Whether a rule is for the addresses of a flow.
pub(super) fn is_for(rule: &Rule, way: Way) -> bool {
    let (client, local) = (ip(way.key.client), ip(way.key.local));
    rule.addr.is_none_or(|addr| addr == local)
        && rule.from.is_none_or(|from| from.contains(&client))
}

/// A flow of which its way is known alone.
pub(super) fn new(way: Way) -> Connection {
    Connection {
        protocol: name_of(way.protocol),
        state: None,
        client_addr: ip(way.key.client),
        client_port: Some(way.key.client_port.get()),
        dst_addr: ip(way.key.local),
        dst_port: way.dst_port.get(),
        target_addr: None,
        target_port: way.target.get(),
        rule: None,
        engines: Vec::new(),
        age_seconds: None,
        idle_seconds: None,
        bytes_in: None,
        bytes_out: None,
        processes: Vec::new(),
    }
}

pub(super) fn of_socket(way: Way, state: TcpState, traffic: Option<Traffic>) -> Connection {
    Connection {
        state: Some(state.name()),
        idle_seconds: traffic.map(|traffic| traffic.idle.as_secs()),
        bytes_in: traffic.map(|traffic| traffic.received),
        bytes_out: traffic.map(|traffic| traffic.acked),
        ..new(way)
    }
}

/// The traffic of the server, by the counts of the client: the first byte that a client has
/// sent is its SYN.
pub(super) fn reversed(client: Traffic) -> Traffic {
    Traffic {
        received: client.acked.saturating_sub(1),
        acked: client.received,
        idle: client.idle,
    }
}

/// The inode of the one UDP socket that gets the packets of a flow; 0 where several share a
/// place. A connected socket comes before one on the address, and that before one on all.
fn inode_of(key: &FlowKey, servers: &HashMap<Port, Vec<Socket>>) -> u32 {
    let here = servers.get(&key.local_port).map_or(&[][..], Vec::as_slice);
    let is_any = |addr: Addr| addr.is(Addr::V4_ANY) || addr.is(Addr::V6_ANY);
    let score = |socket: &Socket| {
        let own = &socket.key;
        let is_open = own.client_port == Port::CLOSED;
        let is_peer = own.client.is(key.client) && own.client_port == key.client_port;
        // A socket on `::` gets IPv4 too, unless it says otherwise, which is not asked here.
        let is_here = own.local.is(key.local);
        let is_everywhere = is_any(own.local);
        match (is_open, is_peer, is_here, is_everywhere) {
            (false, true, true, _) => 3,
            (true, _, true, _) => 2,
            (true, _, _, true) => 1,
            _ => 0,
        }
    };
    let best = here.iter().map(score).max().unwrap_or_default();
    let mut first = here
        .iter()
        .filter(|socket| best > 0 && score(socket) == best);
    match (first.next(), first.next()) {
        (Some(socket), None) => socket.inode,
        _ => 0,
    }
}

pub(super) fn ends(key: &FlowKey) -> (Addr, Port, Addr, Port) {
    (key.client, key.client_port, key.local, key.local_port)
}

pub(super) fn ip(addr: Addr) -> IpAddr {
    Ipv6Addr::from(addr.octets()).to_canonical()
}
