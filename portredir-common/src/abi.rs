//! Keys and values of the BPF maps, as both sides of the kernel boundary see
//! them. Every type is `repr(C)`, has no hidden padding and no invalid bit
//! pattern; ports and addresses are bytes in network order.

use crate::verdict::Reason;

/// A TCP or UDP port in network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Port(u16);

impl Port {
    /// From a number.
    #[inline(always)]
    #[must_use]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// From what lies in memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_half(half: u16) -> Self {
        Self(half)
    }

    /// As it lies in memory.
    #[inline(always)]
    #[must_use]
    pub const fn half(self) -> u16 {
        self.0
    }

    /// The two that lie in a word of memory.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the halves")]
    pub const fn pair(word: u32) -> (Self, Self) {
        let (low, high) = (Self(word as u16), Self((word >> 16) as u16));
        if cfg!(target_endian = "little") {
            (low, high)
        } else {
            (high, low)
        }
    }

    /// Its bytes.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }
}

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
///
/// Words as they lie in memory: the compiler keeps them in registers, where it
/// would have each byte on the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Addr([u32; 4]);

impl Addr {
    /// Of 16 bytes in network order.
    #[must_use]
    pub const fn new(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The mapped form of an IPv4 address.
    #[must_use]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self::v4_word([u32::from_ne_bytes(octets)])
    }

    /// The same of a word that lies in memory.
    #[inline(always)]
    #[must_use]
    pub const fn v4_word([word]: [u32; 1]) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), word])
    }

    /// Of words that lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// As words that lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// Its bytes in network order.
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// 0.0.0.0, the address of servers that listen on all IPv4 addresses.
    pub const V4_ANY: Self = Self::v4([0; 4]);
    /// `::`, the address of servers that listen on all addresses.
    pub const V6_ANY: Self = Self([0; 4]);
    /// 127.0.0.1.
    pub const V4_LOOPBACK: Self = Self::v4([127, 0, 0, 1]);
    /// `::1`.
    pub const V6_LOOPBACK: Self = Self::new(1_u128.to_be_bytes());

    /// Two words of eight bytes, as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn long_words(self) -> [u64; 2] {
        let [a, b, c, d] = self.0;
        if cfg!(target_endian = "little") {
            [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]
        } else {
            [b as u64 | (a as u64) << 32, d as u64 | (c as u64) << 32]
        }
    }

    /// Whether both are the same, without a jump for each word.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        let [a, b, c, d] = self.0;
        let [e, f, g, h] = other.0;
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        let [a, b, c, _] = self.0;
        a | b | (c ^ 0xffff_u32.to_be()) == 0
    }

    /// Whether it is 127.0.0.0/8 (RFC 1122, 3.2.1.3).
    #[inline(always)]
    #[must_use]
    pub const fn is_v4_loopback(self) -> bool {
        self.is_v4() && u32::from_be(self.0[3]) >> 24 == 127
    }
}

/// The protocols that rules are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp = 6,
    /// IP protocol 17.
    Udp = 17,
}

/// The entry of one (protocol, port) of one generation. `PORTS` has those of
/// both generations side by side: traffic which no rule concerns reads nothing
/// else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct PortEntry {
    /// Where packets to this port go, when there is [`Self::MATCH`] and no
    /// condition. Host order.
    pub target: u16,
    /// The rule that says so: the index of its counters.
    pub rule: u16,
    /// [`Self::MATCH`] and those after it.
    pub flags: u16,
    /// Above 0 the rules for this port have conditions, found by it.
    pub set: u16,
}

impl PortEntry {
    /// A rule redirects packets to this port.
    pub const MATCH: u16 = 1;
    /// Some rule redirects packets here.
    pub const TARGET: u16 = 2;
    /// Flows to this port may have begun under earlier rules.
    pub const OLD: u16 = 4;
    /// Other hosts do not reach this port but by a rule.
    pub const HIDDEN: u16 = 8;
    /// The rules for this port rest while nobody listens on their target.
    pub const IF_LISTENING: u16 = 16;
    /// Of the generation 1; what is found by this entry is of the same.
    pub const GENERATION: u16 = 1 << 15;
    /// Number of elements of `PORTS`: 65 536 for TCP, then as many for UDP.
    pub const COUNT: u32 = 2 << 16;

