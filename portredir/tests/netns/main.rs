//! The tier `netns`: hosts that talk through portredir, in network namespaces
//! of their own, with real servers and clients.
//!
//! [`lab`] makes the hosts and everything around them: network namespaces,
//! processes, control groups, captures and the program under test. [`peer`] has
//! the servers and clients that run on those hosts.
//!
//! The tests are in [`path`] (links, devices and ways to a host), [`engine`]
//! (what a single engine does, and what it does beside programs of others),
//! [`lifecycle`] (start, change and end), [`stress`] (floods, limits and long
//! runs), [`conformance`] (a comparison with nftables, packet by packet), [`forward`]
//! (targets with an address, compared in that way as well), [`security`] (users without rights, and forged packets), [`report`] (what is
//! printed), [`live`] (the view on a terminal) and [`bench`] (the benchmark command).
//!
//! A test is a function that panics when something is wrong, or calls [`skip`].

mod bench;
mod conformance;
mod engine;
mod forward;
mod lab;
mod lifecycle;
mod live;
mod path;
mod peer;
mod report;
mod security;
mod stress;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, set_hook};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::lab::Family;
use crate::lab::process::{DEADLINE, NOTES, note, slow};

/// A test that takes longer fails.
const LIMIT: Duration = Duration::from_secs(90);

/// The tools that every test needs.
const TOOLS: [&str; 5] = ["ip", "tc", "ethtool", "setpriv", "tcpdump"];

/// The engines, by the names the program has for them.
pub const ENGINES: [&str; 4] = ["xdp", "xdp-generic", "tc", "tc-clsact"];

/// The engines that attach where there is no driver with XDP.
pub const ANYWHERE: [&str; 3] = ["xdp-generic", "tc", "tc-clsact"];

/// One way to be redirected.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// The engine, by its name for `--engine`.
    pub engine: &'static str,
    /// Whether the devices compute checksums, and cut what is sent into
    /// packets. Without, a missing change of a checksum cannot hide.
    pub is_offloaded: bool,
    /// IP version of client and server.
    pub family: Family,
}

/// Enough tests to run every program, engine and way to attach, for machines that
/// are slow: `TEST_SUBSET=1`.
const SUBSET: [&str; 47] = [
    // Every packet program, on every hook.
    "xdp/tx-off/V6/http",
    "xdp-generic/tx-on/V4/http",
    "tc/tx-on/V4/http",
    "tc-clsact/tx-off/V6/http",
    "tc/tx-off/V4/path_mtu",
    "xdp/tx-on/V4/one_client_port",
    // Kinds of devices.
    "tc/bridge",
    "tc/tracked_bridge",
    "tc/macvlan_neighbours",
    "tc/tun",
    "xdp-generic/tun",
    "xdp/vlan_device",
    "tc/vlan_device",
    "tc/bond",
    "xdp/bond",
    "tc/stack_bridge_over_vlan_over_bond",
    "tc/stack_bridge_over_macvlan",
    "xdp-generic/stack_bridge_over_qinq",
    "tc/stack_macvlan_over_vlan",
    "tc/stack_vlan_over_macvlan",
    "tc/dummy",
    "tc/wireguard",
    "xdp-generic/wireguard",
    "auto/ipsec_policy_arrives",
    "auto/ipsec_policy_transport",
    "auto/ipsec_policy_tunnel",
    "tc/tunnel_gre_of_many_with_key",
    "tc/tunnel_sit",
    "tc/tunnel_vti6",
    "tc/tunnel_xfrm",
    "xdp-generic/tunnel_xfrm",
    "card/virtio_net/xdp/traffic",
    "card/virtio_net/tc/traffic",
    "card/virtio_net/xdp/jumbo",
    // Every way to attach, to end and to be replaced by another program.
    "xdp/plan_is_kept",
    "xdp-generic/plan_is_kept",
    "tc/plan_is_kept",
    "tc-clsact/plan_is_kept",
    "tc/kill_9",
    "tc/up_and_down",
    "xdp/up_and_down",
    "tc/three_capabilities",
    // Sockets, from outside and of this host.
    "socket/V4/scope",
    "socket/V6/server_comes_and_goes",
    "local/connected",
    "local/unconnected",
    "local/mptcp_client",
];

/// Leaves those of the subset, each of which has to be there.
fn subset(mut tests: Vec<Trial>) -> Vec<Trial> {
    for name in SUBSET {
        let is_there = tests.iter().any(|test| test.name() == name);
        assert!(is_there, "there is no test {name}");
    }
    tests.retain(|test| SUBSET.contains(&test.name()));
    tests
}

