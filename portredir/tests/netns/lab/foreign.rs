//! Foreign eBPF programs: a process of its own, which attaches one
//! and counts the IPv4 packets that the program sees, by their port here: the
//! destination of what comes in, the source of what goes out.
//!
//! There is no compiler here: a script writes the instructions, and makes the
//! system calls, as it would be done without any of our libraries.

use serde_json::Value;

use crate::lab::namespace::Namespace;
use crate::lab::process::{Process, wait_for};
use crate::lab::python::python;

/// The system call bpf(2), and its instructions. Scripts begin with it.
pub const BPF: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, layout, *values):
    attr = ctypes.create_string_buffer(struct.pack(layout, *values), 128)
    fd = libc.syscall(321, command, attr, 128)
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"bpf({command}): {os.strerror(error)}")
    return fd
def pointer(buffer):
    return ctypes.addressof(buffer)
def insn(op, dst=0, src=0, off=0, imm=0):
    return struct.pack("<BBhi", op, dst | src << 4, off, imm)
"#;

/// Attaches a program and prints what it counts:
/// `HOOK POSITION INTERFACE NAME VERDICT`.
const ATTACH: &str = r#"
import json, socket, time
hook, position, interface, name, verdict = sys.argv[1:6]
PORTS = 65536
counts = bpf(0, "IIII", 2, 4, 8, PORTS) # an array of u64, by port
# The port to r4, in host order, or on to the end.
if hook == "xdp":
    look = [
        insn(0x61, 2, 1, 0), insn(0x61, 3, 1, 4), # data, data_end
        insn(0xbf, 4, 2), insn(0x07, 4, imm=38),
        (0x2d, 4, 3, 0), # shorter
        insn(0x69, 4, 2, 12), (0x55, 4, 0, 8), # not IPv4
        insn(0x69, 4, 2, 36),
    ]
else:
    look = [
        insn(0x61, 2, 1, 16), (0x55, 2, 0, 8), # skb->protocol is not IPv4
        insn(0xb7, 2, imm=34 if hook == "egress" else 36),
        insn(0xbf, 3, 10), insn(0x07, 3, imm=-8),
        insn(0xb7, 4, imm=2),
        insn(0x85, imm=26), (0x55, 0, 0, 0), # bpf_skb_load_bytes
        insn(0x69, 4, 10, -8),
    ]
look += [
    insn(0xdc, 4, imm=16), insn(0x63, 10, 4, -4),
    insn(0x18, 1, 1, imm=counts), insn(0),
    insn(0xbf, 2, 10), insn(0x07, 2, imm=-4),
    insn(0x85, imm=1), (0x15, 0, 0, 0), # bpf_map_lookup_elem
    insn(0xb7, 1, imm=1), insn(0xdb, 0, 1),
]
end = len(look)
program = b""
for i, step in enumerate(look):
    if isinstance(step, tuple):
        op, dst, src, imm = step
        step = insn(op, dst, src, end - i - 1, imm)
    program += step
program += insn(0xb7, 0, imm=int(verdict)) + insn(0x95)
code = ctypes.create_string_buffer(program, len(program))
licence = ctypes.create_string_buffer(b"GPL")
log = ctypes.create_string_buffer(65536)
kind = 6 if hook == "xdp" else 3
try:
    program = bpf(5, "IIQQIIQII16s", kind, len(program) // 8, pointer(code), pointer(licence),
        1, len(log), pointer(log), 0, 0, name.encode())
except OSError:
    sys.stderr.write(log.value.decode())
    raise
index = socket.if_nametoindex(interface)
def attribute(kind, value):
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
def rtnetlink(kind, flags, payload):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        # NLM_F_REQUEST | NLM_F_ACK
        netlink.send(struct.pack("IHHII", 16 + len(payload), kind, flags | 5, 1, 0) + payload)
        error = struct.unpack_from("i", netlink.recv(65536), 16)[0]
        if error:
            raise OSError(-error, f"netlink: {os.strerror(-error)}")
