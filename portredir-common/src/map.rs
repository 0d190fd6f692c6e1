//! Keys and values of the BPF maps, as both sides of the kernel boundary see
//! them.
//!
//! Every type is `repr(C)`, and has no hidden padding and no invalid bit pattern. Maps
//! are pinned, and a program of another version may have filled them: layouts stay.

pub mod bucket;
pub mod counters;
pub mod ends;
pub mod entry;
pub mod forward;
pub mod hash;
pub mod packet_path;
pub mod port_remap;
pub mod rules;
pub mod sockets;
pub mod targets;
pub mod trace;

/// The values of `LOCAL`: the interfaces on which packets reach an address of this host.
pub mod local {
    /// Any interface.
    pub const ANYWHERE: u8 = 1;
    /// Only `lo`, as for `::1` (a martian elsewhere).
    pub const LOOPBACK: u8 = 2;
}

/// A key of `STATE`, which programs do not touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct StateKey {
    /// The number of the document.
    pub document: u32,
    /// The number of the part of the document.
    pub chunk: u32,
}

#[cfg(feature = "user")]
mod pod {
    #![expect(
        unsafe_code,
        reason = "aya reads and writes these types as plain bytes"
    )]

    use super::StateKey;
    use super::counters::{Counter, CounterKey, Hits, Outcomes};
    use super::hash::Seed;
    use super::rules::{AddrKey, Candidates, IfaceKey, PreviousTargets, SourceKey};
    use super::sockets::{ForwardPeer, ListenerKey};
    use super::targets::Target;
    use super::trace::TraceCpu;
    use crate::flow::FlowKey;
    use crate::net::Addr;

    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for Addr {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for Hits {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for Seed {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for CounterKey {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for Counter {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for Outcomes {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for ListenerKey {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for StateKey {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for PreviousTargets {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for AddrKey {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for SourceKey {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for Candidates {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for IfaceKey {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for TraceCpu {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for Target {}
    // SAFETY: integers and byte arrays alone, without padding (`tests::layout`).
    unsafe impl aya::Pod for ForwardPeer {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Flow, FlowKey};
    use crate::map::counters::{Counter, CounterKey, Hits, Outcomes};
    use crate::map::rules::{AddrKey, Candidates, IfaceKey, PortEntry, PreviousTargets, SourceKey};
    use crate::map::sockets::{ConnectedPeers, ForwardPeers, ListenerKey};
    use crate::map::targets::Target;
    use crate::map::trace::{TraceCpu, TraceHead, TracedPacket, TracedSocket};
    use core::mem::{offset_of, size_of};

    #[test]
    fn layout() {
        assert_eq!(size_of::<PortEntry>(), 2 + 2 + 2 + 2);
        assert_eq!(size_of::<PreviousTargets>(), 4 * 2);
        assert_eq!(size_of::<AddrKey>(), 4 + 16);
        assert_eq!(size_of::<SourceKey>(), 4 + 4 + 16);
        assert_eq!(size_of::<Candidates>(), 8 * (2 + 2 + 2 + 1 + 1));
        assert_eq!(size_of::<IfaceKey>(), 4 + 4);
        assert_eq!(size_of::<StateKey>(), 4 + 4);
        assert_eq!(size_of::<FlowKey>(), 16 + 16 + 2 + 2 + 1 + 1 + 2);
        assert_eq!(offset_of!(FlowKey, client_port), 32);
        assert_eq!(offset_of!(FlowKey, protocol), 36);
        assert_eq!(size_of::<Flow>(), 2 + 2 + 2 + 2);
        assert_eq!(size_of::<CounterKey>(), 4 + 4);
        assert_eq!(size_of::<Counter>(), 4 * 8);
        assert_eq!(size_of::<Hits>(), 4 + 4 + 4 * 8);
        assert_eq!(size_of::<Outcomes>(), 2 * 8);
        assert_eq!(size_of::<ListenerKey>(), 16 + 2 + 1 + 1);
        assert_eq!(
            size_of::<ConnectedPeers>(),
            ConnectedPeers::PEERS * (16 + 2 + 2) + 4
        );
        assert_eq!(size_of::<Target>(), 16 + 4 * 2 + 8);
        assert_eq!(
            size_of::<ForwardPeers>(),
            ForwardPeers::PEERS * (2 * 16 + 4 * 2) + 4
        );
        assert_eq!(size_of::<TraceHead>(), 8 + 6 * 4);
        assert_eq!(size_of::<TracedPacket>(), 32 + 4 * 4 + 2 * 128);
        assert_eq!(size_of::<TracedSocket>(), 32 + 2 * 16 + 3 * 2 + 2 + 16);
        assert_eq!(size_of::<TraceCpu>(), 3 * 8 + 304);
    }
}
