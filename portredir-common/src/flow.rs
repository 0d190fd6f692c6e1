//! Flow state: which replies to restore, and to what.
//!
//! The rule says where a packet goes; state is needed for the way back, as a
//! client may also have dialled the target port itself. There is one entry per
//! flow, never a pair, so nothing can be half lost, and every packet of the
//! client puts a lost entry back. For TCP the kernel's sockets are the truth:
//! an entry only ever counts as alive when a socket stands behind it.
//!
//! Three tables, so that a flood of one kind costs no flow of another: `Syn`
//! for what anybody can send, `Tcp` for connections that a server has accepted,
//! `Udp`. `Tcp` has direct connections too, dialled by the target port itself:
//! so a forged packet to a dialled port cannot claim one.

use crate::net::{Addr, Port, Protocol};
use crate::verdict::Reason;

/// A flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// TCP flows that no server has accepted yet: a SYN, or a packet that draws a
    /// RST.
    Syn,
    /// TCP connections.
    Tcp,
    /// UDP flows.
    Udp,
}

/// One flow, seen from this host.
///
/// In the flow tables and in `GIVEN…` it is the translated flow, as the server's
/// socket knows it; in `REMAP…` it is the original one, as the client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// The remote end.
    pub client: Addr,
    /// The address of this host that the client dialled.
    pub local: Addr,
    /// The port of the remote end.
    pub client_port: Port,
    /// The port of this host.
    pub local_port: Port,
    /// [`Protocol`].
    pub protocol: u8,
    /// IP version, 4 or 6.
    pub version: u8,
    /// Always zero.
    pub pad: [u8; 2],
}

impl FlowKey {
    /// Whose ports it has.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRule`] for others than TCP and UDP, of which there are no flows.
    #[inline(always)]
    pub const fn protocol(&self) -> Result<Protocol, Reason> {
        const TCP: u8 = Protocol::Tcp as u8;
        const UDP: u8 = Protocol::Udp as u8;
        match self.protocol {
            TCP => Ok(Protocol::Tcp),
            UDP => Ok(Protocol::Udp),
            _ => Err(Reason::NoRule),
        }
    }

    /// As it lies in memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..16].copy_from_slice(&self.client.octets());
        bytes[16..32].copy_from_slice(&self.local.octets());
        bytes[32..34].copy_from_slice(&self.client_port.bytes());
        bytes[34..36].copy_from_slice(&self.local_port.bytes());
        bytes[36] = self.protocol;
        bytes[37] = self.version;
        bytes
    }
}

/// What the client sees of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Flow {
    /// The port of this host that the client dialled.
    pub dialled_port: Port,
    /// The port the client really uses; differs from the key's on a collision.
    pub client_port: Port,
    /// The rule that made the flow; meaningless for direct flows.
    pub rule: u16,
    /// When a packet of it was last seen.
    pub seen: Epoch,
}

impl Flow {
    /// As one word, never 0: nobody dials port 0.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.dialled_port.get() as u64
            | (self.client_port.get() as u64) << 16
            | (self.rule as u64) << 32
            | (self.seen.0 as u64) << 48
    }

    /// The flow that [`Self::to_word`] made.
    #[expect(clippy::cast_possible_truncation, reason = "16 bits of it")]
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self {
            dialled_port: Port::new(word as u16),
            client_port: Port::new((word >> 16) as u16),
            rule: (word >> 32) as u16,
            seen: Epoch((word >> 48) as u16),
        }
    }
}

/// A moment of `CLOCK_MONOTONIC` in units of 2^30 ns, some 1.07 s. It comes
/// again after 19.5 hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Epoch(pub u16);

impl Epoch {
    /// The unit in nanoseconds.
    pub const UNIT_NS: u64 = 1 << 30;

    /// The epoch of a moment.
    #[expect(clippy::cast_possible_truncation, reason = "it comes again")]
    #[inline(always)]
    #[must_use]
    pub const fn at(now_ns: u64) -> Self {
        Self((now_ns / Self::UNIT_NS) as u16)
    }

    /// How long ago an earlier moment was; one that is a little later, by the
    /// clock of another processor, is now.
    #[inline(always)]
    #[must_use]
    pub const fn since(self, earlier: Self) -> u16 {
        const LATER: u16 = 0xff00;
        let age = self.0.wrapping_sub(earlier.0);
        if age >= LATER { 0 } else { age }
    }
}

/// An idle UDP flow no longer defends its client port after this time, in units
/// of [`Epoch`]: 120 s, as long as netfilter keeps a UDP stream
/// (`nf_conntrack_udp_timeout_stream`).
pub const UDP_IDLE: u16 = 112;

/// What becomes of the client port of a packet that goes to a target.
///
/// One number: of two the compiler makes one anyway, and with what is left in a
/// register when there is an error the verifier sees a pointer in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted(u64);

impl Admitted {
    const NEW: u64 = 1 << 16;

    /// A packet of a flow that has begun.
    #[inline(always)]
    #[must_use]
    pub const fn known(client_port: Port) -> Self {
        Self(client_port.half() as u64)
    }

    /// A packet that began a flow, if `is_new`.
    #[inline(always)]
    #[must_use]
    pub const fn begun(client_port: Port, is_new: bool) -> Self {
        let new = if is_new { Self::NEW } else { 0 };
        Self(client_port.half() as u64 | new)
    }

    /// The client port the server sees.
    #[expect(clippy::cast_possible_truncation, reason = "16 bits of it")]
    #[inline(always)]
    #[must_use]
    pub const fn client_port(self) -> Port {
        Port::from_half(self.0 as u16)
    }

    /// Whether the packet began a flow.
    #[inline(always)]
    #[must_use]
    pub const fn is_new(self) -> bool {
        self.0 & Self::NEW != 0
    }

    #[inline(always)]
    pub(crate) const fn to_word(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }
}

/// The client's side of a flow: the ports it uses and sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The port of this host that the client dialled.
    pub dialled_port: Port,
    /// The client's port.
    pub client_port: Port,
    /// The rule for the dialled port.
    pub rule: u16,
}

impl Original {
    /// It as the tables have it.
    #[inline(always)]
    #[must_use]
    pub const fn flow(self, now: Epoch) -> Flow {
        Flow {
            dialled_port: self.dialled_port,
            client_port: self.client_port,
            rule: self.rule,
            seen: now,
        }
    }

    /// Whether `flow` is this one translated.
    #[inline(always)]
    pub(crate) fn is(self, flow: &Flow) -> bool {
        self.dialled_port == flow.dialled_port && self.client_port == flow.client_port
    }
}

/// No rule.
pub const NOT_BEGUN: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_may_be_a_little_later() {
        let epoch = |s: u64| Epoch::at(s * 1_000_000_000);
        assert_eq!(epoch(1000).since(epoch(880)), 112);
        assert_eq!(epoch(1000).since(epoch(1000)), 0);
        assert_eq!(epoch(1000).since(epoch(1010)), 0);
        // After it has come again.
        assert_eq!(Epoch(3).since(Epoch(u16::MAX)), 4);
    }
}

// COMPATIBILITY: names of the earlier layout.
#[doc(hidden)]
pub use crate::datapath::conntrack::*;
#[doc(hidden)]
pub use crate::kernel::{FlowTables, Host, Met, Socket};
#[doc(hidden)]
pub use crate::net::Flags;
