//! Violations of the walls that are known. Each line is a debt: the check fails
//! when a line is no longer needed, and the list is to end empty.

/// A file, what it imports or does, and why it still does. The second is a file,
/// or one of `aya`, `tokio`, `anyhow`, `print`, `unsafe` and `no floor`.
pub type Exception = (&'static str, &'static str, &'static str);

/// The line of [`EXCEPTIONS`] that would accept a violation.
pub fn line(from: &str, to: &str) -> String {
    format!("({from:?}, {to:?}, \"why\"),")
}

/// The known violations.
pub const EXCEPTIONS: &[Exception] = &[
    (
        "portredir/src/cli.rs",
        "portredir/src/plan.rs",
        "not cut yet",
    ),
    ("portredir/src/cli.rs", "anyhow", "not taken apart yet"),
    (
        "portredir/src/cli/bench.rs",
        "portredir/src/bench.rs",
        "not cut yet",
    ),
    (
        "portredir/src/cli/bench.rs",
        "portredir/src/plan.rs",
        "not cut yet",
    ),
    (
        "portredir/src/config.rs",
        "portredir/src/plan.rs",
        "not cut yet",
    ),
    ("portredir/src/control.rs", "no floor", "not moved yet"),
    ("portredir/src/counters.rs", "no floor", "not moved yet"),
    ("portredir/src/datapath.rs", "no floor", "not moved yet"),
    (
        "portredir/src/datapath/adopt.rs",
        "no floor",
        "not moved yet",
    ),
    (
        "portredir/src/datapath/attach.rs",
        "no floor",
        "not moved yet",
    ),
    (
        "portredir/src/datapath/counters.rs",
        "no floor",
        "not moved yet",
    ),
    (
        "portredir/src/datapath/error.rs",
        "no floor",
        "not moved yet",
    ),
    (
        "portredir/src/datapath/hook.rs",
        "no floor",
        "not moved yet",
    ),
    (
        "portredir/src/datapath/listeners.rs",
        "no floor",
        "not moved yet",
    ),
    (
        "portredir/src/datapath/program.rs",
        "no floor",
        "not moved yet",
    ),
    (
        "portredir/src/datapath/rules.rs",
        "no floor",
        "not moved yet",
    ),
    ("portredir/src/ethtool.rs", "no floor", "not moved yet"),
    ("portredir/src/facts.rs", "no floor", "not moved yet"),
    ("portredir/src/flows.rs", "no floor", "not moved yet"),
    ("portredir/src/follow.rs", "no floor", "not moved yet"),
    ("portredir/src/guard.rs", "no floor", "not moved yet"),
    ("portredir/src/host.rs", "print", "not taken apart yet"),
    ("portredir/src/host.rs", "aya", "not taken apart yet"),
    (
        "portredir/src/host.rs",
        "portredir/src/plan.rs",
        "not cut yet",
    ),
    (
        "portredir/src/host.rs",
        "portredir/src/state.rs",
        "not cut yet",
    ),
    ("portredir/src/host.rs", "anyhow", "not taken apart yet"),
    ("portredir/src/interface.rs", "no floor", "not moved yet"),
    ("portredir/src/lifecycle.rs", "no floor", "not moved yet"),
    ("portredir/src/memory.rs", "no floor", "not moved yet"),
    ("portredir/src/netdev.rs", "no floor", "not moved yet"),
    ("portredir/src/pins.rs", "no floor", "not moved yet"),
    ("portredir/src/preflight.rs", "no floor", "not moved yet"),
    ("portredir/src/run.rs", "no floor", "not moved yet"),
    ("portredir/src/selection.rs", "no floor", "not moved yet"),
    ("portredir/src/settings.rs", "no floor", "not moved yet"),
    ("portredir/src/sockets.rs", "no floor", "not moved yet"),
    ("portredir/src/state.rs", "aya", "not taken apart yet"),
    ("portredir/src/table.rs", "no floor", "not moved yet"),
    ("portredir-common/src/abi.rs", "no floor", "not moved yet"),
    (
        "portredir-common/src/bucket.rs",
        "no floor",
        "not moved yet",
    ),
    ("portredir-common/src/csum.rs", "no floor", "not moved yet"),
    (
        "portredir-common/src/generator.rs",
        "no floor",
        "not moved yet",
    ),
    ("portredir-common/src/icmp.rs", "no floor", "not moved yet"),
    (
        "portredir-common/src/redirect.rs",
        "no floor",
        "not moved yet",
    ),
    (
        "portredir-common/src/socket.rs",
        "no floor",
        "not moved yet",
    ),
    ("portredir-ebpf/src/bench.rs", "no floor", "not moved yet"),
    (
        "portredir-ebpf/src/context.rs",
        "portredir-ebpf/src/maps.rs",
        "not cut yet",
    ),
    (
        "portredir-ebpf/src/counters.rs",
        "no floor",
        "not moved yet",
    ),
    ("portredir-ebpf/src/flows.rs", "no floor", "not moved yet"),
    ("portredir-ebpf/src/socket.rs", "no floor", "not moved yet"),
    (
        "portredir-common/src/abi.rs",
        "portredir-common/src/bucket.rs",
        "not cut yet",
    ),
    (
        "portredir-common/src/flow.rs",
        "portredir-common/src/bucket.rs",
        "not cut yet",
    ),
    (
        "portredir-common/src/redirect.rs",
        "portredir-common/src/icmp.rs",
        "not cut yet",
    ),
    (
        "portredir-ebpf/src/counters.rs",
        "portredir-ebpf/src/maps.rs",
        "not cut yet",
    ),
    (
        "portredir-ebpf/src/maps.rs",
        "portredir-ebpf/src/flows.rs",
        "not cut yet",
    ),
    (
        "portredir/src/bench.rs",
        "portredir/src/bench/lab.rs",
        "not cut yet",
    ),
    (
        "portredir/src/bench.rs",
        "portredir/src/bench/runner.rs",
        "not cut yet",
    ),
    (
        "portredir/src/bench/load/tcp.rs",
        "portredir/src/bench/load.rs",
        "not cut yet",
    ),
    (
        "portredir/src/bench/load.rs",
        "portredir/src/bench/load/udp.rs",
        "not cut yet",
    ),
    (
        "portredir/src/bench/variant.rs",
        "portredir/src/bench/variant/rules.rs",
        "not cut yet",
    ),
    (
        "portredir/src/state.rs",
        "portredir/src/datapath.rs",
        "not cut yet",
    ),
    (
        "portredir/src/host.rs",
        "portredir/src/lifecycle.rs",
        "not cut yet",
    ),
    (
        "portredir/src/run.rs",
        "portredir/src/lifecycle.rs",
        "not cut yet",
    ),
    (
        "portredir/src/plan.rs",
        "portredir/src/settings.rs",
        "not cut yet",
    ),
    ("xtask/src/vm.rs", "xtask/src/vm/accel.rs", "not cut yet"),
    ("xtask/src/vm.rs", "xtask/src/vm/package.rs", "not cut yet"),
    (
        "portredir-ebpf/src/counters.rs",
        "portredir-ebpf/src/flows.rs",
        "not cut yet",
    ),
    (
        "portredir/src/bench.rs",
        "portredir/src/bench/plan.rs",
        "not cut yet",
    ),
    (
        "portredir/src/bench.rs",
        "portredir/src/bench/remote.rs",
        "not cut yet",
    ),
    (
        "portredir/src/cli.rs",
        "portredir/src/lifecycle.rs",
        "not cut yet",
    ),
    (
        "xtask/src/vm.rs",
        "xtask/src/vm/initramfs.rs",
        "not cut yet",
    ),
];