    /// The index of a port in `PORTS`.
    #[inline(always)]
    #[must_use]
    pub const fn index(protocol: Protocol, port: Port) -> u32 {
        let half = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1 << 16,
        };
        half | port.get() as u32
    }

    /// As the one word that it is in memory.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        let [a, b] = self.target.to_ne_bytes();
        let [c, d] = self.rule.to_ne_bytes();
        let [e, f] = self.flags.to_ne_bytes();
        let [g, h] = self.set.to_ne_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    /// The entry that [`Self::to_word`] made.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
        Self {
            target: u16::from_ne_bytes([a, b]),
            rule: u16::from_ne_bytes([c, d]),
            flags: u16::from_ne_bytes([e, f]),
            set: u16::from_ne_bytes([g, h]),
        }
    }

    /// 0 or 1.
    #[inline(always)]
    #[must_use]
    pub const fn generation(self) -> u32 {
        (self.flags >> 15) as u32
    }

    #[inline(always)]
    const fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether a rule redirects packets to this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_match(self) -> bool {
        self.has(Self::MATCH)
    }

    /// Whether a rule redirects packets from elsewhere to this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_target(self) -> bool {
        self.has(Self::TARGET)
    }

    /// Whether earlier rules redirected packets to this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_old(self) -> bool {
        self.has(Self::OLD)
    }

    /// Whether packets to this port are any rule's concern.
    #[inline(always)]
    #[must_use]
    pub const fn is_dialled_or_target(self) -> bool {
        self.flags & (Self::MATCH | Self::TARGET | Self::OLD) != 0
    }

    /// Whether its packets go where [`Self::target`] says, or to itself, without
    /// conditions or exceptions.
    #[inline(always)]
    #[must_use]
    pub const fn is_plain(self) -> bool {
        const RARE: u16 = PortEntry::OLD | PortEntry::HIDDEN | PortEntry::IF_LISTENING;
        self.flags & RARE == 0 && self.set == 0
    }

    /// Whether other hosts do not reach it directly.
    #[inline(always)]
    #[must_use]
    pub const fn is_hidden(self) -> bool {
        self.has(Self::HIDDEN)
    }

    /// Whether its rules need a server.
    #[inline(always)]
    #[must_use]
    pub const fn is_if_listening(self) -> bool {
        self.has(Self::IF_LISTENING)
    }
}

/// Value of `OLD`, by [`Old::key`]: where earlier rules sent the packets of a
/// port. Host order; unused ones are 0 and at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Old {
    /// The targets, the latest first.
    pub targets: [u16; Self::COUNT],
}

impl Old {
    /// How many there can be.
    pub const COUNT: usize = 4;

    /// The key for a port of a generation.
    #[inline(always)]
    #[must_use]
    pub const fn key(generation: u32, index: u32) -> u32 {
        (generation & 1) << 17 | index
    }

    /// The generation of a key.
    #[must_use]
    pub const fn generation(key: u32) -> u32 {
        key >> 17
    }
}

/// Key of `ADDRS`: rules for one address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AddrKey {
    /// [`AddrKey::set`].
    pub set: u32,
    /// The address.
    pub addr: Addr,
}

impl AddrKey {
    /// A set of conditions of a generation; as a group it is what holds for
    /// addresses that have no rule of their own.
    #[inline(always)]
    #[must_use]
    pub const fn set(entry: PortEntry) -> u32 {
        entry.generation() << 31 | entry.set as u32
    }
}

/// Key of `SOURCES`, behind the length of the prefix: rules for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SourceKey {
    /// What `ADDRS` says, or the set itself.
    pub group: u32,
    /// IP version, 4 or 6: `::/0` is not for IPv4.
    pub version: u32,
    /// The client.
    pub client: Addr,
}

impl SourceKey {
    /// Bits before those of the address.
    pub const PREFIX: u32 = 64;
}

/// Value of `SOURCES`: the rules for such a client, the most specific first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Candidates(pub [Candidate; Self::COUNT]);

impl Candidates {
    /// How many there can be: they differ in their interfaces.
    pub const COUNT: usize = 8;
}

/// One of them. Unused ones are all zero: nobody listens on port 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Candidate {
    /// Where packets to `dialled` go.
    pub target: u16,
    /// The first port of the rule.
    pub dialled: u16,
    /// The rule: the index of its counters.
    pub rule: u16,
    /// 0 for all interfaces, else the bit of `IFACES`.
    pub on: u8,
    /// 1 where each port has a target of its own, as far from the first as it
    /// is itself.
    pub is_range: u8,
}

