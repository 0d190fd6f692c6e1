//! Keys and values of the BPF maps, as both sides of the kernel boundary see
//! them. Every type is `repr(C)`, has no hidden padding and no invalid bit
//! pattern; ports and addresses are bytes in network order.

pub mod bucket;
pub mod counters;
pub mod port_remap;
pub mod rules;
pub mod sockets;

/// Value of `LOCAL`: how far an address of this host reaches.
pub mod local {
    /// ConnectedPeers through any interface.
    pub const ANYWHERE: u8 = 1;
    /// ConnectedPeers through `lo` alone, as `::1` (a martian elsewhere).
    pub const LOOPBACK: u8 = 2;
}

/// Key of `STATE`, which programs do not touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct StateKey {
    /// Which document.
    pub document: u32,
    /// Which part of it.
    pub chunk: u32,
}

#[cfg(feature = "user")]
mod pod {
    #![expect(
        unsafe_code,
        reason = "aya reads and writes these types as plain bytes"
    )]

    use super::StateKey;
    use super::bucket::Seed;
    use super::counters::{Counter, CounterKey, Hits};
    use super::rules::{AddrKey, Candidates, IfaceKey, PreviousTargets, SourceKey};
    use super::sockets::ListenerKey;
    use crate::flow::FlowKey;
    use crate::net::Addr;

    // SAFETY: all are `repr(C)` or `repr(transparent)`, made of integers and
    // byte arrays alone, and without padding (`tests::layout`).
    unsafe impl aya::Pod for Addr {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Hits {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Seed {}
    // SAFETY: as above.
    unsafe impl aya::Pod for CounterKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListenerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for StateKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PreviousTargets {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AddrKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SourceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Candidates {}
    // SAFETY: as above.
    unsafe impl aya::Pod for IfaceKey {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Flow, FlowKey};
    use crate::map::counters::{Counter, CounterKey, Hits};
    use crate::map::rules::{AddrKey, Candidates, IfaceKey, PortEntry, PreviousTargets, SourceKey};
    use crate::map::sockets::{ConnectedPeers, ListenerKey};
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
        assert_eq!(size_of::<ListenerKey>(), 16 + 2 + 1 + 1);
        assert_eq!(
            size_of::<ConnectedPeers>(),
            ConnectedPeers::PEERS * (16 + 2 + 2) + 4
        );
    }
}
