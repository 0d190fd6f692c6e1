//! The contents of the flow maps.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::Ipv6Addr;

use portredir_common::flow::{Flow, FlowKey, FlowTable};
use portredir_common::net::{Addr, Port};

/// The entries of the flow maps.
#[derive(Clone, Default, PartialEq)]
pub struct Tables {
    pub syn: HashMap<FlowKey, Flow>,
    pub tcp: HashMap<FlowKey, Flow>,
    pub udp: HashMap<FlowKey, Flow>,
    pub remap: HashMap<FlowKey, Port>,
    /// The clients that were marked.
    pub marks: HashSet<(Addr, Port)>,
}

impl Tables {
    pub fn get(&self, table: FlowTable) -> &HashMap<FlowKey, Flow> {
        match table {
            FlowTable::Syn => &self.syn,
            FlowTable::Tcp => &self.tcp,
            FlowTable::Udp => &self.udp,
        }
    }

    pub fn get_mut(&mut self, table: FlowTable) -> &mut HashMap<FlowKey, Flow> {
        match table {
            FlowTable::Syn => &mut self.syn,
            FlowTable::Tcp => &mut self.tcp,
            FlowTable::Udp => &mut self.udp,
        }
    }

    /// With a flow in `table`.
    pub fn flow(mut self, table: FlowTable, key: FlowKey, flow: Flow) -> Self {
        self.get_mut(table).insert(key, flow);
        self
    }

    /// With a flow that this host began: a direct one, whose client is marked.
    pub fn own_flow(mut self, table: FlowTable, key: FlowKey, flow: Flow) -> Self {
        self.mark(&key);
        self.flow(table, key, flow)
    }

    /// Marks the client of a flow.
    pub fn mark(&mut self, key: &FlowKey) {
        self.marks.insert((key.client, key.client_port));
    }

    /// Whether the client of a flow is marked; those that were given a port are.
    pub fn is_marked(&self, key: &FlowKey) -> bool {
        let end = |key: &FlowKey| (key.client, key.client_port);
        let mut given = self.remap.keys();
        self.marks.contains(&end(key)) || given.any(|given| end(given) == end(key))
    }

    /// With another client port for an original flow.
    pub fn remap(mut self, original: FlowKey, client_port: u16) -> Self {
        self.remap.insert(original, Port::new(client_port));
        self
    }

    /// The client port that was given since `before`.
    pub fn new_client_port(&self, before: &Self) -> Option<Port> {
        let is_new = |(key, port): &(&FlowKey, &Port)| before.remap.get(key) != Some(port);
        self.remap.iter().find(is_new).map(|(_, port)| *port)
    }

    /// Panics when `other` differs; times may, by `slack` epochs.
    pub fn assert_is(&self, other: &Self, slack: u16) {
        assert!(
            self.is(other, slack),
            "flow state\n{self:?}is not\n{other:?}"
        );
    }

    /// Whether `other` is the same; times may differ by `slack` epochs.
    pub fn is(&self, other: &Self, slack: u16) -> bool {
        let is_same = |table| {
            let (ours, theirs) = (self.get(table), other.get(table));
            ours.len() == theirs.len()
                && ours.iter().all(|(key, flow)| {
                    theirs.get(key).is_some_and(|other| {
                        let age = flow.seen.since(other.seen);
                        let age = age.max(other.seen.since(flow.seen));
                        let other = Flow {
                            seen: flow.seen,
                            ..*other
                        };
                        *flow == other && age <= slack
                    })
                })
        };
        [FlowTable::Syn, FlowTable::Tcp, FlowTable::Udp]
            .into_iter()
            .all(is_same)
            && self.remap == other.remap
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, flows) in [("SYN", &self.syn), ("TCP", &self.tcp), ("UDP", &self.udp)] {
            for (key, flow) in flows {
                let (dialled, client) = (flow.dst_port.get(), flow.client_port.get());
                let (rule, seen) = (flow.rule, flow.seen.0);
                writeln!(
                    f,
                    "{name} {} = from {client} to {dialled}, rule {rule}, at {seen}",
                    show(key)
                )?;
            }
        }
        for (key, port) in &self.remap {
            writeln!(f, "REMAP {} = {}", show(key), port.get())?;
        }
        Ok(())
    }
}

/// A key in words.
pub fn show(key: &FlowKey) -> String {
    let ip = |addr: Addr| Ipv6Addr::from(addr.octets()).to_canonical();
    let FlowKey {
        client,
        local,
        client_port,
        local_port,
        protocol,
        ..
    } = *key;
    let (client, local) = (ip(client), ip(local));
    format!(
        "{protocol} {client} {} -> {local} {}",
        client_port.get(),
        local_port.get()
    )
}
