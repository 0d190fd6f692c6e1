//! The maps of targets with an address, and the flows to them.

use crate::flow::{Admitted, FlowKey, FlowTable, Segment};
use crate::kernel::buckets::FlowBuckets;
use crate::map::forward::{ForwardEntry, Forwarded};
use crate::map::hash::Hash;
use crate::map::targets::{OWN_ADDRS, Service, Slot, Target};
use crate::net::{Addr, Port};
use crate::packed::{Niche, Packed};
use crate::verdict::Reason;

/// The maps of services, slots and targets, and the buckets of forwarded flows.
pub trait ForwardMaps: FlowBuckets {
    /// The bucket of a forwarded flow; always `Some`, but the verifier does not know.
    fn forward_bucket(&self, table: FlowTable, hash: Hash) -> Option<Self::Bucket<'_>>;

    /// Keeps the ends of the flow at a place, and the time, for lists of flows.
    fn keep_forward_ends(&self, place: ForwardPlace, key: &FlowKey);

    /// The service of a number for an IP version; an unused one where there is none.
    fn service(&self, number: u16, version: u8) -> Service;

    /// A slot; an unused one where there is none.
    fn slot(&self, index: u32) -> Slot;

    /// The target of a number.
    fn target(&self, number: u16) -> Option<&Target>;

    /// The address of this host with a number.
    fn own_addr(&self, number: u16) -> Option<&Addr>;

    /// The number of an address of this host.
    fn own_number(&self, addr: &Addr) -> Option<u16>;

    /// Whether a target has this address.
    fn is_target_addr(&self, addr: &Addr) -> bool;
}

/// A place in a bucket of forwarded flows.
#[derive(Clone, Copy, Debug)]
pub struct ForwardPlace {
    /// The table.
    pub table: FlowTable,
    /// The hash of the flow.
    pub hash: Hash,
    /// The number of the place in its bucket.
    pub place: usize,
}

/// The flows to targets with an address.
///
/// The methods are BPF functions of their own in the kernel; the bodies of the first three
/// are in [`forward_lookup`](crate::datapath::forward_lookup).
pub trait ForwardTables: ForwardMaps {
    /// Tells about the flow that a packet of a client may belong to; the packet is noted if
    /// it does. `key` is the translated flow.
    fn meet(&self, key: &FlowKey, dialled: &Addr, packet: ClientPacket) -> Met;

    /// Begins a flow; `key` is the translated one.
    fn begin(&self, key: &FlowKey, begun: NewForward);

    /// The flow that a packet of a target belongs to; the packet is noted if it does.
    fn meet_reply(&self, key: &FlowKey, segment: Segment) -> Option<Reply>;

    /// Keeps the client's own port of a translated flow that is given another one, where
    /// [`FlowTables::own_port`](crate::kernel::FlowTables::own_port) finds it.
    ///
    /// # Errors
    ///
    /// [`Reason::TableFull`].
    fn set_own_port(&self, key: &FlowKey, client_port: Port) -> Result<(), Reason>;
}

/// A packet of a client, as [`ForwardTables::meet`] compares it with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientPacket {
    /// The segment.
    pub segment: Segment,
    /// The port that the client connected to.
    pub dst_port: Port,
    /// Whether the key has another port than the client.
    pub is_remapped: bool,
}

/// **Shape**, from the lowest bit: flags 15, whether the client has another port,
/// destination port 16, number 32.
impl Packed for ClientPacket {
    #[inline(always)]
    fn pack(self) -> u64 {
        self.segment.pack() | self.dst_port.pack() << 16 | u64::from(self.is_remapped) << 14
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        const REMAPPED: u64 = 1 << 14;
        Self {
            segment: Segment::unpack(word & !REMAPPED),
            dst_port: Port::unpack(word >> 16),
            is_remapped: word & REMAPPED != 0,
        }
    }
}

