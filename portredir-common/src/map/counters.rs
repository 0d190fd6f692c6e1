//! Keys and values of the maps that count.

/// A key of `COUNTERS` and `REPLIES_MORE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct CounterKey {
    /// The ifindex of the interface where the hook runs.
    pub ifindex: u32,
    /// The index of the rule.
    pub rule: u32,
}

/// A value of `COUNTERS` and `REPLIES_MORE`, one per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// The number of packets rewritten; a GRO packet counts as the segments it stands for.
    pub packets: u64,
    /// The number of their bytes, with all headers the hook saw.
    pub bytes: u64,
    /// The number of flows begun; 0 for replies.
    pub flows: u64,
    /// The time of the last packet, `CLOCK_MONOTONIC` in nanoseconds; 0 when none, 1 for
    /// replies.
    pub last_hit_ns: u64,
}

impl Counter {
    /// Adds another counter to this one.
    pub fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.flows += other.flows;
        self.last_hit_ns = self.last_hit_ns.max(other.last_hit_ns);
    }
}

impl CounterKey {
    /// The index of no interface: counters of interfaces that were removed, and
    /// of all packets where the kernel does not name the interface.
    pub const UNKNOWN_IFINDEX: u32 = 0;

    /// The place of this key in `HITS` and `REPLIES`.
    #[inline(always)]
    #[must_use]
    pub const fn place(self) -> u32 {
        // Rules have numbers from 0 on, interfaces from 1 on: up to 32 of each share no
        // place. A product would take longer than the rest.
        (self.rule ^ self.ifindex << 5) % Hits::PLACES
    }
}

/// A value of `HITS` and `REPLIES`, one per CPU: a counter as in `COUNTERS`, but found by
/// an index. A place belongs to the first pair of rule and interface that came to
/// it on its CPU; another that has the same place is counted in `COUNTERS`, or in
/// `REPLIES_MORE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hits {
    /// The key that the place belongs to.
    pub key: CounterKey,
    /// The counter; the place belongs to nobody while `last_hit_ns` is 0.
    pub counter: Counter,
}

impl Hits {
    /// The number of places.
    pub const PLACES: u32 = 1024;
}

/// A value of `OUTCOMES`, one per CPU: the outcomes of the flows of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Outcomes {
    /// The number of TCP connections that a server accepted.
    pub accepted: u64,
    /// The number of answers that refused a flow: RSTs to a SYN, and ICMP errors of type
    /// "destination unreachable".
    pub refused: u64,
}

impl Outcomes {
    /// Adds other outcomes to these.
    pub fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_inside_the_map() {
        for ifindex in 0..=255 {
            for rule in 0..=255 {
                assert!(CounterKey { ifindex, rule }.place() < Hits::PLACES);
            }
        }
    }
}
