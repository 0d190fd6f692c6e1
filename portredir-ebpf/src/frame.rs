//! [`Frame`] for the two kinds of context; all pointer code is here.

use core::arch::asm;

use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l4_csum_replace, bpf_skb_load_bytes_relative, bpf_skb_pull_data,
    bpf_xdp_get_buff_len,
};
use portredir_common::net::{Addr, Port};
use portredir_common::verdict::Reason;
use portredir_common::wire::checksum::{self, Kind};
use portredir_common::wire::frame::{AddrField, Check, Cover, Frame};
use portredir_common::wire::headers::MAX_OFFSET;

use crate::verifier::{barrier_var, pointer};

/// The bytes of a packet that can be read without a helper.
trait Linear {
    /// The addresses of their begin and end.
    fn ends(&self) -> (usize, usize);

    /// The address of `len` bytes at `offset`.
    #[inline(always)]
    fn window(&self, offset: usize, len: usize) -> Option<*mut u8> {
        if offset > MAX_OFFSET {
            return None;
        }
        let (data, data_end) = self.ends();
        let start = data + offset;
        (start + len <= data_end).then_some(start as *mut u8)
    }

    /// [`Frame::words`].
    #[inline(always)]
    fn load_words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let window = self.window(offset, N * 4)?;
        // SAFETY: the window was compared with the end of the packet.
        Some(unsafe { load_words(window.cast()) })
    }

    /// Writes an address, and the checksum of an IPv4 header.
    #[inline(always)]
    fn store_addr(&self, field: AddrField, from: Addr, to: Addr) -> Result<(), Reason> {
        let Some(check) = field.header_check else {
            let addr = self.window(field.offset, 16).ok_or(Reason::WriteFailed)?;
            // SAFETY: the window was compared with the end of the packet.
            unsafe { store_words(addr.cast(), to.words()) };
            return Ok(());
        };
        let sum = self.window(check, 2).ok_or(Reason::WriteFailed)?;
        let addr = self.window(field.offset, 4).ok_or(Reason::WriteFailed)?;
        let [.., word] = to.words();
        // SAFETY: both windows were compared with the end of the packet.
        unsafe {
            store_half(sum.cast(), header_check(load_half(sum.cast()), from, to));
            store_words(addr.cast(), [word]);
        }
        Ok(())
    }

    /// [`Frame::half`].
    #[inline(always)]
    fn load_half(&self, offset: usize) -> Option<u16> {
        let window = self.window(offset, 2)?;
        // SAFETY: as above.
        Some(unsafe { load_half(window.cast()) })
    }
}

// Words and halves are loaded whole, as C programs do, although they may not be
// aligned; the compiler would load bytes and run out of registers and stack.

/// # Safety
///
/// The caller has compared the words with the end of the packet.
#[inline(always)]
unsafe fn load_words<const N: usize>(from: *const u32) -> [u32; N] {
    core::array::from_fn(|i| {
        let word: u64;
        // SAFETY: by the caller.
        unsafe {
            asm!(
                "{word} = *(u32 *)({from} + 0)",
                word = out(reg) word,
                from = in(reg) from.wrapping_add(i),
                options(pure, readonly, nostack),
            );
        }
        word as u32
    })
}

/// # Safety
///
/// The caller has compared the bytes with the end of the packet.
#[inline(always)]
unsafe fn load_half(from: *const u16) -> u16 {
    let half: u64;
    // SAFETY: by the caller.
    unsafe {
        asm!(
            "{half} = *(u16 *)({from} + 0)",
            half = out(reg) half,
            from = in(reg) from,
            options(pure, readonly, nostack),
        );
    }
    half as u16
}

/// # Safety
///
/// The caller has compared the bytes with the end of the packet.
#[inline(always)]
unsafe fn store_half(to: *mut u16, half: u16) {
    // SAFETY: by the caller.
    unsafe {
        asm!(
            "*(u16 *)({to} + 0) = {half}",
            to = in(reg) to,
            half = in(reg) u64::from(half),
            options(nostack),
        );
    }
}

/// # Safety
///
/// The caller has compared the words with the end of the packet.
#[inline(always)]
unsafe fn store_words<const N: usize>(to: *mut u32, words: [u32; N]) {
    for (i, word) in words.into_iter().enumerate() {
        // SAFETY: by the caller.
        unsafe {
            asm!(
                "*(u32 *)({to} + 0) = {word}",
                to = in(reg) to.wrapping_add(i),
                word = in(reg) u64::from(word),
                options(nostack),
            );
        }
    }
}

/// An XDP frame. With `FRAGS` it may have more than one buffer; headers are in
/// the first.
#[derive(Clone, Copy)]
pub struct Xdp<const FRAGS: bool> {
    ctx: *mut xdp_md,
}

impl<const FRAGS: bool> Xdp<FRAGS> {
    pub const fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }
}

