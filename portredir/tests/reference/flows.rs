//! The clients that talk to a target, each with its port, as a person would
//! write it down.

use std::collections::HashMap;
use std::net::IpAddr;

use portredir_common::net::Protocol;

/// A UDP flow that is silent for longer has no claim to its port.
const UDP_IDLE_NS: u64 = 120_000_000_000;

/// The two ends of what is said: of a flow as the server sees it, or as its
/// client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    pub protocol: Protocol,
    pub client: IpAddr,
    pub client_port: u16,
    pub local: IpAddr,
    pub local_port: u16,
}

/// A TCP socket of this host that is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    Open,
    TimeWait,
}

/// The ports that a client knows a flow by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub client: u16,
    pub dialled: u16,
}

/// The flow that holds a port of a client at a target.
#[derive(Clone, Copy, Debug)]
struct Holder {
    ports: Ports,
    /// When it was last heard of.
    seen_ns: u64,
    /// Whether it began here.
    is_own: bool,
}

/// A packet that a target is to get.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The ports as the client wrote them.
    pub ports: Ports,
    /// The ends as the server would see them if the client's port is free.
    pub ends: Ends,
    /// Whether the packet asks for a new TCP connection.
    pub is_syn: bool,
    /// Whether it agrees to one.
    pub is_syn_ack: bool,
}

/// The client port of a packet behind the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// This one.
    As(u16),
    /// Any that nobody has: another flow has the client's own.
    AsAnother,
    /// A server on the dialled port has this connection, or it began there.
    NotOurs,
}

#[derive(Debug, Default)]
pub struct Flows {
    pub now_ns: u64,
    pub sockets: HashMap<Ends, Socket>,
    holders: HashMap<Ends, Holder>,
    /// The ports that flows were given, by what their clients wrote.
    given: HashMap<Ends, u16>,
}

impl Ends {
    fn client_port(self, client_port: u16) -> Self {
        Self {
            client_port,
            ..self
        }
    }

    fn local_port(self, local_port: u16) -> Self {
        Self { local_port, ..self }
    }
}

impl Flows {
    /// The ports that the client of a packet from a target knows.
    pub fn of_reply(&mut self, ends: Ends) -> Option<Ports> {
        let holder = self.holders.get_mut(&ends)?;
        holder.seen_ns = self.now_ns;
        Some(holder.ports)
    }

    /// The client's port behind the target, for an error that quotes what the
    /// client was sent.
    pub fn behind(&self, ports: Ports, ends: Ends) -> Option<u16> {
        if self.is_holder(ports, ends) {
            return Some(ports.client);
        }
        self.given_port(ports, ends)
    }

    /// The client's port behind the target, if its flow still holds that port.
    pub fn still_behind(&self, ports: Ports, ends: Ends) -> Option<u16> {
        let port = self.behind(ports, ends)?;
        self.is_holder(ports, ends.client_port(port))
            .then_some(port)
    }

    fn is_holder(&self, ports: Ports, ends: Ends) -> bool {
        self.holders
            .get(&ends)
            .is_some_and(|holder| holder.ports == ports)
    }

    fn given_port(&self, ports: Ports, ends: Ends) -> Option<u16> {
        self.given.get(&ends.local_port(ports.dialled)).copied()
    }

    fn is_open(&self, ends: Ends) -> bool {
        self.sockets.get(&ends) == Some(&Socket::Open)
    }

    fn is_idle(&self, holder: Holder) -> bool {
        self.now_ns - holder.seen_ns >= UDP_IDLE_NS
    }

    fn hold(&mut self, ports: Ports, ends: Ends) {
        let before = self.holders.get(&ends);
        let holder = Holder {
            ports,
            seen_ns: self.now_ns,
            is_own: before.is_some_and(|before| before.ports == ports && before.is_own),
        };
        self.holders.insert(ends, holder);
    }

    /// A packet leaves from a port that a rule names, or that is hidden, and is no
    /// reply: its flow began here, unless it is the reply of a redirected flow that was
    /// rewritten on another device. `target` is where a rule sends what comes back.
    pub fn begin(&mut self, ends: Ends, target: Option<u16>) {
        let ports = Ports {
            client: ends.client_port,
            dialled: ends.local_port,
        };
        let before = self.holders.get(&ends).copied();
        if before.is_some_and(|holder| holder.ports != ports) {
            return;
        }
        if !before.is_some_and(|holder| holder.is_own)
            && let Some(target) = target
        {
            let redirected = ends.local_port(target);
            let is_its = |holder: &&Holder| holder.ports.dialled == ends.local_port;
            if let Some(holder) = self.holders.get(&redirected).filter(is_its) {
                let epoch = |ns: u64| ns >> 30;
                if ends.protocol == Protocol::Tcp || epoch(self.now_ns) - epoch(holder.seen_ns) <= 1
                {
                    return;
                }
                // An answer was taken for a client's packet.
                self.holders.remove(&redirected);
            }
        }
        let holder = Holder {
            ports,
            seen_ns: self.now_ns,
            is_own: true,
        };
        self.holders.insert(ends, holder);
    }

    /// Whether a packet belongs to a flow that began here, at its destination port.
    pub fn answers(&mut self, ends: Ends) -> bool {
        let is_answer = self.is_answer(ends);
        if is_answer && let Some(holder) = self.holders.get_mut(&ends) {
            holder.seen_ns = self.now_ns;
        }
        is_answer
    }

    /// [`Self::answers`] for a packet that may go elsewhere yet.
    pub fn is_answer(&self, ends: Ends) -> bool {
        let is_udp = ends.protocol == Protocol::Udp;
        self.holders
            .get(&ends)
            .is_some_and(|&holder| holder.is_own && !(is_udp && self.is_idle(holder)))
    }

