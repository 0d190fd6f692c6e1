//! The packets that arrived at the client's interface.

use std::net::IpAddr;

use super::frame::{self, ACK, ECE, ETHERNET, FIN, RST, SYN, fold, pseudo, words};
use super::wire::Received;

/// A packet that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub body: Body,
    /// Whether its checksums are right, as far as they are there.
    pub is_intact: bool,
}

/// The body of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Tcp {
        ports: (u16, u16),
        seq: u32,
        ack: u32,
        flags: u8,
        options: Vec<u8>,
        payload: Vec<u8>,
    },
    Udp {
        ports: (u16, u16),
        payload: Vec<u8>,
    },
    Icmp {
        kind: u8,
        code: u8,
        /// Behind the first eight bytes.
        quote: Vec<u8>,
    },
    /// Another protocol, or a fragment.
    Other,
}

/// An IP header.
struct Header {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    /// The length of the header, and that of the whole packet.
    len: usize,
    end: usize,
    is_intact: bool,
    is_fragment: bool,
}

impl Header {
    fn read_v4(ip: &[u8]) -> Option<Self> {
        let len = usize::from(ip.first()? & 0x0f) * 4;
        let field = u16::from_be_bytes(ip.get(6..8)?.try_into().ok()?);
        Some(Self {
            src: IpAddr::from(<[u8; 4]>::try_from(ip.get(12..16)?).ok()?),
            dst: IpAddr::from(<[u8; 4]>::try_from(ip.get(16..20)?).ok()?),
            protocol: ip[9],
            len,
            end: usize::from(u16::from_be_bytes(ip.get(2..4)?.try_into().ok()?)),
            is_intact: fold(words(ip.get(..len)?)) == 0xffff,
            is_fragment: field & 0x3fff != 0,
        })
    }

    fn read_v6(ip: &[u8]) -> Option<Self> {
        let payload = u16::from_be_bytes(ip.get(4..6)?.try_into().ok()?);
        Some(Self {
            src: IpAddr::from(<[u8; 16]>::try_from(ip.get(8..24)?).ok()?),
            dst: IpAddr::from(<[u8; 16]>::try_from(ip.get(24..40)?).ok()?),
            protocol: *ip.get(6)?,
            len: 40,
            end: 40 + usize::from(payload),
            is_intact: true,
            is_fragment: false,
        })
    }

    /// The sum of the pseudo-header before these bytes.
    fn pseudo(&self, bytes: &[u8]) -> u32 {
        pseudo(self.src, self.dst, self.protocol, bytes.len())
    }
}

impl Arrival {
    /// Reads a frame; `None` for what is no IP packet.
    pub fn read(received: &Received) -> Option<Self> {
        let ip = received.frame.get(ETHERNET..)?;
        let header = match received.frame.get(12..14)? {
            [0x08, 0x00] => Header::read_v4(ip)?,
            [0x86, 0xdd] => Header::read_v6(ip)?,
            _ => return None,
        };
        let bytes = ip.get(header.len..header.end)?;
        let body = if header.is_fragment {
            Body::Other
        } else {
            body(header.protocol, bytes).unwrap_or(Body::Other)
        };
        let is_sum_right = match &body {
            Body::Other => true,
            Body::Udp { .. } if bytes[6..8] == [0, 0] => header.src.is_ipv4(),
            Body::Tcp { .. } if received.is_partial => {
                fold(words(&bytes[16..18])) == fold(header.pseudo(bytes))
            }
            Body::Udp { .. } if received.is_partial => {
                fold(words(&bytes[6..8])) == fold(header.pseudo(bytes))
            }
            _ => {
                let pseudo = match header.protocol {
                    1 => 0,
                    _ => header.pseudo(bytes),
                };
                fold(pseudo + words(bytes)) == 0xffff
            }
        };
        Some(Self {
            src: header.src,
            dst: header.dst,
            body,
            is_intact: header.is_intact && is_sum_right,
        })
    }

    /// In the words of the document.
    pub fn words(&self) -> String {
        let mut text = match &self.body {
            Body::Tcp {
                ports,
                flags,
                payload,
                ..
            } => {
                let name = match flags & (SYN | ACK | RST | FIN) {
                    f if f & RST != 0 => "RST".to_owned(),
                    f if f == SYN | ACK && flags & ECE != 0 => "SYN-ACK with ECE".to_owned(),
                    f if f == SYN | ACK => "SYN-ACK".to_owned(),
                    f if f & FIN != 0 => "FIN".to_owned(),
                    _ if !payload.is_empty() => "data".to_owned(),
                    f if f == ACK => "ACK".to_owned(),
                    f => format!("TCP flags {f:#04x}"),
                };
                format!("{name} from {}", ports.0)
            }
            Body::Udp { ports, .. } => format!("datagram from {}", ports.0),
            Body::Icmp { kind, code, quote } => {
                let name = match (self.src.is_ipv4(), kind, code) {
                    (true, 0, 0) | (false, 129, 0) => return "echo reply".to_owned(),
                    (true, 3, 3) | (false, 1, 4) => "port unreachable".to_owned(),
                    (true, 11, 0) | (false, 3, 0) => "time exceeded".to_owned(),
                    (true, 3, 4) | (false, 2, 0) => "packet too big".to_owned(),
                    (true, 12, _) | (false, 4, _) => format!("parameter problem {code}"),
                    _ => format!("ICMP {kind} {code}"),
                };
                match quoted_ports(self.src.is_ipv4(), quote) {
                    Some((_, dst)) => format!("{name} quoting {dst}"),
                    None => name,
                }
            }
            Body::Other => "something else".to_owned(),
        };
        if !self.is_intact {
            text.push_str(" with a bad checksum");
        }
        text
    }
}

/// The ports of the packet that an ICMP error quotes.
pub fn quoted_ports(is_v4: bool, quote: &[u8]) -> Option<(u16, u16)> {
    let len = if is_v4 {
        usize::from(quote.first()? & 0x0f) * 4
    } else {
        40
    };
    let protocol = if is_v4 { quote.get(9)? } else { quote.get(6)? };
    if ![frame::TCP, frame::UDP].contains(protocol) {
        return None;
    }
    let port = |at| Some(u16::from_be_bytes(quote.get(at..at + 2)?.try_into().ok()?));
    Some((port(len)?, port(len + 2)?))
}

fn body(protocol: u8, bytes: &[u8]) -> Option<Body> {
    let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let long = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some(match protocol {
        frame::TCP => {
            let len = usize::from(bytes.get(12)? >> 4) * 4;
            Body::Tcp {
                ports: (word(0)?, word(2)?),
                seq: long(4)?,
                ack: long(8)?,
                flags: bytes[13],
                options: bytes.get(20..len)?.to_vec(),
                payload: bytes.get(len..)?.to_vec(),
            }
        }
        frame::UDP => Body::Udp {
            ports: (word(0)?, word(2)?),
            payload: bytes.get(8..)?.to_vec(),
        },
        1 | 58 => Body::Icmp {
            kind: *bytes.first()?,
            code: *bytes.get(1)?,
            quote: bytes.get(8..)?.to_vec(),
        },
        _ => return None,
    })
}