impl<const FRAGS: bool> Linear for Xdp<FRAGS> {
    #[inline(always)]
    fn ends(&self) -> (usize, usize) {
        let data = pointer!(self.ctx, xdp_md, data);
        (data, pointer!(self.ctx, xdp_md, data_end))
    }
}

impl<const FRAGS: bool> Frame for Xdp<FRAGS> {
    #[inline(always)]
    fn len(&self) -> usize {
        if FRAGS {
            // SAFETY: the context is valid.
            return unsafe { bpf_xdp_get_buff_len(self.ctx) } as usize;
        }
        self.linear_len()
    }

    #[inline(always)]
    fn linear_len(&self) -> usize {
        let (data, data_end) = self.ends();
        data_end - data
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn pull(&mut self, _end: usize) {}

    #[inline(always)]
    fn barrier_var(&self, value: u64) -> u64 {
        // SAFETY: the context is valid.
        barrier_var(value, unsafe { (*self.ctx).ingress_ifindex })
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.load_words(offset)
    }

    #[inline(always)]
    fn half(&self, offset: usize) -> Option<u16> {
        self.load_half(offset)
    }

    #[inline(always)]
    fn set_port(
        &mut self,
        offset: usize,
        from: Port,
        to: Port,
        check: Check,
    ) -> Result<(), Reason> {
        let port = self.window(offset, 2).ok_or(Reason::WriteFailed)?;
        let sum = self.window(check.offset, 2).ok_or(Reason::WriteFailed)?;
        // SAFETY: both windows were compared with the end of the packet.
        unsafe {
            let old = load_half(sum.cast());
            let new = check.kind.update(old, from.half(), to.half());
            store_half(sum.cast(), new);
            store_half(port.cast(), to.half());
        }
        Ok(())
    }

    #[inline(always)]
    fn set_addr(&mut self, field: AddrField, from: Addr, to: Addr) -> Result<(), Reason> {
        if field.cover != Cover::Nothing {
            let sum = self
                .window(field.check.offset, 2)
                .ok_or(Reason::WriteFailed)?;
            // SAFETY: the window was compared with the end of the packet.
            let mut new = unsafe { load_half(sum.cast()) };
            let words = from.words().into_iter().zip(to.words());
            for (from, to) in words {
                let kind = field.check.kind;
                new = kind.update(new, from as u16, to as u16);
                new = kind.update(new, (from >> 16) as u16, (to >> 16) as u16);
            }
            // SAFETY: as above.
            unsafe { store_half(sum.cast(), new) };
        }
        self.store_addr(field, from, to)
    }
}

/// The checksum of an IPv4 header whose address changes, which no hardware computes.
#[inline(always)]
fn header_check(old: u16, from: Addr, to: Addr) -> u16 {
    let [.., from] = from.words();
    let [.., to] = to.words();
    let low = checksum::update(old, from as u16, to as u16);
    checksum::update(low, (from >> 16) as u16, (to >> 16) as u16)
}

/// Where the frame of a device begins in a socket buffer.
pub trait Start: Copy {
    /// The offset in the buffer.
    fn offset(self) -> usize;
}

/// The frame is the whole buffer.
#[derive(Clone, Copy)]
pub struct AtData;

impl Start for AtData {
    #[inline(always)]
    fn offset(self) -> usize {
        0
    }
}

/// The frame begins with the network header, wherever that is: tunnels may leave the
/// header in the buffer that a packet came out of.
#[derive(Clone, Copy)]
pub struct AtNetworkHeader(u64);

impl AtNetworkHeader {
    /// The greatest offset: the kernel's room for headers of tunnels is smaller.
    const MAX: usize = 0xff;

    #[inline(always)]
    pub fn find(ctx: *mut __sk_buff) -> Self {
        Self(skb_network_offset(ctx).into())
    }
}

impl Start for AtNetworkHeader {
    /// Masked with each use, as older kernels lose the bound of a number on the stack.
    #[inline(always)]
    fn offset(self) -> usize {
        self.0 as usize & Self::MAX
    }
}

/// A socket buffer at TC.
#[derive(Clone, Copy)]
pub struct Skb<S> {
    ctx: *mut __sk_buff,
    start: S,
}

impl<S: Start> Skb<S> {
    pub const fn new(ctx: *mut __sk_buff, start: S) -> Self {
        Self { ctx, start }
    }
}

impl<S: Start> Linear for Skb<S> {
    #[inline(always)]
    fn ends(&self) -> (usize, usize) {
        let data = pointer!(self.ctx, __sk_buff, data);
        let data_end = pointer!(self.ctx, __sk_buff, data_end);
        (data + self.start.offset(), data_end)
    }
}

impl<S: Start> Frame for Skb<S> {
    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the context is valid.
        let len = unsafe { (*self.ctx).len } as usize;
        // The network header is in the buffer.
        len.wrapping_sub(self.start.offset())
    }

    /// The length is in the context.
    #[inline(always)]
    fn linear_len(&self) -> usize {
        self.len()
    }