MODES = {"native": 4, "generic": 2}
if hook == "xdp" and position.endswith("-netlink"):
    # RTM_SETLINK, as `ip link set xdp`: IFLA_XDP of IFLA_XDP_FD and IFLA_XDP_FLAGS.
    mode = MODES[position.removesuffix("-netlink")]
    xdp = attribute(1, struct.pack("i", program)) + attribute(3, struct.pack("I", mode))
    rtnetlink(19, 0, struct.pack("BxHiII", 0, 0, index, 0, 0) + attribute(43 | 0x8000, xdp))
elif hook == "xdp":
    link = bpf(28, "IIII", program, index, 37, MODES[position])
elif position in ("first", "last"):
    # TCX: BPF_F_BEFORE or BPF_F_AFTER all others.
    attach_type = {"ingress": 46, "egress": 47}[hook]
    link = bpf(28, "IIII", program, index, attach_type, 8 if position == "first" else 16)
else:
    # RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, as `tc filter add … pref N bpf da`:
    # TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS.
    parent = {"ingress": 0xfffffff2, "egress": 0xfffffff3}[hook]
    info = int(position) << 16 | socket.htons(3)
    options = attribute(6, struct.pack("I", program)) + attribute(7, name.encode() + b"\0")
    options += attribute(8, struct.pack("I", 1))
    filter = attribute(1, b"bpf\0") + attribute(2, options)
    rtnetlink(44, 0x600, struct.pack("BxHiIII", 0, 0, index, 0, parent, info) + filter)
print("ready", flush=True)
key = ctypes.c_uint32()
value = ctypes.c_uint64()
while True:
    seen = {}
    for port in sys.argv[6:]:
        key.value = int(port)
        bpf(1, "IxxxxQQQ", counts, pointer(key), pointer(value), 0)
        seen[port] = value.value
    print(json.dumps(seen), flush=True)
    time.sleep(0.02)
"#;

/// The value that our programs return so that the next program runs (`TCX_NEXT`).
pub const NEXT: i8 = -1;
/// `TC_ACT_OK`: accepts the packet, and ends the chain.
pub const OK: i8 = 0;
/// `XDP_PASS`.
pub const PASS: i8 = 2;

/// The ports whose packets are counted.
const PORTS: [&str; 2] = ["80", "8080"];

/// A program that is attached, until dropped (but what netlink attached stays).
pub struct Foreign(Process);

impl Foreign {
    /// Attaches to `hook`: `ingress` or `egress`, where `position` is `first`
    /// or `last` among TCX programs or the priority of a filter; or `xdp`,
    /// where it is a mode, with `-netlink` for no link.
    pub fn attach(
        namespace: &Namespace,
        (hook, position): (&str, &str),
        interface: &str,
        (name, verdict): (&str, i8),
    ) -> Self {
        let verdict = verdict.to_string();
        let (python, script) = (python(), [BPF, ATTACH].concat());
        let mut args = vec![python, "-c", &script, hook, position];
        args.extend([interface, name, &verdict]);
        args.extend(PORTS);
        let mut process = namespace.start(&args);
        process.wait_for_words("ready");
        Self(process)
    }

    /// Whether the kernel refuses it.
    pub fn is_refused(namespace: &Namespace, at: (&str, &str), interface: &str) -> bool {
        let pass = PASS.to_string();
        let (python, script) = (python(), [BPF, ATTACH].concat());
        let args = [
            python, "-c", &script, at.0, at.1, interface, "refused", &pass,
        ];
        !namespace.succeeds(&args)
    }

    /// How many lines it has printed, and the count in the last one.
    fn count(&self, port: u16) -> (usize, u64) {
        let out = self.0.out();
        let (whole, _) = out.rsplit_once('\n').expect("a line");
        let last = whole.lines().next_back().expect("a line");
        // Before the first count it is `ready`.
        let count = serde_json::from_str::<Value>(last)
            .ok()
            .and_then(|counts| counts[port.to_string()].as_u64());
        (whole.lines().count(), count.unwrap_or(0))
    }

    /// How many packets of this port it has seen by now.
    pub fn packets(&self, port: u16) -> u64 {
        let (before, _) = self.count(port);
        wait_for("a count", || {
            let (lines, count) = self.count(port);
            // One count may have been under way.
            (lines >= before + 2).then_some(count)
        })
    }
}