/// The tests to run.
#[derive(Default)]
pub struct Tests(Vec<Trial>);

impl Tests {
    /// Adds a test that needs some tools.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        tools: &'static [&'static str],
        test: impl FnOnce() + Send + 'static,
    ) {
        let trial = Trial::ignorable_test(name, move || run(tools, test));
        self.0.push(trial);
    }

    /// Adds a test for each cell of the matrix.
    pub fn add_matrix(&mut self, name: &str, tools: &'static [&'static str], test: fn(&Cell)) {
        for engine in ENGINES {
            for is_offloaded in [true, false] {
                for family in Family::BOTH {
                    let tx = if is_offloaded { "tx-on" } else { "tx-off" };
                    let name = format!("{engine}/{tx}/{family:?}/{name}");
                    let cell = Cell {
                        engine,
                        is_offloaded,
                        family,
                    };
                    self.add(name, tools, move || test(&cell));
                }
            }
        }
    }

    /// Adds a test for some engines, without offload.
    pub fn add_for(
        &mut self,
        engines: &[&'static str],
        name: &str,
        tools: &'static [&'static str],
        test: fn(&Cell),
    ) {
        for &engine in engines {
            let cell = Cell {
                engine,
                is_offloaded: false,
                family: Family::V4,
            };
            self.add(format!("{engine}/{name}"), tools, move || test(&cell));
        }
    }
}

/// Why a test cannot run here.
pub struct Skip(String);

impl Skip {
    /// In words.
    pub fn reason(self) -> String {
        self.0
    }
}

/// Ends a test that cannot run here.
pub fn skip(reason: impl Into<String>) -> ! {
    panic_any(Skip(reason.into()))
}

fn run(tools: &[&str], test: impl FnOnce()) -> Result<Completion, Failed> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(Completion::ignored_with("needs root"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_missing =
        |tool: &&&str| !std::env::split_paths(&path).any(|dir| dir.join(tool).exists());
    if let Some(tool) = TOOLS.iter().chain(tools).find(is_missing) {
        return Ok(Completion::ignored_with(format!("needs {tool}")));
    }
    DEADLINE.set(Some(Instant::now() + slow(LIMIT)));
    let result = catch_unwind(AssertUnwindSafe(test));
    let notes = NOTES.take();
    if result.is_ok() && lab::extent::prints_all_notes() && !notes.is_empty() {
        eprint!("{notes}");
    }
    match result {
        Ok(()) => Ok(Completion::Completed),
        Err(panic) => match panic.downcast::<Skip>() {
            Ok(skip) => Ok(Completion::ignored_with(skip.0)),
            Err(_) => Err(notes.into()),
        },
    }
}

fn message(panic: &dyn Any) -> Option<&str> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied())
}

fn main() -> ExitCode {
    // The panic of a test is printed with its failure, not among those of others.
    set_hook(Box::new(|info| {
        if let (Some(text), Some(place)) = (message(info.payload()), info.location()) {
            note(&format!("{place}: {text}"));
        }
    }));
    lab::namespace::sweep();
    lab::cgroup::sweep();
    let mut tests = Tests::default();
    path::add(&mut tests);
    engine::add(&mut tests);
    lifecycle::add(&mut tests);
    report::add(&mut tests);
    live::add(&mut tests);
    bench::add(&mut tests);
    let arguments = Arguments::from_args();
    conformance::add(&mut tests, arguments.filter.as_deref());
    forward::add(&mut tests, arguments.filter.as_deref());
    stress::add(&mut tests);
    security::add(&mut tests);
    let is_mounted = mount_bpffs();
    let mut tests = tests.0;
    if std::env::var_os("TEST_SUBSET").is_some() {
        tests = subset(tests);
    }
    let conclusion = libtest_mimic::run(&arguments, tests);
    if is_mounted {
        let _ = nix::mount::umount("/sys/fs/bpf");
    }
    conclusion.exit_code()
}

/// Mounts bpffs, as systemd does at boot, unless it is: programs that find none
/// mount it, and take it away when they end, under the eyes of other tests.
fn mount_bpffs() -> bool {
    use nix::mount::{MsFlags, mount};
    use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
    let dir = "/sys/fs/bpf";
    let is_there = statfs(dir).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    let none: Option<&str> = None;
    !is_there && mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), none).is_ok()
}
