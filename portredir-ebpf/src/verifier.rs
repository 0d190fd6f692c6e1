//! What the verifier wants, and what keeps the compiler from what it refuses.

use core::arch::asm;
use core::cell::UnsafeCell;

use portredir_common::map::bucket::{PLACES, Word};
use portredir_common::map::rules::PortEntry;

/// A word of a map.
#[repr(transparent)]
pub struct Volatile(UnsafeCell<u64>);

impl Volatile {
    pub const fn new(value: u64) -> Self {
        Self(UnsafeCell::new(value))
    }
}

// SAFETY: every access is one load or store of a word.
unsafe impl Sync for Volatile {}

impl Word for Volatile {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: from a reference; the BPF machine loads words whole.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(value) };
    }

    #[inline(always)]
    fn top_bit(mut value: u64) -> u64 {
        // SAFETY: plain arithmetic on registers.
        unsafe { asm!("{0} >>= 63", inout(reg) value, options(pure, nomem, nostack)) };
        value
    }

    #[inline(always)]
    fn larger(mut a: u64, b: u64) -> u64 {
        // SAFETY: as above.
        unsafe {
            asm!(
                "{less} = {a}",
                "{less} -= {b}",
                "{mask} = {less}",
                "{mask} s>>= 63",
                "{less} &= {mask}",
                "{a} -= {less}",
                a = inout(reg) a,
                b = in(reg) b,
                less = out(reg) _,
                mask = out(reg) _,
                options(pure, nomem, nostack),
            );
        }
        a
    }

    /// By the verifier of Linux 6.1 nothing is known of a number behind an
    /// exclusive or, and the compiler moves a plain mask before it.
    #[inline(always)]
    fn place(mut value: u64) -> usize {
        const MASK: u64 = PLACES as u64 - 1;
        // SAFETY: as above.
        unsafe {
            asm!(
                "{0} &= {mask}",
                inout(reg) value,
                mask = const MASK,
                options(pure, nomem, nostack),
            );
        }
        value as usize & MASK as usize
    }
}

/// `number` as a scalar of which the verifier knows nothing: `unknown ^ unknown`
/// is zero, but the verifier does not see that.
#[inline(always)]
pub fn forget(mut number: u64, unknown: u32) -> u64 {
    // SAFETY: plain arithmetic on registers.
    unsafe {
        asm!(
            "{zero} = {unknown}",
            "{zero} ^= {unknown}",
            "{number} ^= {zero}",
            zero = out(reg) _,
            unknown = in(reg) u64::from(unknown),
            number = inout(reg) number,
            options(pure, nomem, nostack),
        );
    }
    number
}

/// Loads a field of the context that the verifier turns into a packet pointer.
///
/// In assembler, as the compiler would extend the 32 bits of the declaration
/// by shifts, which are forbidden on pointers.
macro_rules! pointer {
    ($ctx:expr, $context:ty, $field:ident) => {{
        let pointer: usize;
        // SAFETY: the kernel passes a valid context for the time of the run.
        unsafe {
            core::arch::asm!(
                "{pointer} = *(u32 *)({ctx} + {offset})",
                pointer = out(reg) pointer,
                ctx = in(reg) $ctx,
                offset = const core::mem::offset_of!($context, $field),
                options(pure, readonly, nostack),
            );
        }
        pointer
    }};
}

/// The index of an entry of ports as a number of which the verifier knows the
/// largest: Linux 6.1 forgets it when bytes are swapped, and the compiler does not.
#[inline(always)]
pub fn bounded(index: u32) -> usize {
    const MASK: u32 = PortEntry::COUNT - 1;
    const { assert!(PortEntry::COUNT.is_power_of_two()) };
    let mut index = u64::from(index);
    // SAFETY: plain arithmetic on a register.
    unsafe {
        asm!(
            "{0} &= {mask}",
            inout(reg) index,
            mask = const MASK,
            options(pure, nomem, nostack),
        );
    }
    index as usize & MASK as usize
}

pub(crate) use pointer;
