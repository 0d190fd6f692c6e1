//! A number or a reason, as the one number that a BPF function returns.

use crate::verdict::Reason;

/// Set in a number that stands for a [`Reason`].
const FAILED: u64 = 1 << 63;

/// A number below 2^63 or a reason, as the one number that a BPF function returns.
#[inline(always)]
pub(crate) const fn to_word(result: Result<u64, Reason>) -> u64 {
    match result {
        Ok(number) => number,
        Err(reason) => FAILED | reason as u64,
    }
}

/// What [`to_word`] made one.
#[expect(clippy::cast_possible_truncation, reason = "reasons are few")]
#[inline(always)]
pub(crate) const fn from_word(word: u64) -> Result<u64, Reason> {
    if word & FAILED == 0 {
        Ok(word)
    } else {
        Err(Reason::from_number(word as u32))
    }
}
