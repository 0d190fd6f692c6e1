//! Connections that a server accepts.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_ops};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use portredir_common::datapath::conntrack;
use portredir_common::flow::{Epoch, FlowKey};
use portredir_common::kernel::Outcome;
use portredir_common::net::{Addr, Port, Protocol, Version};

use crate::context::{AF_INET, v4, v6};
use crate::kernel::sockets::stored;
use crate::kernel::{Kernel, counters};
use crate::program::sock_ops::{is_in_netns, is_target};

/// Notes a connection that a server on a target accepts: see [`conntrack::accept`].
#[inline(always)]
fn accept(ops: *mut bpf_sock_ops) {
    // SAFETY: the kernel passes a valid context for the time of the run.
    let (port, remote_port, socket) = unsafe {
        let socket: *mut bpf_sock = (*ops).__bindgen_anon_2.sk;
        ((*ops).local_port as u16, (*ops).remote_port, socket)
    };
    let port = Port::new(port);
    let Some(tables) = Kernel::new(ops) else {
        return;
    };
    if !is_target(&tables, port) || socket.is_null() || !is_in_netns(ops) {
        return;
    }
    // Two bytes in network order, shifted to where they would be the port of a
    // word in network order.
    let client_port = if cfg!(target_endian = "little") {
        remote_port >> 16
    } else {
        remote_port
    };
    let mut key = FlowKey {
        client: Addr::V6_ANY,
        local: Addr::V6_ANY,
        client_port: Port::from_half(client_port as u16),
        local_port: port,
        protocol: Protocol::Tcp as u8,
        version: Version::V4 as u8,
        pad: [0; 2],
    };
    // SAFETY: as above.
    if unsafe { (*ops).family } == AF_INET {
        key.client = v4!(ops, bpf_sock_ops, remote_ip4);
        key.local = v4!(ops, bpf_sock_ops, local_ip4);
    } else {
        key.client = v6!(ops, bpf_sock_ops, remote_ip6);
        key.local = v6!(ops, bpf_sock_ops, local_ip6);
        // A server of both versions has its IPv4 clients like this.
        if !key.client.is_v4() {
            key.version = Version::V6 as u8;
        }
    }
    let mut flow = conntrack::accept(&tables, &key, Epoch::at(counters::now_ns()));
    if !flow.is_direct(&key) {
        counters::record_outcome(flow.rule, Outcome::Accepted);
    }
    // A full socket, as it is one of a connection. Without memory for it the flow
    // tables are asked.
    stored(
        socket,
        &raw mut flow,
        u64::from(BPF_SK_STORAGE_GET_F_CREATE),
    );
}

#[sock_ops]
fn portredir_acc(ctx: SockOpsContext) -> u32 {
    const ACCEPTED: u32 = aya_ebpf::bindings::BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB;
    if ctx.op() == ACCEPTED {
        accept(ctx.ops);
    }
    1
}
