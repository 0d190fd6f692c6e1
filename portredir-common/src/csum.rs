//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// `check` after one 16-bit field it covers changed from `from` to `to`.
///
/// Bytes in network order. This is equation 3 of RFC 1624; the shorter
/// equation of RFC 1141 is wrong where the sum passes zero. A corrupt
/// checksum stays corrupt, so the receiver still drops the packet. The sum is
/// the same in either byte order (RFC 1071, section 2), so bytes stay as they
/// are.
#[inline(always)]
#[must_use]
pub const fn update(check: [u8; 2], from: [u8; 2], to: [u8; 2]) -> [u8; 2] {
    let mut sum = !u16::from_ne_bytes(check) as u32
        + !u16::from_ne_bytes(from) as u32
        + u16::from_ne_bytes(to) as u32;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    #[expect(clippy::cast_possible_truncation, reason = "folded")]
    let sum = sum as u16;
    (!sum).to_ne_bytes()
}

/// How a checksum field treats the value zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP, ICMP, ICMPv6: zero is a sum like any other.
    Plain,
    /// UDP (RFC 768, RFC 8200 section 8.1): zero means "no checksum" and stays
    /// zero; a sum of zero is sent as 0xFFFF.
    Udp,
}

impl Kind {
    /// [`update`], with the rule for zero of this kind of field.
    #[inline(always)]
    #[must_use]
    pub fn update(self, check: [u8; 2], from: [u8; 2], to: [u8; 2]) -> [u8; 2] {
        if self == Self::Plain {
            return update(check, from, to);
        }
        if check == [0, 0] {
            return check;
        }
        match update(check, from, to) {
            [0, 0] => [0xff, 0xff],
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 over 16-bit words, as a receiver computes it.
    fn full(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|&w| u32::from(w)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).expect("folded")
    }

    #[test]
    fn rfc_1624_example() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives 0x0000.
        assert_eq!(update([0xdd, 0x2f], [0x55, 0x55], [0x32, 0x85]), [0, 0]);
    }

    #[test]
    fn udp_zero_means_none_and_is_never_computed() {
        assert_eq!(Kind::Udp.update([0, 0], [0, 80], [0x1f, 0x90]), [0, 0]);
        assert_eq!(
            Kind::Udp.update([0xdd, 0x2f], [0x55, 0x55], [0x32, 0x85]),
            [0xff, 0xff]
        );
    }

    proptest! {
        #[test]
        fn agrees_with_full_recomputation(
            mut words in prop::collection::vec(any::<u16>(), 1..40),
            index in any::<prop::sample::Index>(),
            to in any::<u16>(),
        ) {
            // A sum over nothing but zeros has no packet that could carry it.
            prop_assume!(words.iter().any(|&w| w != 0));
            let i = index.index(words.len());
            let before = full(&words).to_be_bytes();
            let from = words[i];
            words[i] = to;
            prop_assume!(words.iter().any(|&w| w != 0));
            prop_assert_eq!(
                update(before, from.to_be_bytes(), to.to_be_bytes()),
                full(&words).to_be_bytes()
            );
        }
    }
}
