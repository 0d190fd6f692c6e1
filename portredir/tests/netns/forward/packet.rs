//! The packets that arrive at a host, in words that name every field that forwarding
//! may change, and nothing that depends on the time or the run.

use std::net::IpAddr;

use super::site::Site;
use crate::conformance::client::greeting;
use crate::conformance::frame::{
    self, ACK, CWR, ECE, ETHERNET, FIN, PSH, RST, SYN, URG, fold, pseudo, words,
};
use crate::conformance::wire::Received;

/// The sequence numbers of all segments that are made by hand.
pub const SEQ: u32 = 0x1000_0000;
pub const ACKED: u32 = 0x2000_0000;

/// Reads packets of one client port.
pub struct Reader<'a> {
    pub site: &'a Site,
    pub port: u16,
}

/// A packet that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    pub words: String,
    /// The ports of the packet, or those of the packet that it quotes.
    pub ports: Option<(u16, u16)>,
    pub kind: Kind,
}

/// The kinds of packets that a client reacts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The server's port, and the number that acknowledges it.
    SynAck {
        from: u16,
        ack: u32,
        seq: u32,
    },
    Udp,
    Other,
}

/// How a packet came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Whole, with its checksum.
    Whole,
    /// The hardware would fill in the checksum.
    Partial,
    /// In an ICMP error.
    Quoted,
}

/// An IP header and what follows.
struct Packet<'a> {
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    tos: u8,
    /// IPv4 alone.
    id: Option<u16>,
    is_unfragmentable: bool,
    is_fragment: bool,
    /// Options of IPv4, extension headers of IPv6.
    options: &'a [u8],
    protocol: u8,
    payload: &'a [u8],
    is_intact: bool,
}

impl<'a> Packet<'a> {
    fn read(ip: &'a [u8]) -> Option<Self> {
        match ip.first()? >> 4 {
            4 => Self::read_v4(ip),
            6 => Self::read_v6(ip),
            _ => None,
        }
    }

    fn read_v4(ip: &'a [u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes(ip.get(at..at + 2)?.try_into().ok()?));
        let len = usize::from(ip[0] & 0x0f) * 4;
        let end = usize::from(word(2)?).min(ip.len());
        let header = ip.get(..len)?;
        Some(Self {
            src: IpAddr::from(<[u8; 4]>::try_from(ip.get(12..16)?).ok()?),
            dst: IpAddr::from(<[u8; 4]>::try_from(ip.get(16..20)?).ok()?),
            ttl: ip[8],
            tos: ip[1],
            id: word(4),
            is_unfragmentable: ip[6] & 0x40 != 0,
            is_fragment: word(6)? & 0x3fff != 0,
            options: &header[20..],
            protocol: ip[9],
            payload: ip.get(len..end)?,
            is_intact: fold(words(header)) == 0xffff,
        })
    }

    fn read_v6(ip: &'a [u8]) -> Option<Self> {
        let len = u16::from_be_bytes(ip.get(4..6)?.try_into().ok()?);
        let end = (40 + usize::from(len)).min(ip.len());
        let (mut protocol, mut at) = (*ip.get(6)?, 40);
        // Hop-by-hop and destination options.
        while [0, 60].contains(&protocol) {
            protocol = *ip.get(at)?;
            at += 8 + 8 * usize::from(*ip.get(at + 1)?);
        }
        Some(Self {
            src: IpAddr::from(<[u8; 16]>::try_from(ip.get(8..24)?).ok()?),
            dst: IpAddr::from(<[u8; 16]>::try_from(ip.get(24..40)?).ok()?),
            ttl: ip[7],
            tos: ip[0] << 4 | ip[1] >> 4,
            id: None,
            is_unfragmentable: false,
            is_fragment: protocol == 44,
            options: ip.get(40..at)?,
            protocol,
            payload: ip.get(at..end)?,
            is_intact: true,
        })
    }

