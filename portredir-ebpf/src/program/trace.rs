//! The trace: a record of each packet of a rule's port, and of each socket's peer, while
//! somebody reads them. User space finds out what the bytes mean.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_ringbuf_output,
};
use portredir_common::flow::FlowKey;
use portredir_common::map::packet_path::TRACED;
use portredir_common::map::trace::{TraceBytes, TraceCpu, TraceHead, TraceHook, TracedSocket};
use portredir_common::net::Port;
use portredir_common::verdict::Reason;
use portredir_common::wire::frame::{Frame, Link};

use crate::context::Context;
use crate::kernel::Kernel;
use crate::maps::{HOT, TRACE, TRACE_CPU, TRACE_UNTIL};

/// The place that a program runs at.
#[derive(Clone, Copy)]
pub struct Place {
    pub hook: TraceHook,
    pub link: Link,
}

impl Place {
    pub const fn new(hook: TraceHook, link: Link) -> Self {
        Self { hook, link }
    }

    /// The hook, and above it whether there is an Ethernet header.
    #[inline(always)]
    fn word(self) -> u32 {
        let is_ethernet = self.link == Link::Ethernet;
        self.hook as u32 | u32::from(is_ethernet) << 8
    }
}

/// Runs a part of the datapath and, while somebody traces, writes what became of the packet.
///
/// The frame is copied, as the compiler would no longer know the context in it behind a call
/// with its address. The bit is read twice, as the verifier would walk the part twice for two
/// values of it.
#[inline(always)]
pub fn run<C: Context, F: Frame + Copy>(
    frame: &mut F,
    kernel: &Kernel<C>,
    place: Place,
    part: impl FnOnce(&mut F, &Kernel<C>, Link) -> Reason,
) -> Reason {
    let ctx = kernel.ctx;
    if kernel.is_traced() {
        begin(*frame);
    }
    let reason = part(frame, kernel, place.link);
    // Looked up again, so that nothing has to be kept until now.
    if reason != Reason::NoRule && Kernel::new(ctx).is_some_and(|kernel| kernel.is_traced()) {
        return end(*frame, ctx.ifindex(), reason, place.word());
    }
    reason
}

/// Keeps the packet as it comes. Packets of one CPU do not interrupt each other.
#[inline(never)]
fn begin(frame: impl Frame) {
    if let Some(cpu) = TRACE_CPU.get_ptr_mut(0) {
        // SAFETY: per-CPU, and the pointer was checked.
        let packet = unsafe { &mut (*cpu).packet };
        packet.head.rule = 0;
        packet.len = frame.len() as u32;
        packet.captured = copy(&frame, &mut packet.before);
    }
}

/// Writes the record of a packet. The reason is returned, so that no program has to keep it.
#[inline(never)]
fn end(frame: impl Frame, ifindex: u32, reason: Reason, place: u32) -> Reason {
    let Some(cpu) = TRACE_CPU.get_ptr_mut(0) else {
        return reason;
    };
    // SAFETY: per-CPU, and the pointer was checked.
    let cpu = unsafe { &mut *cpu };
    let len = frame.len() as u32;
    // Without a beginning, somebody began to trace in between.
    if cpu.packet.len != len {
        return reason;
    }
    let at_ns = admit(cpu);
    if at_ns != 0 {
        let packet = &mut cpu.packet;
        packet.head.at_ns = at_ns;
        packet.head.ifindex = ifindex;
        packet.head.reason = reason as u32;
        packet.head.hook = place & 0xff;
        packet.is_ethernet = place >> 8;
        packet.segments = frame.segments();
        let captured = copy(&frame, &mut packet.after);
        packet.captured = packet.captured.min(captured);
        if !write(packet) {
            cpu.lost += 1;
        }
    }
    cpu.packet.len = 0;
    reason
}

/// Copies the first bytes of a packet; returns how many.
#[inline(always)]
fn copy(frame: &impl Frame, to: &mut TraceBytes) -> u32 {
    let mut captured = 0;
    for word in to {
        let Some([bytes]) = frame.words(captured) else {
            if let Some(half) = frame.half(captured) {
                *word = half.into();
                captured += 2;
            }
            break;
        };
        *word = bytes;
        captured += 4;
    }
    captured as u32
}

