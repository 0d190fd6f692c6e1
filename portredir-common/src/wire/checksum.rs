//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// `check` after one 16-bit field it covers changed from `from` to `to`.
///
/// All as they lie in memory: the sum is the same in either byte order (RFC 1071,
/// section 2). This is equation 3 of RFC 1624; the shorter equation of RFC 1141 is
/// wrong where the sum passes zero. A corrupt checksum stays corrupt, so the
/// receiver still drops the packet.
#[expect(clippy::cast_possible_truncation, reason = "folded")]
#[inline(always)]
#[must_use]
pub const fn update(check: u16, from: u16, to: u16) -> u16 {
    let mut sum = !check as u64 + !from as u64 + to as u64;
    sum = (sum & 0xffff) + (sum >> 16);
    sum += sum >> 16;
    !sum as u16
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
    pub const fn update(self, check: u16, from: u16, to: u16) -> u16 {
        if matches!(self, Self::Plain) {
            return update(check, from, to);
        }
        if check == 0 {
            return 0;
        }
        match update(check, from, to) {
            0 => 0xffff,
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
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0);
    }

    #[test]
    fn udp_zero_means_none_and_is_never_computed() {
        assert_eq!(Kind::Udp.update(0, 80, 8080), 0);
        assert_eq!(Kind::Udp.update(0xdd2f, 0x5555, 0x3285), 0xffff);
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
            let before = full(&words);
            let from = words[i];
            words[i] = to;
            prop_assume!(words.iter().any(|&w| w != 0));
            prop_assert_eq!(
                update(before, from, to),
                full(&words)
            );
        }
    }
}