    /// Whether the flow of a packet to an earlier target is alive.
    ///
    /// For TCP that is a connection, or what a client says after one; for UDP a
    /// flow that is not idle, whose server is there.
    pub fn has_begun(&mut self, arrival: Arrival, is_served: impl Fn(Ends) -> bool) -> bool {
        let Arrival {
            ports,
            ends,
            is_syn,
            ..
        } = arrival;
        let given = self.given_port(ports, ends);
        [Some(ports.client), given]
            .into_iter()
            .flatten()
            .any(|port| {
                let ends = ends.client_port(port);
                let is_known = self.is_holder(ports, ends);
                match ends.protocol {
                    Protocol::Udp => {
                        is_known && !self.is_idle(self.holders[&ends]) && is_served(ends)
                    }
                    // Whose entry was lost, but a SYN may be another client's.
                    Protocol::Tcp if self.is_open(ends) => {
                        is_known || !is_syn && !self.holders.contains_key(&ends)
                    }
                    Protocol::Tcp if is_known && is_syn => {
                        // A new connection; nothing is left of the one before.
                        self.holders.remove(&ends);
                        false
                    }
                    Protocol::Tcp => is_known,
                }
            })
    }

    /// A packet that a rule sends to a target.
    pub fn redirect(&mut self, arrival: Arrival) -> Admission {
        let Arrival {
            ports,
            ends,
            is_syn,
            is_syn_ack,
        } = arrival;
        if ends.protocol == Protocol::Udp {
            return self.admit_udp(arrival);
        }
        let is_open = self.is_open(ends);
        if self.is_holder(ports, ends) {
            return Admission::As(ports.client);
        }
        if let Some(port) = self.given_tcp_port(arrival) {
            return Admission::As(port);
        }
        match self.sockets.get(&ends.local_port(ports.dialled)) {
            Some(Socket::Open) => return Admission::NotOurs,
            Some(Socket::TimeWait) if !is_syn => return Admission::NotOurs,
            _ => {}
        }
        let is_ours = is_syn || is_open;
        if !is_ours && (is_syn_ack || self.answers(ends.local_port(ports.dialled))) {
            return Admission::NotOurs;
        }
        let is_lost = !is_syn && !self.holders.contains_key(&ends);
        if is_open && !is_lost {
            return Admission::AsAnother;
        }
        self.hold(ports, ends);
        Admission::As(ports.client)
    }

    /// A packet whose client dialled the target.
    pub fn direct(&mut self, arrival: Arrival) -> Admission {
        let Arrival {
            ports,
            ends,
            is_syn,
            ..
        } = arrival;
        if ends.protocol == Protocol::Udp {
            return self.admit_udp(arrival);
        }
        if let Some(port) = self.given_tcp_port(arrival) {
            return Admission::As(port);
        }
        if is_syn && self.holders.contains_key(&ends) && !self.is_holder(ports, ends) {
            if self.is_open(ends) {
                return Admission::AsAnother;
            }
            self.holders.remove(&ends);
        }
        Admission::As(ports.client)
    }

    /// The port that a TCP flow was given, unless another has it now.
    fn given_tcp_port(&mut self, arrival: Arrival) -> Option<u16> {
        let Arrival {
            ports,
            ends,
            is_syn,
            ..
        } = arrival;
        let port = self.given_port(ports, ends)?;
        let ends = ends.client_port(port);
        if self.is_holder(ports, ends) {
            return Some(port);
        }
        // Nobody's, unless a SYN finds a connection.
        if self.holders.contains_key(&ends) || is_syn && self.is_open(ends) {
            return None;
        }
        self.hold(ports, ends);
        Some(port)
    }

    fn admit_udp(&mut self, Arrival { ports, ends, .. }: Arrival) -> Admission {
        let holder = self.holders.get(&ends).copied();
        let is_known = holder.is_some_and(|holder| holder.ports == ports);
        if !is_known && self.answers(ends.local_port(ports.dialled)) {
            return Admission::NotOurs;
        }
        let is_other = |holder: Holder| holder.ports != ports && !self.is_idle(holder);
        if holder.is_none_or(|holder| holder.ports != ports)
            && let Some(port) = self.given_port(ports, ends)
        {
            let ends = ends.client_port(port);
            if !self.holders.get(&ends).copied().is_some_and(is_other) {
                self.hold(ports, ends);
                return Admission::As(port);
            }
        }
        if holder.is_some_and(is_other) {
            return Admission::AsAnother;
        }
        self.hold(ports, ends);
        Admission::As(ports.client)
    }

    /// Gives a flow another port.
    ///
    /// # Errors
    ///
    /// Somebody has it.
    pub fn give(&mut self, arrival: Arrival, port: u16) -> Result<(), String> {
        let Arrival { ports, ends, .. } = arrival;
        let theirs = ends.client_port(port);
        if port < 1024 {
            return Err(format!("client port {port} is privileged"));
        }
        if let Some(holder) = self.holders.get(&theirs) {
            return Err(format!("client port {port} is given twice: {holder:?}"));
        }
        if let Some(socket) = self.sockets.get(&theirs) {
            return Err(format!("client port {port} has a socket: {socket:?}"));
        }
        self.hold(ports, theirs);
        self.remember(ends.local_port(ports.dialled), port);
        Ok(())
    }

    /// Remembers the port that a client was given; it is one wherever a rule leads.
    pub fn remember(&mut self, known: Ends, port: u16) {
        self.given.insert(known, port);
    }
}
