//! Offsets and sizes of header fields, in bytes from the start of their header, and
//! the numbers that fields have.

/// The Ethernet header (IEEE 802.3) and VLAN tags behind it (IEEE 802.1Q).
pub mod ethernet {
    /// The length of the header.
    pub const LEN: usize = 14;
    /// The EtherType.
    pub const TYPE: usize = 12;
    /// The length of a VLAN tag.
    pub const VLAN_LEN: usize = 4;
    /// The EtherType behind a VLAN tag, from where the tag begins.
    pub const VLAN_TYPE: usize = 2;

    /// An EtherType, in network order as in a frame.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct EtherType(u16);

    impl EtherType {
        /// IPv4.
        pub const IPV4: Self = Self(0x0800_u16.to_be());
        /// IPv6.
        pub const IPV6: Self = Self(0x86dd_u16.to_be());
        /// A VLAN tag.
        pub const VLAN: Self = Self(0x8100_u16.to_be());
        /// An outer VLAN tag (IEEE 802.1ad).
        pub const QINQ: Self = Self(0x88a8_u16.to_be());

        /// The EtherType of two bytes that were loaded from a frame.
        #[inline(always)]
        #[must_use]
        pub const fn from_half(half: u16) -> Self {
            Self(half)
        }
    }
}

/// The IPv4 header (RFC 791, 3.1).
pub mod ipv4 {
    /// The length of the header without options.
    pub const LEN: usize = 20;
    /// The length of header and payload.
    pub const TOTAL_LEN: usize = 2;
    /// The checksum of the header.
    pub const CHECKSUM: usize = 10;
    /// The source address.
    pub const SRC: usize = 12;
    /// The destination address.
    pub const DST: usize = 16;
    /// The protocol number of ICMP.
    pub const ICMP: u32 = 1;
    /// In the second word: the offset of a fragment.
    pub const FRAGMENT_OFFSET: u32 = 0x1fff;
    /// In the second word: more fragments follow.
    pub const MORE_FRAGMENTS: u32 = 0x2000;
}

/// The IPv6 header and its extension headers (RFC 8200).
pub mod ipv6 {
    /// The length of the header.
    pub const LEN: usize = 40;
    /// The length of the payload, extension headers included.
    pub const PAYLOAD_LEN: usize = 4;
    /// The source address.
    pub const SRC: usize = 8;
    /// The destination address.
    pub const DST: usize = 24;
    /// The next header number of hop-by-hop options.
    pub const HOP_BY_HOP: u32 = 0;
    /// The next header number of a routing header.
    pub const ROUTING: u32 = 43;
    /// The next header number of a fragment header.
    pub const FRAGMENT: u32 = 44;
    /// The next header number of an authentication header (RFC 4302).
    pub const AUTHENTICATION: u32 = 51;
    /// The next header number of ICMPv6.
    pub const ICMPV6: u32 = 58;
    /// The next header number of destination options.
    pub const DESTINATION_OPTIONS: u32 = 60;
    /// The unit of lengths, and the length of the shortest extension header.
    pub const EXTENSION_UNIT: usize = 8;
}

/// The TCP header (RFC 9293, 3.1).
pub mod tcp {
    /// The protocol number.
    pub const PROTOCOL: u32 = 6;
    /// The length of the header without options.
    pub const LEN: usize = 20;
    /// The length of the header in the upper four bits, then the flags.
    pub const DATA_OFFSET: usize = 12;
    /// The sequence number.
    pub const SEQUENCE: usize = 4;
    /// The number that is acknowledged.
    pub const ACKNOWLEDGED: usize = 8;
    /// The checksum.
    pub const CHECKSUM: usize = 16;
}

/// The UDP header (RFC 768).
pub mod udp {
    /// The protocol number.
    pub const PROTOCOL: u32 = 17;
    /// The length of the header.
    pub const HEADER_LEN: usize = 8;
    /// The length of header and payload.
    pub const LEN: usize = 4;
    /// The checksum.
    pub const CHECKSUM: usize = 6;
}

/// The ports that TCP and UDP headers begin with.
pub mod ports {
    /// The source port.
    pub const SRC: usize = 0;
    /// The destination port.
    pub const DST: usize = 2;
    /// The length of both.
    pub const LEN: usize = 4;
}

/// The header of an ICMP or ICMPv6 error (RFC 792, RFC 4443).
pub mod icmp {
    /// The length of the header; the quoted packet follows.
    pub const LEN: usize = 8;
    /// The checksum.
    pub const CHECKSUM: usize = 2;
}
