//! The record that a program writes about a packet, or about a socket's peer, while
//! somebody traces: the elements of the ring buffer `TRACE`.
//!
//! Programs only copy bytes; user space reads what they mean.

use crate::net::{Addr, Port};

/// The hook that a record is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TraceHook {
    /// XDP.
    Xdp,
    /// TC ingress.
    Ingress,
    /// TC egress.
    Egress,
    /// TC ingress of `lo`, beside the hooks of local clients.
    Assign,
    /// `connect(2)` of a local client.
    Connect,
    /// `sendmsg(2)` of a local client.
    Send,
    /// `recvmsg(2)` of a local client.
    Receive,
    /// `getpeername(2)` of a local client.
    PeerName,
    /// The look-up of a listener.
    Lookup,
}

impl TraceHook {
    /// Every hook, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Xdp,
        Self::Ingress,
        Self::Egress,
        Self::Assign,
        Self::Connect,
        Self::Send,
        Self::Receive,
        Self::PeerName,
        Self::Lookup,
    ];
}

/// The first part of each record.
///
/// **Shape**: 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TraceHead {
    /// The time, `CLOCK_MONOTONIC` in nanoseconds.
    pub at_ns: u64,
    /// The ifindex of the interface; 0 where it is not known.
    pub ifindex: u32,
    /// The number of the [`Reason`](crate::verdict::Reason).
    pub reason: u32,
    /// The number of the [`TraceHook`].
    pub hook: u32,
    /// The number of the rule that counted the packet, and [`Self::RULE`]; else 0.
    pub rule: u32,
    /// The number of the process that owns the socket; 0 for a packet.
    pub pid: u32,
    /// Padding, always zero.
    pub pad: u32,
}

impl TraceHead {
    /// The bit of [`Self::rule`] that says that there is one.
    pub const RULE: u32 = 1 << 31;
}

/// The first bytes of a packet, as words lie in memory.
pub type TraceBytes = [u32; TRACE_WORDS];

/// The number of words in [`TraceBytes`].
pub const TRACE_WORDS: usize = 32;

/// The record about a packet.
///
/// **Shape**: 304 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TracedPacket {
    /// The first part.
    pub head: TraceHead,
    /// The length of the packet in bytes.
    pub len: u32,
    /// The number of bytes in `before` and in `after`.
    pub captured: u32,
    /// Whether the packet begins with an Ethernet header: 1 or 0.
    pub is_ethernet: u32,
    /// The number of packets of the wire that this packet stands for.
    pub segments: u32,
    /// The packet as it came.
    pub before: TraceBytes,
    /// The packet as it went on.
    pub after: TraceBytes,
}

/// The record about a socket's peer.
///
/// **Shape**: 88 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TracedSocket {
    /// The first part.
    pub head: TraceHead,
    /// The address of the client; all zero where it is not known.
    pub client: Addr,
    /// The address of the peer.
    pub peer: Addr,
    /// The port of the client; 0 where it is not known.
    pub client_port: Port,
    /// The port of the peer, before.
    pub port: Port,
    /// The port of the peer, after.
    pub port_after: Port,
    /// The number of the protocol.
    pub protocol: u8,
    /// The IP version, 4 or 6.
    pub version: u8,
    /// The name of the process that owns the socket, up to a zero.
    pub comm: [u8; 16],
}

/// The work area of a CPU: a value of `TRACE_CPU`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TraceCpu {
    /// The begin of the present window of time.
    pub window_ns: u64,
    /// The number of records in this window.
    pub in_window: u64,
    /// The number of records that were not written: over the rate, or without room.
    pub lost: u64,
    /// The record that is being made.
    pub packet: TracedPacket,
}

impl TraceCpu {
    /// The length of a window of time.
    pub const WINDOW_NS: u64 = 100_000_000;
    /// The greatest number of records of a CPU in a window.
    pub const MOST: u64 = 500;
}

