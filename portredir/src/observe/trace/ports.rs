//! The headers of a traced packet.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TcpSlice, TransportSlice};
use portredir_common::map::trace::{TraceBytes, TracedPacket};
use portredir_common::net::{Port, Protocol};
use serde::Serialize;

/// One end of a packet. The port is unknown in what has none, such as an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: Option<Port>,
}

/// Writes `192.0.2.1:80`, `[2001:db8::1]:80`, or the address alone.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.addr, port.get()).fmt(f),
            None => self.addr.fmt(f),
        }
    }
}

impl Serialize for End {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Both ends of a packet; `None` where an end is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ends {
    /// The source.
    pub src: Option<End>,
    /// The destination.
    pub dst: Option<End>,
}

/// The headers of a packet, as far as they were captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) protocol: Option<&'static str>,
    pub(super) flags: Option<String>,
    pub(super) ends: Ends,
    /// Whether the ends are those of the packet that an ICMP error quotes.
    pub(super) is_quote: bool,
}

impl Default for Headers {
    fn default() -> Self {
        Self {
            protocol: None,
            flags: None,
            ends: Ends {
                src: None,
                dst: None,
            },
            is_quote: false,
        }
    }
}

/// The name of a protocol with ports.
pub(super) fn protocol_name(number: u8) -> Option<&'static str> {
    const TCP: u8 = Protocol::Tcp as u8;
    const UDP: u8 = Protocol::Udp as u8;
    match number {
        TCP => Some("tcp"),
        UDP => Some("udp"),
        _ => None,
    }
}

/// The captured bytes of a packet.
pub(super) fn bytes(packet: &TracedPacket, words: &TraceBytes) -> Vec<u8> {
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
    let captured = packet.captured.min(packet.len);
    bytes
        .take(usize::try_from(captured).unwrap_or(usize::MAX))
        .collect()
}

/// Parses the captured bytes; `None` where there is no IP header.
pub(super) fn headers(packet: &TracedPacket, words: &TraceBytes) -> Option<Headers> {
    let bytes = bytes(packet, words);
    let sliced = if packet.is_ethernet == 1 {
        LaxSlicedPacket::from_ethernet(&bytes).ok()?
    } else {
        LaxSlicedPacket::from_ip(&bytes).ok()?
    };
    of(&sliced)
}

fn of(sliced: &LaxSlicedPacket<'_>) -> Option<Headers> {
    let (src, dst): (IpAddr, IpAddr) = match sliced.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        LaxNetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        LaxNetSlice::Arp(_) => return None,
    };
    let ends = |ports: Option<(u16, u16)>| Ends {
        src: Some(End {
            addr: src,
            port: ports.map(|(src, _)| Port::new(src)),
        }),
        dst: Some(End {
            addr: dst,
            port: ports.map(|(_, dst)| Port::new(dst)),
        }),
    };
    let (protocol, flags, ends) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let ports = (tcp.source_port(), tcp.destination_port());
            ("tcp", Some(flags(tcp)), ends(Some(ports)))
        }
        Some(TransportSlice::Udp(udp)) => {
            let ports = (udp.source_port(), udp.destination_port());
            ("udp", None, ends(Some(ports)))
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            return Some(quoted("icmp", icmp.payload(), ends(None)));
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            return Some(quoted("icmp6", icmp.payload(), ends(None)));
        }
        _ => {
            return Some(Headers {
                ends: ends(None),
                ..Headers::default()
            });
        }
    };
    Some(Headers {
        protocol: Some(protocol),
        flags,
        ends,
        is_quote: false,
    })
}

/// The flags of a segment, as tcpdump writes them.
fn flags(tcp: &TcpSlice<'_>) -> String {
    let set = [
        (tcp.syn(), 'S'),
        (tcp.fin(), 'F'),
        (tcp.rst(), 'R'),
        (tcp.psh(), 'P'),
        (tcp.urg(), 'U'),
        (tcp.ack(), '.'),
    ];
    let set = set.into_iter().filter(|(is_set, _)| *is_set);
    set.map(|(_, letter)| letter).collect()
}

/// The headers of an ICMP error, with the ends of the packet that it quotes.
fn quoted(protocol: &'static str, quote: &[u8], own: Ends) -> Headers {
    let quote = LaxSlicedPacket::from_ip(quote).ok();
    let quote = quote.and_then(|sliced| Some((ports_of(&sliced), of(&sliced)?)));
    let ends = quote.map(|(ports, inner)| {
        let with = |end: Option<End>, port: Option<Port>| {
            end.map(|end| End {
                port: end.port.or(port),
                ..end
            })
        };
        Ends {
            src: with(inner.ends.src, ports.map(|(src, _)| src)),
            dst: with(inner.ends.dst, ports.map(|(_, dst)| dst)),
        }
    });
    Headers {
        protocol: Some(protocol),
        flags: None,
        is_quote: ends.is_some(),
        ends: ends.unwrap_or(own),
    }
}

/// The ports of a packet that ends within its TCP header, as quotes do.
fn ports_of(sliced: &LaxSlicedPacket<'_>) -> Option<(Port, Port)> {
    let payload = sliced.net.as_ref()?.ip_payload_ref()?.payload;
    let (src, rest) = payload.split_first_chunk::<2>()?;
    let (dst, _) = rest.split_first_chunk::<2>()?;
    let port = |bytes: &[u8; 2]| Port::new(u16::from_be_bytes(*bytes));
    Some((port(src), port(dst)))
}
