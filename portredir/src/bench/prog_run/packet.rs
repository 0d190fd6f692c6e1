//! The packets that programs are run on, and the flows they belong to.

use portredir_common::flow::FlowKey;
use portredir_common::net::{Addr, Port, Protocol};

pub const CLIENT_PORT: Port = Port::new(40_000);
pub const PUBLIC: Port = Port::new(80);
pub const TARGET: Port = Port::new(8080);
/// A port without a rule.
pub const OTHER: Port = Port::new(443);

/// A protocol over a version of IP.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    pub protocol: Protocol,
    is_ipv4: bool,
}

pub const KINDS: [Kind; 4] = [
    Kind {
        name: "TCP v4",
        protocol: Protocol::Tcp,
        is_ipv4: true,
    },
    Kind {
        name: "TCP v6",
        protocol: Protocol::Tcp,
        is_ipv4: false,
    },
    Kind {
        name: "UDP v4",
        protocol: Protocol::Udp,
        is_ipv4: true,
    },
    Kind {
        name: "UDP v6",
        protocol: Protocol::Udp,
        is_ipv4: false,
    },
];

/// The ports, the direction and the state of a packet.
#[derive(Clone, Copy)]
pub struct Shape {
    pub client_port: Port,
    pub port: Port,
    /// Whether the packet goes from the client to the port.
    pub is_ingress: bool,
    /// Whether a TCP packet is the first of a connection.
    pub is_syn: bool,
}

/// The client's address, or the host's.
pub const fn addr(is_ipv4: bool, last: u8) -> Addr {
    if is_ipv4 {
        Addr::v4([192, 0, 2, last])
    } else {
        Addr::new([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
    }
}

pub const HOST: u8 = 1;
pub const CLIENT: u8 = 2;

impl Kind {
    /// A packet from the client to a port, or from the port to the client. The
    /// checksums are wrong; programs only update them.
    pub fn packet(self, shape: Shape) -> Vec<u8> {
        let Shape {
            client_port,
            port,
            is_ingress,
            is_syn,
        } = shape;
        let (client, host) = (addr(self.is_ipv4, CLIENT), addr(self.is_ipv4, HOST));
        let (src, dst) = if is_ingress {
            (client, host)
        } else {
            (host, client)
        };
        let (src_port, dst_port) = if is_ingress {
            (client_port, port)
        } else {
            (port, client_port)
        };
        let mut payload = [src_port.bytes(), dst_port.bytes()].concat();
        if self.protocol == Protocol::Tcp {
            let flags = if is_syn { 0x02 } else { 0x10 };
            payload.extend([0, 0, 0, 1, 0, 0, 0, u8::from(!is_syn), 0x50, flags, 0x20, 0]);
            payload.extend([0x12, 0x34, 0, 0]);
        } else {
            payload.extend([0, 26, 0x12, 0x34]);
        }
        payload.extend([b'x'; 18]);
        let [high, low] = u16::try_from(payload.len()).expect("short").to_be_bytes();
        let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let protocol = self.protocol as u8;
        if self.is_ipv4 {
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

    pub fn key(self, local_port: Port) -> FlowKey {
        FlowKey {
            client: addr(self.is_ipv4, CLIENT),
            local: addr(self.is_ipv4, HOST),
            client_port: CLIENT_PORT,
            local_port,
            protocol: self.protocol as u8,
            version: if self.is_ipv4 { 4 } else { 6 },
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
            for is_ingress in [true, false] {
                let packet = kind.packet(Shape {
                    client_port: CLIENT_PORT,
                    port: OTHER,
                    is_ingress,
                    is_syn: true,
                });
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
                let there = (CLIENT_PORT.get(), OTHER.get());
                let expected = if is_ingress {
                    there
                } else {
                    (there.1, there.0)
                };
                assert_eq!(ports, expected, "{}", kind.name);
            }
        }
    }
}