    #[inline(always)]
    fn barrier_var(&self, value: u64) -> u64 {
        // SAFETY: the context is valid.
        barrier_var(value, unsafe { (*self.ctx).len })
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { (*self.ctx).gso_segs }.max(1)
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.load_words(offset)
    }

    #[inline(always)]
    fn half(&self, offset: usize) -> Option<u16> {
        self.load_half(offset)
    }

    #[inline(always)]
    fn pull(&mut self, end: usize) {
        let (data, data_end) = self.ends();
        if data + end > data_end {
            pull_data(self.ctx, (self.start.offset() + end) as u32);
        }
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
                (self.start.offset() + check.offset) as u32,
                from.half().into(),
                to.half().into(),
                flags | size_of::<Port>() as u64,
            )
        };
        if ret != 0 {
            return Err(Reason::WriteFailed);
        }
        let port = self.window(offset, 2).ok_or(Reason::WriteFailed)?;
        // SAFETY: the window was compared with the end of the packet.
        unsafe { store_half(port.cast(), to.half()) };
        Ok(())
    }

    #[inline(always)]
    fn set_addr(&mut self, field: AddrField, from: Addr, to: Addr) -> Result<(), Reason> {
        let is_v4 = field.header_check.is_some();
        let pseudo = match field.cover {
            Cover::Nothing => return self.store_addr(field, from, to),
            Cover::PseudoHeader => u64::from(BPF_F_PSEUDO_HDR),
            Cover::Data => 0,
        };
        let mangled = match field.check.kind {
            Kind::Plain => 0,
            Kind::Udp => u64::from(BPF_F_MARK_MANGLED_0),
        };
        let offset = (self.start.offset() + field.check.offset) as u32;
        let flags = pseudo | mangled;
        let ret = if is_v4 {
            let ([.., from], [.., to]) = (from.words(), to.words());
            // SAFETY: the context is valid; the helper checks the offset.
            unsafe { bpf_l4_csum_replace(self.ctx, offset, from.into(), to.into(), flags | 4) }
        } else {
            replace_v6(self.ctx, (offset, flags), from, to)
        };
        if ret != 0 {
            return Err(Reason::WriteFailed);
        }
        self.store_addr(field, from, to)
    }
}

/// Updates a checksum that covers an IPv6 address.
#[inline(always)]
fn replace_v6(ctx: *mut __sk_buff, (offset, flags): (u32, u64), from: Addr, to: Addr) -> i64 {
    /// `BPF_F_IPV6` of include/uapi/linux/bpf.h, since Linux 6.16: without it, a sum that a
    /// device computed over the whole packet would be wrong.
    const IPV6: u64 = 1 << 7;
    let (mut from, mut to) = (from.words(), to.words());
    // SAFETY: both are sixteen bytes; the helper only reads them.
    let diff = unsafe { bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0) };
    let diff = diff.cast_unsigned();
    // SAFETY: the context is valid; the helper checks the offset and the flags.
    unsafe {
        if flags & u64::from(BPF_F_PSEUDO_HDR) != 0 {
            let ret = bpf_l4_csum_replace(ctx, offset, 0, diff, flags | IPV6);
            if ret == 0 {
                return 0;
            }
        }
        bpf_l4_csum_replace(ctx, offset, 0, diff, flags)
    }
}

/// The offset of the network header in a socket buffer: `skb_network_offset` of the
/// kernel, as far as a byte can tell.
///
/// No field of the context has it. `bpf_skb_load_bytes_relative` reads no byte behind
/// the linear part of the buffer, which `data_end` is the end of; so the last byte that
/// it reads tells how far the network header is from that end.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn skb_network_offset(ctx: *mut __sk_buff) -> u32 {
    let len = (pointer!(ctx, __sk_buff, data_end) - pointer!(ctx, __sk_buff, data)) as u32;
    let is_before = |offset: u32| {
        let mut byte = 0_u8;
        // SAFETY: the context is valid, and one byte is written to one byte.
        let ret = unsafe {
            bpf_skb_load_bytes_relative(
                ctx.cast_const().cast(),
                len.wrapping_sub(offset),
                (&raw mut byte).cast(),
                1,
                BPF_HDR_START_NET,
            )
        };
        offset <= len && ret == 0
    };
    // Most tunnels leave nothing before it.
    if is_before(1) {
        return 0;
    }
    let mut network = 0;
    for bit in [128, 64, 32, 16, 8, 4, 2, 1] {
        let next = network | bit;
        if next <= len && !is_before(next) {
            network = next;
        }
    }
    network
}

/// Makes the first `end` bytes linear, or all that there are. Not inlined: it is
/// rare.
#[inline(never)]
fn pull_data(ctx: *mut __sk_buff, end: u32) {
    // SAFETY: the context is valid.
    unsafe {
        let end = end.min((*ctx).len);
        // If this fails, what is not there is not read.
        bpf_skb_pull_data(ctx, end);
    }
}