/// Reads records out of bytes, as the ring buffer gives them.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn words(&mut self) -> Option<TraceBytes> {
        let mut words = [0; TRACE_WORDS];
        for word in &mut words {
            *word = self.word()?;
        }
        Some(words)
    }

    fn port(&mut self) -> Option<Port> {
        self.take().map(u16::from_be_bytes).map(Port::new)
    }

    fn head(&mut self) -> Option<TraceHead> {
        Some(TraceHead {
            at_ns: self.take().map(u64::from_ne_bytes)?,
            ifindex: self.word()?,
            reason: self.word()?,
            hook: self.word()?,
            rule: self.word()?,
            pid: self.word()?,
            pad: self.word()?,
        })
    }
}

/// A record of the ring buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is no heap here, and one record at a time"
)]
pub enum Record {
    /// A packet.
    Packet(TracedPacket),
    /// A socket's peer.
    Socket(TracedSocket),
}

impl Record {
    /// The first part.
    #[must_use]
    pub const fn head(&self) -> &TraceHead {
        match self {
            Self::Packet(packet) => &packet.head,
            Self::Socket(socket) => &socket.head,
        }
    }

    /// Reads a record; `None` when the bytes are none.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let reader = &mut Reader(bytes);
        let head = reader.head()?;
        if bytes.len() == size_of::<TracedPacket>() {
            return Some(Self::Packet(TracedPacket {
                head,
                len: reader.word()?,
                captured: reader.word()?,
                is_ethernet: reader.word()?,
                segments: reader.word()?,
                before: reader.words()?,
                after: reader.words()?,
            }));
        }
        (bytes.len() == size_of::<TracedSocket>()).then_some(())?;
        Some(Self::Socket(TracedSocket {
            head,
            client: Addr::new(reader.take()?),
            peer: Addr::new(reader.take()?),
            client_port: reader.port()?,
            port: reader.port()?,
            port_after: reader.port()?,
            protocol: reader.take::<1>()?[0],
            version: reader.take::<1>()?[0],
            comm: reader.take()?,
        }))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    fn head_bytes() -> Vec<u8> {
        let mut bytes = 7_u64.to_ne_bytes().to_vec();
        for word in [1_u32, 2, 3, TraceHead::RULE | 4, 5, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }

    const HEAD: TraceHead = TraceHead {
        at_ns: 7,
        ifindex: 1,
        reason: 2,
        hook: 3,
        rule: TraceHead::RULE | 4,
        pid: 5,
        pad: 0,
    };

    #[test]
    fn hooks_have_the_numbers_of_their_places() {
        for (i, hook) in TraceHook::ALL.into_iter().enumerate() {
            assert_eq!(hook as usize, i);
        }
    }

    #[test]
    fn a_packet_is_read_as_it_lies_in_memory() {
        let mut bytes = head_bytes();
        for word in [60_u32, 54, 1, 2] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend((0..=255_u8).collect::<Vec<_>>());
        assert_eq!(bytes.len(), size_of::<TracedPacket>());
        let Some(Record::Packet(packet)) = Record::read(&bytes) else {
            panic!("no packet");
        };
        assert_eq!((packet.head, packet.len, packet.captured), (HEAD, 60, 54));
        assert_eq!((packet.is_ethernet, packet.segments), (1, 2));
        assert_eq!(packet.before[0].to_ne_bytes(), [0, 1, 2, 3]);
        assert_eq!(packet.after[31].to_ne_bytes(), [252, 253, 254, 255]);
    }

    #[test]
    fn a_socket_is_read_as_it_lies_in_memory() {
        let mut bytes = head_bytes();
        bytes.extend([1; 16]);
        bytes.extend([2; 16]);
        bytes.extend([0, 9, 0, 80, 31, 144, 6, 4]);
        bytes.extend(*b"curl\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(bytes.len(), size_of::<TracedSocket>());
        let socket = TracedSocket {
            head: HEAD,
            client: Addr::new([1; 16]),
            peer: Addr::new([2; 16]),
            client_port: Port::new(9),
            port: Port::new(80),
            port_after: Port::new(8080),
            protocol: 6,
            version: 4,
            comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
        };
        assert_eq!(Record::read(&bytes), Some(Record::Socket(socket)));
    }

    #[test]
    fn other_bytes_are_no_record() {
        for len in [0, 8, 31, 87, 89, 303, 305, 4096] {
            assert_eq!(Record::read(&std::vec![0; len]), None, "{len}");
        }
    }
}