/// The time, when a record may be written now: somebody traces, and there were not too many.
/// 0 when none may.
#[inline(never)]
fn admit(cpu: &mut TraceCpu) -> u64 {
    // SAFETY: no arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let (Some(until_ns), Some(packet_path)) = (TRACE_UNTIL.get(0), HOT.get(0)) else {
        return 0;
    };
    if now_ns > *until_ns {
        // Who traced was killed.
        packet_path.generation.clear(TRACED);
        return 0;
    }
    if now_ns.wrapping_sub(cpu.window_ns) > TraceCpu::WINDOW_NS {
        cpu.window_ns = now_ns;
        cpu.in_window = 0;
    }
    if cpu.in_window >= TraceCpu::MOST {
        cpu.lost += 1;
        return 0;
    }
    cpu.in_window += 1;
    now_ns
}

/// Writes a record; returns whether there was room for it. Readers look by themselves, which
/// costs less than waking them for each record.
#[inline(always)]
fn write<T>(record: &T) -> bool {
    let data = core::ptr::from_ref(record).cast_mut().cast();
    let size = size_of::<T>() as u64;
    // SAFETY: a ring buffer, and a record of this size.
    let ret = unsafe {
        bpf_ringbuf_output(
            (&raw const TRACE).cast_mut().cast(),
            data,
            size,
            BPF_RB_NO_WAKEUP.into(),
        )
    };
    ret == 0
}

/// The peer of a socket, and what became of it.
#[derive(Clone, Copy)]
pub struct Peer<'a> {
    pub hook: TraceHook,
    pub reason: Reason,
    /// The client, as far as it is known, and the peer.
    pub key: &'a FlowKey,
    /// The port of the peer, after.
    pub port_after: Port,
}

/// Writes what became of a socket's peer, while somebody traces. With `OWNED` the process
/// that runs owns the socket.
#[inline(always)]
pub fn peer<const OWNED: bool, C: Context>(kernel: &Kernel<C>, peer: Peer<'_>) {
    if peer.reason != Reason::NoRule && kernel.is_traced() {
        let ifindex = kernel.ctx.ifindex();
        let port_after = u32::from(peer.port_after.half());
        let what = peer.reason as u32 | (peer.hook as u32) << 8;
        write_peer::<OWNED>(peer.key, port_after, ifindex, what);
    }
}

/// Writes the record of a peer; `what` has the reason, and above it the hook.
#[inline(never)]
fn write_peer<const OWNED: bool>(key: &FlowKey, port_after: u32, ifindex: u32, what: u32) {
    let Some(cpu) = TRACE_CPU.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: per-CPU, and the pointer was checked. Packets that interrupt this count too,
    // and then a count is lost.
    let cpu = unsafe { &mut *cpu };
    let at_ns = admit(cpu);
    if at_ns == 0 {
        return;
    }
    // In the ring buffer itself: this may run where little of the stack is left.
    let Some(mut entry) = TRACE.reserve_untyped::<TracedSocket>(0) else {
        cpu.lost += 1;
        return;
    };
    let socket = entry.as_mut_ptr();
    // SAFETY: memory of this size, which nobody else sees yet. All fields are written.
    unsafe {
        (*socket).head = TraceHead {
            at_ns,
            ifindex,
            reason: what & 0xff,
            hook: what >> 8,
            ..TraceHead::default()
        };
        (*socket).client = key.client;
        (*socket).peer = key.local;
        (*socket).client_port = key.client_port;
        (*socket).port = key.local_port;
        (*socket).port_after = Port::from_half(port_after as u16);
        (*socket).protocol = key.protocol;
        (*socket).version = key.version;
        (*socket).comm = [0; 16];
        if OWNED {
            (*socket).head.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            let comm = &raw mut (*socket).comm;
            bpf_get_current_comm(comm.cast(), size_of::<[u8; 16]>() as u32);
        }
    }
    entry.submit(BPF_RB_NO_WAKEUP.into());
}
