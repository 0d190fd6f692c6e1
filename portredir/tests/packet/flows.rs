//! Shorthands for flows of the two protocols and versions of IP.

use portredir_common::flow::{FlowKey, FlowTable};
use portredir_common::net::Protocol;

use super::builder::{
    CLIENT_PORT, CLIENT4, CLIENT6, Packet, SERVER4, SERVER6, tcp4, tcp6, udp4, udp6,
};
use super::key;

/// A protocol over a version of IP.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    pub protocol: Protocol,
    pub is_ipv4: bool,
}

/// All four of them.
pub const KINDS: [Kind; 4] = [
    Kind {
        name: "tcp v4",
        protocol: Protocol::Tcp,
        is_ipv4: true,
    },
    Kind {
        name: "tcp v6",
        protocol: Protocol::Tcp,
        is_ipv4: false,
    },
    Kind {
        name: "udp v4",
        protocol: Protocol::Udp,
        is_ipv4: true,
    },
    Kind {
        name: "udp v6",
        protocol: Protocol::Udp,
        is_ipv4: false,
    },
];

impl Kind {
    /// A packet of the client to a port.
    pub fn packet(self, dst_port: u16) -> Packet {
        match (self.protocol, self.is_ipv4) {
            (Protocol::Tcp, true) => tcp4(dst_port),
            (Protocol::Tcp, false) => tcp6(dst_port),
            (Protocol::Udp, true) => udp4(dst_port),
            (Protocol::Udp, false) => udp6(dst_port),
        }
    }

    /// The answer of the server from a port.
    pub fn reply(self, src_port: u16) -> Packet {
        self.packet(src_port).reply()
    }

    /// The client's flow to a port.
    pub fn key(self, local_port: u16) -> FlowKey {
        self.key_from(CLIENT_PORT, local_port)
    }

    /// The client's flow from any client port to a port.
    pub fn key_from(self, client_port: u16, local_port: u16) -> FlowKey {
        let (client, local) = if self.is_ipv4 {
            (CLIENT4, SERVER4)
        } else {
            (CLIENT6, SERVER6)
        };
        key(self.protocol, (client, client_port), (local, local_port))
    }

    /// Where a flow that is under way is kept.
    pub fn table(self) -> FlowTable {
        match self.protocol {
            Protocol::Tcp => FlowTable::Tcp,
            Protocol::Udp => FlowTable::Udp,
        }
    }

    /// Where a flow is kept that begins in the middle and without a socket.
    pub fn new_table(self) -> FlowTable {
        match self.protocol {
            Protocol::Tcp => FlowTable::Syn,
            Protocol::Udp => FlowTable::Udp,
        }
    }
}
