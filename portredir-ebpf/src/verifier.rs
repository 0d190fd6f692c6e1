//! Hints for the verifier, and code that keeps the compiler from what the verifier
//! refuses.
//!
//! The oldest supported kernel is Linux 6.1; each item says what that verifier, or
//! kernel/bpf/verifier.c of any version, does not see by itself.

use core::arch::asm;
use core::cell::UnsafeCell;

use portredir_common::map::entry::{PLACES, Word};

/// A word of a map or of a static, which other processors read and write.
#[repr(transparent)]
pub struct Volatile(UnsafeCell<u64>);

impl Volatile {
    pub const fn new(value: u64) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Clears bits, whatever others do to the word at the same time. Atomic since Linux 5.12.
    #[inline(always)]
    pub fn clear(&self, bits: u64) {
        // SAFETY: from a reference.
        unsafe {
            asm!(
                "lock *(u64 *)({word} + 0) &= {mask}",
                word = in(reg) self.0.get(),
                mask = in(reg) !bits,
                options(nostack),
            );
        }
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
        // SAFETY: from a reference; the BPF machine stores words whole.
        unsafe { self.0.get().write_volatile(value) };
    }

    /// The verifier walks both ways of a jump, so this is arithmetic.
    #[inline(always)]
    fn top_bit(mut value: u64) -> u64 {
        // SAFETY: plain arithmetic on registers.
        unsafe { asm!("{0} >>= 63", inout(reg) value, options(pure, nomem, nostack)) };
        value
    }

    /// The verifier walks both ways of a jump, so this is arithmetic.
    #[inline(always)]
    fn larger(mut a: u64, b: u64) -> u64 {
        // SAFETY: plain arithmetic on registers.
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

    #[inline(always)]
    fn place(value: u64) -> usize {
        masked::<PLACES>(value)
    }
}

/// `value` modulo `COUNT`, a power of two, as an index with a bound that the verifier
/// sees.
///
/// Linux 6.1 forgets the bounds of a number when its bytes are swapped, or behind an
/// exclusive or; the compiler does not, and moves or drops a plain mask.
#[inline(always)]
pub fn masked<const COUNT: usize>(mut value: u64) -> usize {
    const { assert!(COUNT.is_power_of_two()) };
    // SAFETY: plain arithmetic on a register.
    unsafe {
        asm!(
            "{0} &= {mask}",
            inout(reg) value,
            mask = const COUNT - 1,
            options(pure, nomem, nostack),
        );
    }
    value as usize & (COUNT - 1)
}

/// `barrier_var` of bpf_helpers.h: `value` as a scalar of which the verifier knows
/// nothing.
///
/// The verifier does not see that `unknown ^ unknown` is zero.
#[inline(always)]
pub fn barrier_var(mut value: u64, unknown: u32) -> u64 {
    // SAFETY: plain arithmetic on registers.
    unsafe {
        asm!(
            "{zero} = {unknown}",
            "{zero} ^= {unknown}",
            "{value} ^= {zero}",
            zero = out(reg) _,
            unknown = in(reg) u64::from(unknown),
            value = inout(reg) value,
            options(pure, nomem, nostack),
        );
    }
    value
}

/// `value`, computed here and not where it is used.
///
/// The compiler moves a computation with one use to its use, and keeps all that it needs
/// on the stack until then.
#[inline(always)]
pub fn computed(mut value: u64) -> u64 {
    // An instruction, as the kernel refuses two lines of source at one offset
    // (`check_btf_line` in kernel/bpf/verifier.c).
    // SAFETY: plain arithmetic on a register. It is not `pure`, so that the compiler
    // does not move it.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(nomem, nostack)) };
    value
}

/// `context`, which the compiler cannot drop.
///
/// To the verifier a global function has all arguments that it declares; the compiler passes
/// no value for one that the function does not use.
#[inline(always)]
pub fn used<T>(mut context: *mut T) -> *mut T {
    // SAFETY: plain arithmetic on a register; nothing is read or written.
    unsafe { asm!("{0} = {0}", inout(reg) context, options(nostack)) };
    context
}

/// Loads a field of the context that the verifier turns into a packet pointer.
///
/// The load is in assembler, as the compiler would extend the 32 bits of the
/// declaration by shifts, which are forbidden on pointers. This is a macro because
/// assembler needs the offset as a literal.
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

pub(crate) use pointer;
