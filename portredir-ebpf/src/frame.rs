//! [`Frame`] for the two kinds of context; all pointer code is here.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, xdp_md};
use aya_ebpf::helpers::generated::{bpf_l4_csum_replace, bpf_skb_pull_data, bpf_xdp_get_buff_len};
use portredir_common::abi::Port;
use portredir_common::csum::Kind;
use portredir_common::verdict::Reason;
use portredir_common::wire::{Check, Frame};

/// No header we read starts behind this: two VLAN tags, IPv6 with six
/// extension headers of 2 048 bytes at most, ICMPv6 and as much again in the
/// quote. The verifier needs a bound on every offset.
const MAX_OFFSET: usize = 0x7fff;

/// `value` as a scalar of which the verifier knows only `0..=MAX_OFFSET`:
/// `unknown ^ unknown` is zero, but the verifier does not see that.
#[inline(always)]
fn opaque(mut value: usize, unknown: u32) -> usize {
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
    value & MAX_OFFSET
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
            asm!(
                "{pointer} = *(u32 *)({ctx} + {offset})",
                pointer = out(reg) pointer,
                ctx = in(reg) $ctx,
                offset = const offset_of!($context, $field),
                options(pure, readonly, nostack),
            );
        }
        pointer
    }};
}

/// The `N` bytes at `offset` of the packet between `data` and `data_end`.
#[inline(always)]
fn window<const N: usize>(data: usize, data_end: usize, offset: usize) -> Option<*mut [u8; N]> {
    if offset > MAX_OFFSET {
        return None;
    }
    let start = data + offset;
    (start + N <= data_end).then_some(start as *mut [u8; N])
}

/// Copies a window that was compared with the end of the packet.
///
/// Words are loaded whole, as C programs do, although they may not be aligned;
/// the compiler would load bytes and run out of registers and stack.
#[inline(always)]
fn copy<const N: usize>(window: *const [u8; N]) -> [u8; N] {
    let mut bytes = [0; N];
    if N == 2 {
        // SAFETY: inside the window.
        bytes.copy_from_slice(&unsafe { load_u16(window.cast()) }.to_ne_bytes());
        return bytes;
    }
    if !N.is_multiple_of(4) {
        // SAFETY: the caller compared the window with the end of the packet.
        return unsafe { *window };
    }
    for (i, to) in bytes.chunks_exact_mut(4).enumerate() {
        let word: u64;
        // SAFETY: inside the window.
        unsafe {
            asm!(
                "{word} = *(u32 *)({from} + 0)",
                word = out(reg) word,
                from = in(reg) window.cast::<u32>().wrapping_add(i),
                options(pure, readonly, nostack),
            );
        }
        to.copy_from_slice(&(word as u32).to_ne_bytes());
    }
    bytes
}

/// Two bytes of the packet at once, although they may not be aligned.
///
/// # Safety
///
/// They were compared with the end of the packet.
#[inline(always)]
unsafe fn load_u16(from: *const u16) -> u16 {
    let word: u64;
    // SAFETY: by the caller.
    unsafe {
        asm!(
            "{word} = *(u16 *)({from} + 0)",
            word = out(reg) word,
            from = in(reg) from,
            options(pure, readonly, nostack),
        );
    }
    #[expect(clippy::cast_possible_truncation, reason = "16 bits were loaded")]
    let word = word as u16;
    word
}

/// The same to write.
///
/// # Safety
///
/// As of [`load_u16`].
#[inline(always)]
unsafe fn store_u16(to: *mut u16, value: u16) {
    // SAFETY: by the caller.
    unsafe {
        asm!(
            "*(u16 *)({to} + 0) = {value}",
            to = in(reg) to,
            value = in(reg) u64::from(value),
            options(nostack),
        );
    }
}

/// An XDP frame. With `FRAGS` it may have more than one buffer; headers are in
/// the first.
pub struct Xdp<const FRAGS: bool> {
    ctx: *mut xdp_md,
}

impl<const FRAGS: bool> Xdp<FRAGS> {
    pub const fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    fn window<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        let data = pointer!(self.ctx, xdp_md, data);
        window(data, pointer!(self.ctx, xdp_md, data_end), offset)
    }
}