    fn word(&self, at: usize) -> Option<u16> {
        let bytes = self.payload.get(at..at + 2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    }

    fn long(&self, at: usize) -> Option<u32> {
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    fn is_icmp(&self) -> bool {
        [1, 58].contains(&self.protocol)
    }

    /// Whether the checksum of the segment is right.
    fn has_right_sum(&self, way: Way) -> bool {
        let pseudo = match self.protocol {
            1 => 0,
            protocol => pseudo(self.src, self.dst, protocol, self.payload.len()),
        };
        let field = match self.protocol {
            frame::TCP => 16,
            frame::UDP => 6,
            _ => 2,
        };
        let Some(sum) = self.word(field) else {
            return false;
        };
        match way {
            Way::Quoted => true,
            _ if self.is_fragment => true,
            _ if self.protocol == frame::UDP && sum == 0 => self.src.is_ipv4(),
            Way::Partial if !self.is_icmp() => fold(u32::from(sum)) == fold(pseudo),
            _ => fold(pseudo + words(self.payload)) == 0xffff,
        }
    }
}

impl Reader<'_> {
    /// Reads a frame, unless it is about another client port.
    pub fn read(&self, received: &Received) -> Option<Sight> {
        let packet = Packet::read(received.frame.get(ETHERNET..)?)?;
        let way = match received.is_partial {
            true => Way::Partial,
            false => Way::Whole,
        };
        let ports = ports(&packet);
        let is_ours = |(src, dst)| src == self.port || dst == self.port;
        let kind = match packet.protocol {
            frame::TCP if packet.payload.get(13)? & (SYN | ACK) == SYN | ACK => Kind::SynAck {
                from: packet.word(0)?,
                seq: packet.long(4)?,
                ack: packet.long(8)?,
            },
            frame::UDP => Kind::Udp,
            _ => Kind::Other,
        };
        Some(Sight {
            words: self.words(&packet, way)?,
            ports,
            kind,
        })
        .filter(|sight| sight.ports.is_some_and(is_ours))
    }

    fn port_words(&self, port: u16) -> String {
        if port == self.port {
            "p".to_owned()
        } else {
            port.to_string()
        }
    }

    fn words(&self, packet: &Packet<'_>, way: Way) -> Option<String> {
        let [src, dst] = [packet.src, packet.dst].map(|addr| self.site.name(addr));
        let mut text = match packet.protocol {
            _ if packet.is_fragment => format!("a fragment {src} > {dst}"),
            frame::TCP | frame::UDP => {
                let from = self.port_words(packet.word(0)?);
                let to = self.port_words(packet.word(2)?);
                let what = match packet.protocol {
                    frame::TCP => tcp_words(packet, way),
                    _ => "datagram".to_owned(),
                };
                format!("{what} {src}:{from} > {dst}:{to}")
            }
            _ => format!("{} {src} > {dst}", icmp_name(packet)?),
        };
        text += &header_words(packet);
        if packet.protocol == frame::UDP && packet.word(6) == Some(0) {
            text += " no checksum";
        }
        if !packet.is_intact || !packet.has_right_sum(way) {
            text += " bad checksum";
        }
        if let Some(told) = self.told(packet) {
            text += &told;
        }
        if let Some(quote) = quote(packet) {
            let inner = Packet::read(quote)?;
            let inner = self.words(&inner, Way::Quoted)?;
            text += &format!(" quoting {} bytes [{inner}]", quote.len());
        }
        Some(text)
    }

    /// Reads the words of a server about the datagram that it answers.
    fn told(&self, packet: &Packet<'_>) -> Option<String> {
        if packet.protocol != frame::UDP {
            return None;
        }
        let (name, local, peer, _) = greeting(packet.payload.get(8..)?)?;
        let end = |addr: std::net::SocketAddr| {
            let port = self.port_words(addr.port());
            format!("{}:{port}", self.site.name(addr.ip()))
        };
        Some(format!(", {name} saw {} > {}", end(peer), end(local)))
    }
}

/// The fields of the IP header that are no address.
fn header_words(packet: &Packet<'_>) -> String {
    let mut text = format!(" ttl {}", packet.ttl);
    if packet.tos != 0 {
        text += &format!(" tos {:#04x}", packet.tos);
    }
    // Kernels choose other identifications for what they send themselves.
    if let Some(id @ HAND_MADE_ID) = packet.id {
        text += &format!(" id {id}");
    }
    if packet.is_unfragmentable {
        text += " DF";
    }
    if !packet.options.is_empty() {
        let hex = packet.options.iter().map(|byte| format!("{byte:02x}"));
        text += &format!(" options {}", hex.collect::<String>());
    }
    text
}

/// The identification of packets that are made by hand.
pub const HAND_MADE_ID: u16 = 4711;

fn tcp_words(packet: &Packet<'_>, way: Way) -> String {
    let flags = packet.payload.get(13).copied().unwrap_or(0);
    let names = [
        (SYN, "SYN"),
        (FIN, "FIN"),
        (RST, "RST"),
        (PSH, "PSH"),
        (URG, "URG"),
        (ECE, "ECE"),
        (CWR, "CWR"),
        (ACK, "ACK"),
    ];
    if way == Way::Quoted && packet.payload.len() < 14 {
        return "TCP".to_owned();
    }
    let set = names.iter().filter(|(flag, _)| flags & flag != 0);
    let mut text = set.map(|(_, name)| *name).collect::<Vec<_>>().join("-");
    let number = |number: u32| match number {
        0 => "0".to_owned(),
        number if number.wrapping_sub(SEQ) < 1 << 16 => format!("s+{}", number - SEQ),
        number if number.wrapping_sub(ACKED) < 1 << 16 => format!("a+{}", number - ACKED),
        // The server's own number, which is random.
        _ => "n".to_owned(),
    };
    if let (Some(seq), Some(ack)) = (packet.long(4), packet.long(8)) {
        text += &format!(" {}/{}", number(seq), number(ack));
    }
    // The first option of a SYN is the MSS, unless it is made by hand.
    if flags & SYN != 0 && packet.word(20) == Some(0x0204) {
        text += &format!(" mss {}", packet.word(22).unwrap_or(0));
    }
    text
}

fn icmp_name(packet: &Packet<'_>) -> Option<String> {
    let (kind, code) = (*packet.payload.first()?, *packet.payload.get(1)?);
    let is_v4 = packet.src.is_ipv4();
    Some(match (is_v4, kind, code) {
        (true, 0, 0) | (false, 129, 0) => "echo reply".to_owned(),
        (true, 3, 0) | (false, 1, 0) => "no route".to_owned(),
        (true, 3, 1) | (false, 1, 3) => "host unreachable".to_owned(),
        (true, 3, 3) | (false, 1, 4) => "port unreachable".to_owned(),
        (true, 11, 0) | (false, 3, 0) => "time exceeded".to_owned(),
        (true, 3, 4) => format!("packet too big (MTU {})", packet.word(6)?),
        (false, 2, 0) => format!("packet too big (MTU {})", packet.long(4)?),
        (true, 5, _) | (false, 137, _) => "redirect".to_owned(),
        _ => format!("ICMP {kind} {code}"),
    })
}

/// The quote of an ICMP error.
fn quote<'a>(packet: &Packet<'a>) -> Option<&'a [u8]> {
    let kind = *packet.payload.first()?;
    if packet.protocol == 58 && kind == 137 {
        return redirected(packet.payload);
    }
    let is_error = match packet.protocol {
        1 => [3, 5, 11, 12].contains(&kind),
        58 => kind < 128,
        _ => false,
    };
    let start = packet.payload.get(8..)?;
    is_error.then_some(start)
}

/// The quote of a redirect of IPv6, which is in an option (RFC 4861, 4.6.3).
fn redirected(message: &[u8]) -> Option<&[u8]> {
    let mut options = message.get(40..)?;
    loop {
        let len = 8 * usize::from(*options.get(1)?);
        let (option, rest) = options.split_at_checked(len.max(8))?;
        if option[0] == 4 {
            return option.get(8..);
        }
        options = rest;
    }
}

/// The ports of a packet, or of the one that it quotes; an echo has its identifier for
/// both.
fn ports(packet: &Packet<'_>) -> Option<(u16, u16)> {
    if packet.is_icmp() {
        return match quote(packet) {
            Some(quote) => ports(&Packet::read(quote)?),
            None => Some((packet.word(4)?, 0)),
        };
    }
    if packet.is_fragment {
        return None;
    }
    Some((packet.word(0)?, packet.word(2)?))
}