/// The knowledge about the flow of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Met {
    /// Nothing.
    Nothing,
    /// The flow has begun.
    Begun,
    /// The flow has begun by a SYN, which the target has not answered.
    Opening,
    /// The packet has made a connection of the flow.
    Confirmed,
    /// The flow has ended, and a new one begins.
    Ended,
    /// Another flow has this client port at the target.
    Other,
}

impl Packed for Met {
    #[inline(always)]
    fn pack(self) -> u64 {
        self as u64
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        const BEGUN: u64 = Met::Begun as u64;
        const OPENING: u64 = Met::Opening as u64;
        const CONFIRMED: u64 = Met::Confirmed as u64;
        const ENDED: u64 = Met::Ended as u64;
        const OTHER: u64 = Met::Other as u64;
        match word {
            BEGUN => Self::Begun,
            OPENING => Self::Opening,
            CONFIRMED => Self::Confirmed,
            ENDED => Self::Ended,
            OTHER => Self::Other,
            _ => Self::Nothing,
        }
    }
}

/// The knowledge about a packet to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardFlow {
    /// The flow has begun.
    Admitted(Admitted),
    /// The flow has not begun.
    Free(FreeSlot),
}

/// The target that a client's new flow goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeSlot {
    /// The number of the target, [`Slot::RESTS`] or [`Slot::DROPS`].
    pub target: u16,
    /// Whether another flow has the client's port at the target.
    pub is_taken: bool,
}

impl Packed for FreeSlot {
    #[inline(always)]
    fn pack(self) -> u64 {
        self.target.pack() | u64::from(self.is_taken) << 16
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self {
            target: u16::unpack(word),
            is_taken: word >> 16 & 1 != 0,
        }
    }
}

/// **Shape**: the word of what is in it, and at bit 32 which of the two it is.
impl Packed for ForwardFlow {
    #[inline(always)]
    fn pack(self) -> u64 {
        match self {
            Self::Admitted(admitted) => admitted.pack(),
            Self::Free(slot) => slot.pack() | Self::FREE,
        }
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        if word & Self::FREE == 0 {
            Self::Admitted(Admitted::unpack(word))
        } else {
            Self::Free(FreeSlot::unpack(word))
        }
    }
}

impl ForwardFlow {
    const FREE: u64 = 1 << 32;
}

/// A flow that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewForward {
    /// The number of the address that the client connected to; 0 when nothing is translated.
    pub own: u16,
    /// The flow.
    pub flow: Forwarded,
    /// Whether [`Forwarded::target`] is the number of a rule.
    pub is_by_rule: bool,
    /// Whether the client has another port than the target sees.
    pub is_remapped: bool,
    /// The number that the client has to acknowledge, of a TCP flow whose SYN was answered.
    pub answered: Option<u32>,
}

/// The flow of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The number of the address that the client connected to; 0 of a direct flow.
    pub own: u16,
    /// The entry, as it was before this packet.
    pub entry: ForwardEntry,
    /// Whether this packet refuses the connection.
    pub is_refusal: bool,
}

/// **Shape**: the word of the entry without its epoch, its bits of the hash and bit 59. In
/// their places are, from the lowest bit: always one, the number of the address 12, and at
/// bit 59 whether the packet refuses the connection.
impl Packed for Reply {
    #[inline(always)]
    fn pack(self) -> u64 {
        let own = u64::from(self.own) & Self::OWN_MAX;
        let refusal = if self.is_refusal { Self::REFUSAL } else { 0 };
        self.entry.0 & Self::KEPT | Self::FOUND | own << 1 | refusal
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self {
            own: u16::unpack(word >> 1 & Self::OWN_MAX),
            entry: ForwardEntry(word & Self::KEPT),
            is_refusal: word & Self::REFUSAL != 0,
        }
    }
}

impl Reply {
    const FOUND: u64 = 1;
    const OWN_MAX: u64 = OWN_ADDRS as u64 - 1;
    const REFUSAL: u64 = 1 << 59;
    const KEPT: u64 = !(0xffff | 0x3ff << 48 | Self::REFUSAL);
}

impl Niche for Reply {
    const NONE: u64 = 0;
}
