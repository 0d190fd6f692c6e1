//! The ends of flows, beside the flow tables: an entry has a hash of them alone.
//!
//! The map is written when an entry is added, and read by user space only, which lists
//! flows. There is an element for each place of the buckets of UDP,
//! and of the buckets of forwarded connections. There are no locks: what
//! is read here counts only if its hash is that of the entry.

use crate::flow::FlowKey;
use crate::map::entry::Word;
use crate::net::{Addr, Port, Protocol, Version};

/// The ends of one flow.
///
/// **Shape**: 40 bytes; client address at 0, local address at 16, client port at 32, local
/// port at 34, and at 36 the time at which the flow began, in units of 2^30 ns of
/// `CLOCK_MONOTONIC`, host order.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Ends<W> {
    words: [W; 5],
}

/// A flow as [`Ends`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The translated flow.
    pub key: FlowKey,
    /// The time at which the flow began, in [`Epoch::UNIT_NS`](crate::flow::Epoch::UNIT_NS).
    pub since: u32,
}

impl<W: Word> Ends<W> {
    /// Writes the addresses of a flow.
    #[inline(always)]
    pub fn write_addrs(&self, client: Addr, local: Addr) {
        let (client, local) = (client.words(), local.words());
        self.words[0].store(pair(client[0], client[1]));
        self.words[1].store(pair(client[2], client[3]));
        self.words[2].store(pair(local[0], local[1]));
        self.words[3].store(pair(local[2], local[3]));
    }

    /// Writes the ports of a flow, and the time at which it began.
    #[inline(always)]
    pub fn write_ports(&self, client_port: Port, local_port: Port, since: u32) {
        let (client, local) = (client_port.bytes(), local_port.bytes());
        let ports = u32::from_ne_bytes([client[0], client[1], local[0], local[1]]);
        self.words[4].store(pair(ports, since));
    }

    /// The flow of a protocol, if one was written.
    #[must_use]
    pub fn read(&self, protocol: Protocol) -> Option<Begun> {
        let words = self.words.each_ref().map(Word::load);
        let addr = |i: usize| {
            let (low, high) = (words[i].to_ne_bytes(), words[i + 1].to_ne_bytes());
            let mut octets = [0; 16];
            octets[..8].copy_from_slice(&low);
            octets[8..].copy_from_slice(&high);
            Addr::new(octets)
        };
        let [a, b, c, d, since @ ..] = words[4].to_ne_bytes();
        let (client_port, local_port) = Port::pair(u32::from_ne_bytes([a, b, c, d]));
        if words == [0; 5] {
            return None;
        }
        let client = addr(0);
        let version = if client.is_v4() {
            Version::V4
        } else {
            Version::V6
        };
        Some(Begun {
            key: FlowKey {
                client,
                local: addr(2),
                client_port,
                local_port,
                protocol: protocol as u8,
                version: version as u8,
                pad: [0; 2],
            },
            since: u32::from_ne_bytes(since),
        })
    }
}

/// The word that has these two halves in memory, in this order.
#[inline(always)]
const fn pair(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (second as u64) << 32
    } else {
        (first as u64) << 32 | second as u64
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn ends_are_read_as_they_were_written() {
        let v6 = |last: u8| {
            let mut octets = [0x20; 16];
            octets[15] = last;
            Addr::new(octets)
        };
        let v4 = |last: u8| Addr::v4([192, 0, 2, last]);
        let flow = |client, local, version| FlowKey {
            client,
            local,
            client_port: Port::new(50_000),
            local_port: Port::new(5353),
            protocol: Protocol::Udp as u8,
            version: version as u8,
            pad: [0; 2],
        };
        let ends = Ends::<AtomicU64>::default();
        assert_eq!(ends.read(Protocol::Udp), None);
        for key in [
            flow(v4(1), v4(2), Version::V4),
            flow(v6(3), v6(4), Version::V6),
        ] {
            let since = 70_000;
            ends.write_addrs(key.client, key.local);
            ends.write_ports(key.client_port, key.local_port, since);
            assert_eq!(ends.read(Protocol::Udp), Some(Begun { key, since }));
        }
        assert_eq!(size_of::<Ends<AtomicU64>>(), 40);
    }
}
