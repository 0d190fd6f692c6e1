//! Network namespaces. A thread enters one, opens sockets or starts programs
//! there, and comes back; what it opened or started stays there.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{TcpListener, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::process::{Process, slow, wait_for};

/// Names of namespaces and directories begin with it; the pid comes next.
pub const PREFIX: &str = "prt-";

/// Deleted when dropped, with its interfaces.
pub struct Namespace {
    pub name: String,
    file: File,
    dir: PathBuf,
}

/// `ip netns add` mounts, and two at once can disturb each other.
static ADD: Mutex<()> = Mutex::new(());

impl Namespace {
    /// Makes a namespace; `dir` takes the output of what runs in it.
    pub fn new(prefix: &str, letter: &str, dir: &Path) -> Self {
        let name = format!("{prefix}-{letter}");
        let is_added = {
            let _guard = ADD.lock();
            let added = Command::new("ip").args(["netns", "add", &name]).status();
            added.is_ok_and(|status| status.success())
        };
        assert!(is_added, "ip netns add {name}");
        let file = File::open(Path::new("/run/netns").join(&name)).expect("the namespace");
        let dir = dir.to_owned();
        let namespace = Self { name, file, dir };
        for (key, value) in [
            // Addresses are usable at once, and every refusal is answered.
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
            ("ipv4/tcp_mtu_probing", "0"),
        ] {
            namespace.sysctl(key, value);
        }
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `f` with this thread in the namespace.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> T {
        struct Back(File);
        impl Drop for Back {
            fn drop(&mut self) {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("leave the namespace");
            }
        }
        let _back = Back(File::open("/proc/thread-self/ns/net").expect("our namespace"));
        setns(&self.file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
        f()
    }

    /// Listens at an address that was free just now. While another test starts a
    /// process, that process has all sockets of this one for a moment, so a port can be
    /// taken after its socket was closed.
    pub fn listen(&self, at: impl ToSocketAddrs) -> TcpListener {
        let listen = || TcpListener::bind(&at).ok();
        wait_for("a port to listen on", || self.enter(listen))
    }

    /// Makes a UDP socket, as [`Namespace::listen`] does for TCP.
    pub fn bind(&self, at: impl ToSocketAddrs) -> UdpSocket {
        let bind = || UdpSocket::bind(&at).ok();
        wait_for("a port to bind to", || self.enter(bind))
    }

    /// Starts a program.
    pub fn start(&self, args: &[&str]) -> Process {
        self.enter(|| Process::start(&self.dir, args))
    }

    /// Runs a program to its end, which has to be a good one, and returns what
    /// it printed.
    pub fn run(&self, args: &[&str]) -> String {
        let mut process = self.start(args);
        let status = process.wait();
        assert!(status.success(), "{}: {status}", args.join(" "));
        process.out()
    }

    /// Whether a program comes to a good end.
    pub fn succeeds(&self, args: &[&str]) -> bool {
        self.start(args).wait().success()
    }

    /// Commands of `ip`, one a line.
    pub fn ip(&self, batch: &str) {
        let mut ip = self.enter(|| {
            let mut ip = Command::new("ip");
            let ip = ip.args(["-batch", "-"]).stdin(Stdio::piped());
            ip.stderr(Stdio::piped()).spawn().expect("start ip")
        });
        let mut stdin = ip.stdin.take().expect("stdin");
        stdin.write_all(batch.as_bytes()).expect("write to ip");
        drop(stdin);
        let output = ip.wait_with_output().expect("wait for ip");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{batch}: {error}");
    }

    /// Sets a value below `/proc/sys/net`.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = Path::new("/proc/sys/net").join(key);
        self.enter(|| fs::write(path, value)).expect(key);
    }

    /// A file below `/proc/net`.
    pub fn proc_net(&self, name: &str) -> String {
        let path = Path::new("/proc/thread-self/net").join(name);
        self.enter(|| fs::read_to_string(path)).expect(name)
    }

    /// A counter of the kernel's TCP (RFC 4022).
    pub fn tcp_counter(&self, name: &str) -> u64 {
        let snmp = self.proc_net("snmp");
        let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let mut both = names.split(' ').zip(values.split(' '));
        let (_, value) = both.find(|(found, _)| *found == name).expect(name);
        value.parse().expect("a number")
    }

    /// The processes in the namespace.
    fn pids(&self) -> Vec<i32> {
        let pids = Command::new("ip")
            .args(["netns", "pids", &self.name])
            .output();
        let pids = pids.map(|output| output.stdout).unwrap_or_default();
        let pids = String::from_utf8_lossy(&pids);
        pids.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Names and ends the processes that a test has left behind.
    fn end_all(&self) {
        let start = Instant::now();
        // Some are ending just now.
        while !self.pids().is_empty() && start.elapsed() < slow(Duration::from_secs(5)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        for pid in self.pids() {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = line.replace('\0', " ");
            eprintln!("a test left process {pid} behind in {}: {line}", self.name);
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.end_all();
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// Names in a directory that belong to a run that is over.
pub fn stale(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| {
            let pid = name
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.split('-').next());
            pid.and_then(|pid| pid.parse::<u32>().ok())
                .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        })
        .collect()
}

/// Removes what a run left behind that was killed.
pub fn sweep() {
    for name in stale(Path::new("/run/netns")) {
        let _ = Command::new("ip").args(["netns", "del", &name]).status();
    }
    let temp = std::env::temp_dir();
    for name in stale(&temp) {
        let _ = fs::remove_dir_all(temp.join(name));
    }
}
