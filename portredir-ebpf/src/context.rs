//! The contexts of programs.

use core::ffi::c_void;

use portredir_common::flow::{FlowKey, Original};
use portredir_common::net::{Flags, Port};

use crate::kernel::subprog;

// include/linux/socket.h
pub const AF_INET: u32 = 2;

/// What [`Kernel`] needs of a context.
pub trait Context: Copy {
    /// Whether it is of a packet that comes in.
    const IS_PACKET: bool = false;

    fn as_ptr(self) -> *mut c_void;
    fn ifindex(self) -> u32;

    /// The state of the TCP socket that gets the packets of a flow, or 0.
    #[inline(always)]
    fn tcp_state(self, key: &FlowKey) -> u32 {
        subprog::tcp_state(self, key)
    }

    /// Whether there is a UDP socket that gets the packets of a flow.
    #[inline(always)]
    fn has_udp(self, key: &FlowKey) -> bool {
        subprog::has_udp(self, key)
    }

    /// [`subprog::find_route`].
    #[inline(always)]
    fn find_route(self, key: &mut FlowKey, entry: u64, flags: Flags) -> u64 {
        subprog::find_route(self, key, entry, flags)
    }

    /// [`subprog::has_begun`].
    #[inline(always)]
    fn has_begun(self, key: &mut FlowKey, original: Original, flags: Flags) -> u32 {
        subprog::has_begun(self, key, original, flags)
    }

    /// [`subprog::admit`].
    #[inline(always)]
    fn admit(self, key: &mut FlowKey, dialled_port: Port, route: u64, flags: Flags) -> u64 {
        subprog::admit(self, key, dialled_port, route, flags)
    }
}

/// Loads the `i`th word of a field of a context.
///
/// In assembler, as the compiler would choose between two fields by computing a
/// pointer, which is forbidden for contexts.
macro_rules! word {
    ($ctx:expr, $context:ty, $field:ident, $i:literal) => {{
        let word: u64;
        // SAFETY: the kernel passes a valid context for the time of the run.
        unsafe {
            core::arch::asm!(
                "{word} = *(u32 *)({ctx} + {offset})",
                word = out(reg) word,
                ctx = in(reg) $ctx,
                offset = const core::mem::offset_of!($context, $field) + 4 * $i,
                options(pure, readonly, nostack),
            );
        }
        word as u32
    }};
}

/// An IPv4 address in a field of a context.
macro_rules! v4 {
    ($ctx:expr, $context:ty, $field:ident) => {
        Addr::v4_word([$crate::context::word!($ctx, $context, $field, 0)])
    };
}

/// An IPv6 address in a field of a context.
macro_rules! v6 {
    ($ctx:expr, $context:ty, $field:ident) => {{
        Addr::from_words([
            $crate::context::word!($ctx, $context, $field, 0),
            $crate::context::word!($ctx, $context, $field, 1),
            $crate::context::word!($ctx, $context, $field, 2),
            $crate::context::word!($ctx, $context, $field, 3),
        ])
    }};
}

pub(crate) use {v4, v6, word};