impl Candidate {
    /// Where packets to a port go.
    #[inline(always)]
    #[must_use]
    pub const fn target_of(&self, port: u16) -> u16 {
        if self.is_range == 0 {
            self.target
        } else {
            self.target.wrapping_add(port.wrapping_sub(self.dialled))
        }
    }
}

/// Key of `IFACES`; the value is a mask of the lists of interfaces in rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct IfaceKey {
    /// 0 or 1.
    pub generation: u32,
    /// The interface.
    pub ifindex: u32,
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

/// What is read for every packet, as one element of one map: to find an element
/// takes longer than to read it. Filled by user space, as memory; all words of it
/// are read and written whole.
#[repr(C)]
pub struct Hot<W> {
    /// The entries of ports of both generations, by [`PortEntry::index`].
    pub ports: [[W; 2]; PortEntry::COUNT as usize],
    /// Two addresses of two words each in a place, by [`own_place`]: addresses of
    /// this host that are reached from anywhere, as far as there is room; unused
    /// ones are all zero.
    pub own: [[W; 4]; OWN_PLACES as usize],
    /// Which of two generations of rules is live, 0 or 1; switching it is all that
    /// a change of rules does to traffic.
    pub generation: W,
}

/// The index of `lo`, in every network namespace (`LOOPBACK_IFINDEX` in
/// `include/net/flow.h`).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// Value of `LOCAL`: how far an address of this host reaches.
pub mod local {
    /// Dialled through any interface.
    pub const ANYWHERE: u8 = 1;
    /// Dialled through `lo` alone, as `::1` (a martian elsewhere).
    pub const LOOPBACK: u8 = 2;
}

/// Key of `COUNTERS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct CounterKey {
    /// The interface the packet came in by.
    pub ifindex: u32,
    /// Index of the rule.
    pub rule: u32,
}

/// Value of `COUNTERS`, one per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets redirected; a GRO packet counts as the segments it stands for.
    pub packets: u64,
    /// Their bytes, with all headers the hook saw.
    pub bytes: u64,
    /// Flows begun.
    pub flows: u64,
    /// The last packet, `CLOCK_MONOTONIC`, nanoseconds; 0 when none.
    pub last_hit_ns: u64,
}

impl Counter {
    /// Adds what was counted elsewhere.
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

    /// Its place in `HITS`.
    #[inline(always)]
    #[must_use]
    pub const fn place(self) -> u32 {
        // Rules have numbers from 0 on, interfaces from 1 on.
        (self.rule ^ self.ifindex.wrapping_mul(0x9e37)) % Hits::PLACES
    }
}

/// Value of `HITS`, one per CPU: what `COUNTERS` would count, but found by an
/// index. A place belongs to the first pair of rule and interface that came to
/// it on its CPU; another that has the same place is counted in `COUNTERS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hits {
    /// Whose they are.
    pub key: CounterKey,
    /// Nobody's while `last_hit_ns` is 0.
    pub counter: Counter,
}

impl Hits {
    /// How many places there are.
    pub const PLACES: u32 = 1024;
}

/// The place of an address in `OWN`, which has those addresses of `LOCAL` that
/// are reached from anywhere, two in one place. Where more meet, the rest is
/// found in `LOCAL` alone.
#[inline(always)]
#[must_use]
pub const fn own_place(addr: Addr) -> u32 {
    let [low, high] = addr.long_words();
    // The 64-bit golden ratio; user space alone fills the map, so nobody
    // gains by addresses that meet.
    let mixed = (low ^ high).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (64 - 12)) as u32
}

/// How many places [`Hot::own`] has.
pub const OWN_PLACES: u32 = 1 << 12;

/// Where clients are noted in `REMAPPED` that were given another port: the
/// element and the byte in it. A byte stands for many clients, and is never
/// cleared: it says where looking into `REMAP` is worth while.
#[inline(always)]
#[must_use]
pub const fn remapped_place(client: Addr, port: Port) -> (u32, usize) {
    let [low, high] = client.long_words();
    let port = port.half() as u64;
    let mixed = (low ^ high ^ port << 16).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let place = (mixed >> (64 - 16)) as u32;
    (place >> 6, place as usize & 63)
}

/// How many elements of 64 bytes `REMAPPED` has.
pub const REMAPPED_PLACES: usize = 1 << 10;

/// Key of `LISTENERS`: where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ListenerKey {
    /// The address it is bound to: [`Addr::V4_ANY`] and [`Addr::V6_ANY`] for all.
    pub addr: Addr,
    /// The port it is bound to.
    pub port: Port,
    /// Below [`Self::SLOTS`]: sockets that share address and port by
    /// `SO_REUSEPORT` are one listener each.
    pub slot: u8,
    /// Always zero.
    pub pad: u8,
}