impl<const FRAGS: bool> Frame for Xdp<FRAGS> {
    #[inline(always)]
    fn len(&self) -> usize {
        if FRAGS {
            // SAFETY: the context is valid.
            return unsafe { bpf_xdp_get_buff_len(self.ctx) } as usize;
        }
        pointer!(self.ctx, xdp_md, data_end) - pointer!(self.ctx, xdp_md, data)
    }

    #[inline(always)]
    fn opaque(&self, offset: usize) -> usize {
        // SAFETY: the context is valid.
        opaque(offset, unsafe { (*self.ctx).ingress_ifindex })
    }

    #[inline(always)]
    fn at<const N: usize>(&mut self, offset: usize) -> Option<[u8; N]> {
        let window = self.window(offset)?;
        Some(copy(window))
    }

    #[inline(always)]
    fn set_port(
        &mut self,
        offset: usize,
        from: Port,
        to: Port,
        check: Check,
    ) -> Result<(), Reason> {
        let port = self.window::<2>(offset).ok_or(Reason::WriteFailed)?;
        let sum = self.window::<2>(check.offset).ok_or(Reason::WriteFailed)?;
        // SAFETY: both windows were compared with the end of the packet.
        unsafe {
            let (sum, port) = (sum.cast(), port.cast());
            let old = load_u16(sum).to_ne_bytes();
            let new = check.kind.update(old, from.0, to.0);
            store_u16(sum, u16::from_ne_bytes(new));
            store_u16(port, u16::from_ne_bytes(to.0));
        }
        Ok(())
    }
}

/// A socket buffer at TC.
pub struct Skb {
    ctx: *mut __sk_buff,
}

impl Skb {
    pub const fn new(ctx: *mut __sk_buff) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    fn linear<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        let data = pointer!(self.ctx, __sk_buff, data);
        window(data, pointer!(self.ctx, __sk_buff, data_end), offset)
    }

    /// Makes the first `len` bytes linear: some drivers put headers into
    /// fragments of the buffer.
    #[inline(always)]
    fn pull(&self, len: usize) -> bool {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "callers add 16 to MAX_OFFSET at most"
        )]
        let len = len as u32;
        // SAFETY: the context is valid.
        len <= unsafe { (*self.ctx).len } && unsafe { bpf_skb_pull_data(self.ctx, len) } == 0
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the context is valid.
        unsafe { (*self.ctx).len as usize }
    }

    #[inline(always)]
    fn opaque(&self, offset: usize) -> usize {
        // SAFETY: the context is valid.
        opaque(offset, unsafe { (*self.ctx).len })
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { (*self.ctx).gso_segs }.max(1)
    }

    #[inline(always)]
    fn at<const N: usize>(&mut self, offset: usize) -> Option<[u8; N]> {
        let window = match self.linear::<N>(offset) {
            Some(window) => window,
            None if offset <= MAX_OFFSET && self.pull(offset + N) => self.linear::<N>(offset)?,
            None => return None,
        };
        Some(copy(window))
    }

    #[inline(always)]
    fn set_port(
        &mut self,
        offset: usize,
        from: Port,
        to: Port,
        check: Check,
    ) -> Result<(), Reason> {
        let flags = match check.kind {
            Kind::Plain => 0,
            Kind::Udp => u64::from(BPF_F_MARK_MANGLED_0),
        };
        // The kernel knows whether the field holds a checksum or, with
        // CHECKSUM_PARTIAL, the start of one that ports are not yet part of.
        // SAFETY: the context is valid; the helper checks the offset.
        let ret = unsafe {
            bpf_l4_csum_replace(
                self.ctx,
                check.offset as u32,
                u64::from(u16::from_ne_bytes(from.0)),
                u64::from(u16::from_ne_bytes(to.0)),
                flags | size_of::<Port>() as u64,
            )
        };
        if ret != 0 {
            return Err(Reason::WriteFailed);
        }
        let port = self.linear::<2>(offset).ok_or(Reason::WriteFailed)?;
        // SAFETY: the window was compared with the end of the packet.
        unsafe { store_u16(port.cast(), u16::from_ne_bytes(to.0)) };
        Ok(())
    }
}
