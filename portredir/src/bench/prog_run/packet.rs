//! The packets that programs are run on, and the flows they belong to.

use portredir_common::abi::{Addr, FlowKey, Port, Protocol};
use portredir_common::wire::Version;

pub const CLIENT_PORT: u16 = 40_000;
pub const PUBLIC: u16 = 80;
pub const TARGET: u16 = 8080;
/// A port without a rule.
pub const OTHER: u16 = 443;

/// A protocol over a version of IP.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    pub protocol: Protocol,
    version: Version,
}

pub const KINDS: [Kind; 4] = [
    kind("TCP v4", Protocol::Tcp, Version::V4),
    kind("TCP v6", Protocol::Tcp, Version::V6),
    kind("UDP v4", Protocol::Udp, Version::V4),
    kind("UDP v6", Protocol::Udp, Version::V6),
];

const fn kind(name: &'static str, protocol: Protocol, version: Version) -> Kind {
    Kind {
        name,
        protocol,
        version,
    }
}

/// The client's address, or the host's.
pub const fn addr(version: Version, last: u8) -> Addr {
    match version {
        Version::V4 => Addr::v4([192, 0, 2, last]),
        Version::V6 => Addr::new([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
    }
}

/// The direction of a packet, seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the host.
    Ingress,
    /// From the host to the client.
    Egress,
}

/// The place of a packet in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The first packet: with TCP a SYN.
    First,
    /// A later packet.
    Later,
}

/// The ports of a flow.
#[derive(Clone, Copy)]
pub struct Ends {
    pub client: u16,
    pub host: u16,
}

pub const HOST: u8 = 1;
pub const CLIENT: u8 = 2;

impl Kind {
    /// Makes a packet of a flow. The checksums are wrong: programs only update them.
    pub fn packet(self, ends: Ends, direction: Direction, stage: Stage) -> Vec<u8> {
        let client = (addr(self.version, CLIENT), ends.client);
        let host = (addr(self.version, HOST), ends.host);
        let ((src, src_port), (dst, dst_port)) = match direction {
            Direction::Ingress => (client, host),
            Direction::Egress => (host, client),
        };
        let mut payload = [src_port.to_be_bytes(), dst_port.to_be_bytes()].concat();
        if self.protocol == Protocol::Tcp {
            let flags = if stage == Stage::First { 0x02 } else { 0x10 };
            payload.extend([
                0,
                0,
                0,
                1,
                0,
                0,
                0,
                u8::from(stage == Stage::Later),
                0x50,
                flags,
                0x20,
                0,
            ]);
            payload.extend([0x12, 0x34, 0, 0]);
        } else {
            payload.extend([0, 26, 0x12, 0x34]);
        }
        payload.extend([b'x'; 18]);
        let [high, low] = u16::try_from(payload.len()).expect("short").to_be_bytes();
        let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let protocol = self.protocol as u8;
        if self.version == Version::V4 {
            packet.extend([
                0x08,
                0x00,
                0x45,
                0,
                high,
                low + 20,
                0,
                1,
                0x40,
                0,
                64,
                protocol,
                0,
                0,
            ]);
            packet.extend([&src.octets()[12..], &dst.octets()[12..]].concat());
        } else {
            packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, protocol, 64]);
            packet.extend([src.octets(), dst.octets()].concat());
        }
        packet.extend(payload);
        packet
    }

    pub fn key(self, local_port: u16) -> FlowKey {
        FlowKey {
            client: addr(self.version, CLIENT),
            local: addr(self.version, HOST),
            client_port: Port::new(CLIENT_PORT),
            local_port: Port::new(local_port),
            protocol: self.protocol as u8,
            version: self.version as u8,
            pad: [0; 2],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketHeaders, TransportHeader};

    #[test]
    fn packets_are_what_they_are_called() {
        for kind in KINDS {
            for direction in [Direction::Ingress, Direction::Egress] {
                let ends = Ends {
                    client: CLIENT_PORT,
                    host: OTHER,
                };
                let packet = kind.packet(ends, direction, Stage::First);
                let headers = PacketHeaders::from_ethernet_slice(&packet).expect("a packet");
                assert_eq!(headers.payload.slice(), [b'x'; 18], "{}", kind.name);
                let ports = match headers.transport.expect("a transport header") {
                    TransportHeader::Tcp(tcp) => {
                        assert!(kind.protocol == Protocol::Tcp && tcp.syn && !tcp.ack);
                        (tcp.source_port, tcp.destination_port)
                    }
                    TransportHeader::Udp(udp) => {
                        assert!(kind.protocol == Protocol::Udp);
                        (udp.source_port, udp.destination_port)
                    }
                    other => panic!("{other:?}"),
                };
                let there = (CLIENT_PORT, OTHER);
                let expected = match direction {
                    Direction::Ingress => there,
                    Direction::Egress => (there.1, there.0),
                };
                assert_eq!(ports, expected, "{}", kind.name);
            }
        }
    }
}