impl ListenerKey {
    /// Sockets kept of a group, the last that came. The kernel balances over the
    /// whole group whichever is found, so one would do; the others are there when
    /// it closes.
    pub const SLOTS: u8 = 4;
}

/// Value of `DIALLED`, kept at a client's socket: which of the peers it knows
/// by another port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Dialled {
    /// In no order. Unused ones are all zero: nobody dials port 0.
    pub peers: [Peer; Self::PEERS],
    /// The index to use next when all are used.
    pub next: u32,
}

/// One peer of a client's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Peer {
    /// Its address.
    pub addr: Addr,
    /// The port it really has.
    pub port: Port,
    /// The port the client dialled.
    pub dialled_port: Port,
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

    use super::{
        Addr, AddrKey, Candidates, Counter, CounterKey, FlowKey, Hits, IfaceKey, ListenerKey, Old,
        SourceKey, StateKey,
    };
    use crate::bucket::Seed;

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
    unsafe impl aya::Pod for Old {}
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
    extern crate std;

    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layout() {
        assert_eq!(size_of::<PortEntry>(), 2 + 2 + 2 + 2);
        assert_eq!(size_of::<Old>(), 4 * 2);
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
        assert_eq!(size_of::<Dialled>(), Dialled::PEERS * (16 + 2 + 2) + 4);
    }

    #[test]
    fn v4_loopback() {
        assert!(Addr::v4([127, 255, 1, 2]).is_v4_loopback());
        assert!(!Addr::v4([128, 0, 0, 1]).is_v4_loopback());
        assert!(!Addr::new([0x7f; 16]).is_v4_loopback());
    }

    #[test]
    fn ports_do_not_share_entries() {
        let mut next = 0;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for port in [0, 65535] {
                let index = PortEntry::index(protocol, Port::new(port));
                assert_eq!(index, next + u32::from(port));
                for generation in [0, 1] {
                    let key = Old::key(generation, index);
                    assert_eq!(Old::generation(key), generation);
                    assert_eq!(key % PortEntry::COUNT, index);
                }
            }
            next += 1 << 16;
        }
        assert_eq!(next, PortEntry::COUNT);
    }

    #[test]
    fn an_entry_is_one_word() {
        let entry = PortEntry {
            target: 8080,
            rule: 7,
            flags: PortEntry::MATCH | PortEntry::GENERATION,
            set: 3,
        };
        assert_eq!(PortEntry::from_word(entry.to_word()), entry);
        assert_eq!(PortEntry::default().to_word(), 0);
    }

    #[test]
    fn an_epoch_may_be_a_little_later() {
        let epoch = |s: u64| Epoch::at(s * 1_000_000_000);
        assert_eq!(epoch(1000).since(epoch(880)), 112);
        assert_eq!(epoch(1000).since(epoch(1000)), 0);
        assert_eq!(epoch(1000).since(epoch(1010)), 0);
        // After it has come again.
        assert_eq!(Epoch(3).since(Epoch(u16::MAX)), 4);
    }

    #[test]
    fn places_are_inside_their_maps() {
        let mut seen = std::collections::HashSet::new();
        for a in 0..=255 {
            for b in 0..=255 {
                let v4 = Addr::v4([10, 1, a, b]);
                let (element, byte) = remapped_place(v4, Port::new(1024 + u16::from(b)));
                assert!((element as usize) < REMAPPED_PLACES && byte < 64);
                assert!(own_place(v4) < OWN_PLACES);
                seen.insert(own_place(v4));
                let key = CounterKey {
                    ifindex: u32::from(a),
                    rule: u32::from(b),
                };
                assert!(key.place() < Hits::PLACES);
            }
        }
        // Neighbours do not meet.
        assert!(seen.len() > OWN_PLACES as usize / 2, "{}", seen.len());
    }

    #[test]
    fn ranges_keep_their_offset() {
        let mut candidate = Candidate {
            target: 9000,
            dialled: 8000,
            is_range: 1,
            ..Candidate::default()
        };
        assert_eq!(candidate.target_of(8042), 9042);
        candidate.target = 100;
        assert_eq!(candidate.target_of(8042), 142);
        candidate.is_range = 0;
        assert_eq!(candidate.target_of(8042), 100);
    }
}
