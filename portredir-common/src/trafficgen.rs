//! Frames that the benchmark sends: Ethernet, IPv4, UDP and 34 bytes of payload.
//!
//! The kernel sends the same few frames again and again (`BPF_PROG_TEST_RUN` with
//! live frames) and does not restore the bytes that receivers have changed in them. So
//! each frame carries a recipe in its payload, which nobody changes, and is made
//! anew from the recipe every time it is sent. The kernel runs [`Frame::renew`] in an XDP
//! program; where it cannot, user space runs the same function.

use core::net::Ipv4Addr;

/// Bytes of a frame.
pub const LEN: usize = 76;

/// The first byte of the payload. Servers of the benchmark drop what begins with
/// it, in a socket filter, and answer all else.
pub const MARK: u8 = b'D';

/// The hops that a frame may go, as Linux sends them.
const TTL_SENT: u8 = 64;

// Offsets into the frame. Of the Ethernet, IPv4 and UDP headers:
const ETHER_TYPE: usize = 12;
const IP: usize = 14;
const IP_LEN: usize = 16;
const TTL: usize = 22;
const IP_PROTOCOL: usize = 23;
const IP_CHECK: usize = 24;
const SRC: usize = 26;
/// The half of the source address that flows differ in.
const SRC_LOW: usize = 28;
const DST: usize = 30;
const SRC_PORT: usize = 34;
const DST_PORT: usize = 36;
const UDP_LEN: usize = 38;
const UDP_CHECK: usize = 40;
const PAYLOAD: usize = 42;
// Offsets of the recipe; its integers are in network order:
const IS_NEW_FLOW: usize = 43;
const RECIPE_SRC_LOW: usize = 44;
const RECIPE_SRC_PORT: usize = 46;
const RECIPE_DST_PORT: usize = 48;
/// Sums of what never changes, not complemented.
const RECIPE_IP_SUM: usize = 50;
const RECIPE_UDP_SUM: usize = 52;
const RECIPE_IFINDEX: usize = 56;
const RECIPE_DST: usize = 60;
const RECIPE_MACS: usize = 64;

/// The frames to send.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// The link address of the sender.
    pub src_mac: [u8; 6],
    /// The link address of the receiver.
    pub dst_mac: [u8; 6],
    /// The source address; new flows keep its upper half.
    pub src: Ipv4Addr,
    /// The destination address.
    pub dst: Ipv4Addr,
    /// The source port, in host order; new flows have others.
    pub src_port: u16,
    /// The destination port, in host order.
    pub dst_port: u16,
    /// The ifindex of the egress interface.
    pub ifindex: u32,
    /// Whether each frame begins a flow, with a random source address and port;
    /// otherwise all are of one flow.
    pub is_new_flow: bool,
}

/// A frame with its recipe.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Frame(pub [u8; LEN]);

impl Frame {
    /// The first frame.
    #[must_use]
    pub fn new(recipe: &Recipe) -> Self {
        let mut frame = Self([0; LEN]);
        frame.set(0, recipe.dst_mac);
        frame.set(6, recipe.src_mac);
        frame.set(ETHER_TYPE, [0x08, 0x00]);
        frame.set(IP, [0x45]);
        // From here on to the end of the frame, as is the length of UDP.
        frame.set(IP_LEN, [0, 62]);
        frame.set(TTL, [TTL_SENT]);
        frame.set(IP_PROTOCOL, [17]);
        frame.set(SRC, recipe.src.octets());
        frame.set(DST, recipe.dst.octets());
        frame.set(UDP_LEN, [0, 42]);
        frame.set(PAYLOAD, [MARK, u8::from(recipe.is_new_flow)]);
        let [_, _, low @ ..] = recipe.src.octets();
        frame.set(RECIPE_SRC_LOW, low);
        frame.set(RECIPE_SRC_PORT, recipe.src_port.to_be_bytes());
        frame.set(RECIPE_DST_PORT, recipe.dst_port.to_be_bytes());
        frame.set(RECIPE_IFINDEX, recipe.ifindex.to_be_bytes());
        frame.set(RECIPE_DST, recipe.dst.octets());
        frame.set(RECIPE_MACS, recipe.dst_mac);
        frame.set(RECIPE_MACS + 6, recipe.src_mac);
        frame.set(SRC_LOW, [0, 0]);
        let ip_sum = frame.sum(IP, SRC_PORT);
        frame.set(RECIPE_IP_SUM, fold(ip_sum).to_be_bytes());
        // The pseudo-header (RFC 768): addresses, protocol and length.
        let pseudo = frame.sum(SRC, SRC_PORT) + 17 + 42;
        // The field that holds this sum is covered by it, so it is followed by its
        // complement: together they add 0xFFFF, which is nothing.
        let udp_sum = fold(pseudo + frame.sum(UDP_LEN, LEN));
        frame.set(RECIPE_UDP_SUM, udp_sum.to_be_bytes());
        frame.set(RECIPE_UDP_SUM + 2, (!udp_sum).to_be_bytes());
        frame
    }

