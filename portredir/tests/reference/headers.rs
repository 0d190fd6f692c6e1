//! The headers of a frame, by plain slices and with every length compared.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portredir_common::net::Protocol;

/// IP protocol numbers, and IPv6 extension headers, which are numbered alike.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// The payload of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    Ports(Protocol),
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp,
}

/// An IP packet that is whole, or the first of its fragments.
#[derive(Clone, Debug)]
pub struct Headers {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub carried: Carried,
    /// Where the IP header begins.
    pub ip: usize,
    /// Where the header of TCP, UDP or ICMP begins.
    pub start: usize,
    /// Where the IP packet ends, by its own words.
    pub end: usize,
    /// More fragments follow.
    pub is_fragment: bool,
}

/// Whether a TCP or UDP header is one whose ports can be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Soundness {
    Sound,
    /// A first fragment that ends before the TCP checksum.
    TooShort,
    /// Lengths that cannot be.
    Broken,
}

/// The number in two bytes; `None` behind the end.
pub fn number(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The packet in an Ethernet frame.
pub fn of_ethernet(frame: &[u8]) -> Option<Headers> {
    let mut at = 12;
    // Two tags at most, of 802.1Q or 802.1ad.
    for _ in 0..2 {
        if matches!(number(frame, at)?, 0x8100 | 0x88a8) {
            at += 4;
        }
    }
    match number(frame, at)? {
        0x0800 => of_ipv4(frame, at + 2),
        0x86dd => of_ipv6(frame, at + 2),
        _ => None,
    }
}

/// The packet that a frame without an Ethernet header is.
pub fn of_ip(frame: &[u8]) -> Option<Headers> {
    match frame.first()? >> 4 {
        4 => of_ipv4(frame, 0),
        6 => of_ipv6(frame, 0),
        _ => None,
    }
}

/// The IPv4 packet at `ip`.
pub fn of_ipv4(frame: &[u8], ip: usize) -> Option<Headers> {
    let header = frame.get(ip..ip + 20)?;
    let words = usize::from(header[0] & 0x0f);
    if header[0] >> 4 != 4 || words < 5 {
        return None;
    }
    let fragment = number(header, 6)?;
    if fragment & 0x1fff != 0 {
        // Not the first.
        return None;
    }
    let carried = match header[9] {
        TCP => Carried::Ports(Protocol::Tcp),
        UDP => Carried::Ports(Protocol::Udp),
        ICMP => Carried::Icmp,
        _ => return None,
    };
    let addr = |at: usize| {
        let bytes: [u8; 4] = header[at..at + 4].try_into().expect("four bytes");
        IpAddr::V4(Ipv4Addr::from(bytes))
    };
    Some(Headers {
        src: addr(12),
        dst: addr(16),
        carried,
        ip,
        start: ip + words * 4,
        end: ip + usize::from(number(header, 2)?),
        is_fragment: fragment & 0x2000 != 0,
    })
}

/// The IPv6 packet at `ip`.
pub fn of_ipv6(frame: &[u8], ip: usize) -> Option<Headers> {
    let header = frame.get(ip..ip + 40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let mut next = header[6];
    let mut start = ip + 40;
    let mut is_fragment = false;
    let mut extensions = 0;
    let carried = loop {
        match next {
            TCP => break Carried::Ports(Protocol::Tcp),
            UDP => break Carried::Ports(Protocol::Udp),
            ICMPV6 => break Carried::Icmp,
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS => {}
            // Others hide the ports, or protect them.
            _ => return None,
        }
        extensions += 1;
        if extensions > 6 {
            return None;
        }
        let extension = frame.get(start..start + 8)?;
        match next {
            FRAGMENT => {
                let field = number(extension, 2)?;
                if field >> 3 != 0 {
                    return None;
                }
                is_fragment |= field & 1 != 0;
                start += 8;
            }
            // This host is not the last that it goes to.
            ROUTING if extension[3] != 0 => return None,
            _ => start += 8 + 8 * usize::from(extension[1]),
        }
        next = extension[0];
    };
    let addr = |at: usize| {
        let bytes: [u8; 16] = header[at..at + 16].try_into().expect("sixteen bytes");
        IpAddr::V6(Ipv6Addr::from(bytes))
    };
    Some(Headers {
        src: addr(8),
        dst: addr(24),
        carried,
        ip,
        start,
        end: ip + 40 + usize::from(number(header, 4)?),
        is_fragment,
    })
}

impl Headers {
    /// Source and destination port.
    pub fn ports(&self, frame: &[u8]) -> Option<(u16, u16)> {
        Some((number(frame, self.start)?, number(frame, self.start + 2)?))
    }

    /// Where the addresses are.
    pub fn addrs(&self) -> std::ops::Range<usize> {
        match self.src {
            IpAddr::V4(_) => self.ip + 12..self.ip + 20,
            IpAddr::V6(_) => self.ip + 8..self.ip + 40,
        }
    }

    /// The bytes behind the IP header, without those behind the packet.
    pub fn payload<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        frame.get(self.start..self.end)
    }

    pub fn soundness(&self, frame: &[u8], protocol: Protocol) -> Soundness {
        let Some(payload) = self.payload(frame) else {
            return Soundness::Broken;
        };
        let is_sound = match protocol {
            Protocol::Tcp if self.is_fragment => {
                if payload.len() < 18 {
                    return Soundness::TooShort;
                }
                true
            }
            Protocol::Tcp => payload.get(12).is_some_and(|byte| {
                let header = usize::from(byte >> 4) * 4;
                header >= 20 && header <= payload.len()
            }),
            Protocol::Udp => number(payload, 4).is_some_and(|len| {
                let len = usize::from(len);
                payload.len() >= 8 && len >= 8 && (self.is_fragment || len <= payload.len())
            }),
        };
        if is_sound {
            Soundness::Sound
        } else {
            Soundness::Broken
        }
    }

    /// Where the checksum of TCP, UDP or ICMP is.
    pub fn checksum(&self) -> usize {
        self.start
            + match self.carried {
                Carried::Ports(Protocol::Tcp) => 16,
                Carried::Ports(Protocol::Udp) => 6,
                Carried::Icmp => 2,
            }
    }

    /// The packet that an ICMP error quotes, as a packet of this frame.
    pub fn quoted(&self, frame: &[u8]) -> Option<Headers> {
        let message = self.payload(frame)?;
        let is_error = match (self.src, *message.first()?) {
            // Unreachable, source quench, time exceeded, parameter problem.
            (IpAddr::V4(_), kind) => matches!(kind, 3 | 4 | 11 | 12),
            // Unreachable, too big, time exceeded, parameter problem.
            (IpAddr::V6(_), kind) => matches!(kind, 1..=4),
        };
        is_error.then(|| self.quoted_at(frame, 8)).flatten()
    }

    /// The packet that an ICMP redirect quotes: it knows a better way for that packet.
    pub fn redirected(&self, frame: &[u8]) -> Option<Headers> {
        let message = self.payload(frame)?;
        match (self.src, *message.first()?) {
            (IpAddr::V4(_), 5) => self.quoted_at(frame, 8),
            // RFC 4861, 4.5: options behind two addresses, of which 4 is the packet; before
            // it there may be the address of a link.
            (IpAddr::V6(_), 137) => {
                let is_it = |at: &usize| message.get(*at) == Some(&4);
                let at = [40, 48].into_iter().find(is_it)?;
                self.quoted_at(frame, at + 8)
            }
            _ => None,
        }
    }

    /// The packet that an ICMP message has at an offset.
    fn quoted_at(&self, frame: &[u8], at: usize) -> Option<Headers> {
        if self.carried != Carried::Icmp || self.is_fragment {
            return None;
        }
        // Of the frame up to the end of the message.
        let frame = &frame[..self.end];
        match self.src {
            IpAddr::V4(_) => of_ipv4(frame, self.start + at),
            IpAddr::V6(_) => of_ipv6(frame, self.start + at),
        }
    }
}

/// The sum of 16-bit words modulo 65 535, which is how one's complement adds
/// (RFC 1071). Zero and 65 535 are the same to it.
pub fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [high] => u64::from(high) << 8,
        _ => 0,
    });
    words.sum::<u64>() % 65_535
}
