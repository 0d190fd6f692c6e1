//! Values as one word of 64 bits.
//!
//! A BPF function returns one word, and the verifier loses what it knows of a
//! value that passes through the stack. A type that crosses such a boundary, or
//! that lies in a map as one word, implements [`Packed`] once, beside its
//! definition; the test
//! `datapath::subprog::tests::roundtrip` packs and unpacks all of them.

use core::marker::PhantomData;

use crate::net::Port;
use crate::verdict::Reason;

/// A value that fits into one word.
pub trait Packed: Sized {
    /// The word that stands for this value.
    #[must_use]
    fn pack(self) -> u64;

    /// The value of a word that [`Self::pack`] made.
    #[must_use]
    fn unpack(word: u64) -> Self;
}

/// This bit is set in a word that stands for a [`Reason`].
const FAILED: u64 = 1 << 63;

/// A result is the word of its value, which is below 2^63, or a reason.
impl<T: Packed> Packed for Result<T, Reason> {
    #[inline(always)]
    fn pack(self) -> u64 {
        match self {
            Ok(value) => value.pack(),
            Err(reason) => FAILED | reason as u64,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "reasons are few")]
    #[inline(always)]
    fn unpack(word: u64) -> Self {
        if word & FAILED == 0 {
            Ok(T::unpack(word))
        } else {
            Err(Reason::from_number(word as u32))
        }
    }
}

/// A packed type with a word that no value packs to.
pub trait Niche: Packed {
    /// The word that stands for no value.
    const NONE: u64;
}

impl<T: Niche> Packed for Option<T> {
    #[inline(always)]
    fn pack(self) -> u64 {
        self.map_or(T::NONE, T::pack)
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        if word == T::NONE {
            None
        } else {
            Some(T::unpack(word))
        }
    }
}

/// A port packs to its two bytes as they are in memory: registers need not swap them.
impl Packed for Port {
    #[inline(always)]
    fn pack(self) -> u64 {
        self.half().into()
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self::from_half(u16::unpack(word))
    }
}

impl Niche for Port {
    const NONE: u64 = 1 << 16;
}

impl Packed for u16 {
    #[inline(always)]
    fn pack(self) -> u64 {
        self.into()
    }

    #[expect(clippy::cast_possible_truncation, reason = "the word of 16 bits")]
    #[inline(always)]
    fn unpack(word: u64) -> Self {
        word as Self
    }
}

impl Niche for u16 {
    const NONE: u64 = 1 << 16;
}

impl Packed for usize {
    #[inline(always)]
    fn pack(self) -> u64 {
        self as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "the word of a `usize`")]
    #[inline(always)]
    fn unpack(word: u64) -> Self {
        word as Self
    }
}

/// A `T` that stays packed while it is handed from function to function.
pub struct Word<T>(u64, PhantomData<T>);

impl<T> Clone for Word<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Word<T> {}

impl<T: Packed> Word<T> {
    /// Takes bits that [`Self::bits`] gave.
    #[inline(always)]
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits, PhantomData)
    }

    /// The packed bits.
    #[inline(always)]
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// Unpacks the value.
    #[inline(always)]
    pub(crate) fn get(self) -> T {
        T::unpack(self.0)
    }
}