    /// Makes this a frame to be sent; returns the ifindex of the egress interface.
    #[inline(always)]
    pub fn renew(&mut self, random: u32) -> u32 {
        let (src_low, src_port) = if self.0[IS_NEW_FLOW] == 0 {
            (self.word(RECIPE_SRC_LOW), self.word(RECIPE_SRC_PORT))
        } else {
            // Ports under 1024 are other programs' own in some rule sets.
            let [a, b, c, d] = random.to_be_bytes();
            let port = u16::from_be_bytes([c, d]);
            (u16::from_be_bytes([a, b]), port.max(1024))
        };
        let dst_port = self.word(RECIPE_DST_PORT);
        // A host that forwards changes these.
        self.0.copy_within(RECIPE_MACS..RECIPE_MACS + 12, 0);
        self.0.copy_within(RECIPE_DST..RECIPE_DST + 4, DST);
        self.set(TTL, [TTL_SENT]);
        self.set(SRC_LOW, src_low.to_be_bytes());
        self.set(SRC_PORT, src_port.to_be_bytes());
        self.set(DST_PORT, dst_port.to_be_bytes());
        let ip_sum = u32::from(self.word(RECIPE_IP_SUM)) + u32::from(src_low);
        self.set(IP_CHECK, (!fold(ip_sum)).to_be_bytes());
        let udp_sum = u32::from(self.word(RECIPE_UDP_SUM))
            + u32::from(src_low)
            + u32::from(src_port)
            + u32::from(dst_port);
        let check = match !fold(udp_sum) {
            0 => 0xffff,
            check => check,
        };
        self.set(UDP_CHECK, check.to_be_bytes());
        let [a, b] = self.word(RECIPE_IFINDEX).to_be_bytes();
        let [c, d] = self.word(RECIPE_IFINDEX + 2).to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// The IPv4 packet in this frame.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        &self.0[IP..]
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> u16 {
        u16::from_be_bytes([self.0[offset], self.0[offset + 1]])
    }

    #[inline(always)]
    fn set<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        self.0[offset..offset + N].copy_from_slice(&bytes);
    }

    /// The sum of the 16-bit words from one offset to another.
    fn sum(&self, from: usize, to: usize) -> u32 {
        (from..to)
            .step_by(2)
            .map(|at| u32::from(self.word(at)))
            .sum()
    }
}

/// Adds the carries (RFC 1071).
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = ((sum & 0xffff) + (sum >> 16)).to_be_bytes();
    u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
    use proptest::prelude::*;

    fn recipe() -> Recipe {
        Recipe {
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: [2, 0, 0, 0, 0, 2],
            src: Ipv4Addr::new(198, 19, 7, 1),
            dst: Ipv4Addr::new(198, 18, 7, 2),
            src_port: 40_000,
            dst_port: 80,
            ifindex: 0x0123_4567,
            is_new_flow: false,
        }
    }

    /// Another library reads it, and recomputes both checksums.
    fn check(frame: &Frame) -> (Ipv4Addr, Ipv4Addr, u16, u16) {
        let headers = PacketHeaders::from_ethernet_slice(&frame.0).expect("a packet");
        let Some(NetHeaders::Ipv4(ip, _)) = &headers.net else {
            panic!("not IPv4: {headers:?}");
        };
        let Some(TransportHeader::Udp(udp)) = &headers.transport else {
            panic!("not UDP: {headers:?}");
        };
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        let payload = headers.payload.slice();
        assert_eq!(payload[0], MARK);
        let expected = udp.calc_checksum_ipv4(ip, payload).expect("a checksum");
        assert_eq!(udp.checksum, expected);
        (
            ip.source.into(),
            ip.destination.into(),
            udp.source_port,
            udp.destination_port,
        )
    }

    #[test]
    fn frames_of_one_flow_are_equal() {
        let mut frame = Frame::new(&recipe());
        for random in [0, u32::MAX] {
            assert_eq!(frame.renew(random), 0x0123_4567);
            let Recipe { src, dst, .. } = recipe();
            assert_eq!(check(&frame), (src, dst, 40_000, 80));
        }
    }

    proptest! {
        #[test]
        fn what_a_receiver_changed_is_put_back(random: u32, port: u16, checks: [u8; 2]) {
            for is_new_flow in [false, true] {
                let mut frame = Frame::new(&Recipe {
                    is_new_flow,
                    ..recipe()
                });
                frame.renew(!random);
                frame.set(DST_PORT, port.to_be_bytes());
                frame.set(UDP_CHECK, checks);
                frame.set(IP_CHECK, checks);
                frame.set(DST, [10, 0, 0, checks[0]]);
                frame.set(TTL, [checks[1]]);
                frame.set(0, [0xff; 12]);
                frame.renew(random);
                let (src, dst, _, dst_port) = check(&frame);
                prop_assert_eq!((src.octets()[0], src.octets()[1]), (198, 19));
                prop_assert_eq!((dst, dst_port), (recipe().dst, 80));
                prop_assert_eq!(&frame.0[..6], &recipe().dst_mac);
                prop_assert_eq!(&frame.0[6..12], &recipe().src_mac);
                prop_assert_eq!(frame.0[TTL], 64);
            }
        }
    }

    #[test]
    fn other_random_bits_make_other_flows() {
        let mut frame = Frame::new(&Recipe {
            is_new_flow: true,
            ..recipe()
        });
        let mut flow = |random| {
            frame.renew(random);
            check(&frame)
        };
        let flows = [0x0001_8000, 0x0001_8001, 0x0002_8000].map(&mut flow);
        assert!(flows[0] != flows[1] && flows[0] != flows[2] && flows[1] != flows[2]);
    }
}
