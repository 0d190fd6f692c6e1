//! Connections from outside by `--engine socket`: the server that listens on
//! the target gets them, and no packet is rewritten.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::capture::Capture;
use crate::lab::cgroup::Cgroup;
use crate::lab::namespace::Namespace;
use crate::lab::process::{wait_for, wait_within};
use crate::lab::program::{PROGRAM, Redirector, attached, links};
use crate::lab::{Family, Lab, link};
use crate::lifecycle::life::start_as_nobody;
use crate::peer::conn::{Conn, Proto, is_refused};
use crate::peer::echo::{self, Echo};
use crate::peer::listener::{Listen, Server, meet, who};
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, &'static [&'static str], fn(&Cell));
    const TESTS: [Test; 25] = [
        ("server_comes_and_goes", &[], comes_and_goes),
        ("group", &[], group),
        ("group_of_eight", &[], group_of_eight),
        ("families", &[], families),
        ("loopback_server", &[], loopback_server),
        ("loopback_target", &[], loopback_target),
        ("outside_of_the_cgroup", &[], outside_of_the_cgroup),
        ("one_of_two_addresses", &[], one_of_two_addresses),
        ("address_before_any", &[], address_before_any),
        ("device", &[], device),
        ("syn_cookies", &[], syn_cookies),
        ("fast_open", &["python3"], fast_open),
        ("mptcp_client", &["python3"], mptcp_client),
        ("mptcp_server", &["python3"], mptcp_server),
        ("forking_server", &["python3"], forking_server),
        ("time_wait", &[], time_wait),
        ("connections_survive", &[], connections_survive),
        ("other_namespace", &[], other_namespace),
        ("scope", &[], scope),
        ("options", &["python3"], options),
        ("counters", &[], counters),
        ("nothing_is_left", &[], nothing_is_left),
        ("three_capabilities", &[], three_capabilities),
        ("device_that_is_gone", &[], device_that_is_gone),
        ("chained_rules", &[], chained_rules),
    ];
    for (name, tools, test) in TESTS {
        for family in Family::BOTH {
            let cell = Cell {
                engine: "socket",
                is_offloaded: true,
                family,
            };
            tests.add(format!("socket/{family:?}/{name}"), tools, move || {
                test(&cell);
            });
        }
    }
    tests.add("socket/tiny_fragments", &["python3"], tiny_fragments);
}

const ANY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn start(lab: &Lab, iface: &str) -> Redirector {
    let args = ["--iface", iface, "--engine", "socket", "80:8080"];
    Redirector::start(&lab.host, &args)
}

fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => ANY.into(),
    }
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn flows(report: &Value) -> u64 {
    report["rules"][0]["flows"].as_u64().expect("a number")
}

/// Who serves the client of a lab at the host's first address.
fn served_by(cell: &Cell, lab: &Lab, port: u16) -> Option<String> {
    who(&lab.client, cell.family.host(port))
}

/// Nobody has to tell of a server: one that was there before, one that takes its
/// place, and one that comes when there was none.
fn comes_and_goes(cell: &Cell) {
    let lab = Lab::new(cell);
    for has_first in [true, false] {
        let first = has_first.then(|| Listen::on(ANY, 8080).start(&lab.host, "first"));
        let redirector = start(&lab, "h0");
        if let Some(first) = first {
            let (mut conn, greeting) =
                meet(&lab.client, 0, cell.family.host(80)).expect("the server");
            assert_eq!(greeting.name, "first");
            assert_eq!(greeting.local, cell.family.host(80), "what was dialled");
            assert_eq!(greeting.peer, conn.local(), "nobody was in the way");
            conn.echo(&[7; 50_000]);
            assert_eq!(served_by(cell, &lab, 8080).as_deref(), Some("first"));
            drop(first);
        }
        const ROUNDS: u64 = 5;
        let resets = lab.host.tcp_counter("OutRsts");
        for round in 0..ROUNDS {
            assert_eq!(served_by(cell, &lab, 80), None, "round {round}");
            let second = Listen::on(ANY, 8080).start(&lab.host, "second");
            for _ in 0..3 {
                assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("second"));
                assert_eq!(served_by(cell, &lab, 8080).as_deref(), Some("second"));
            }
            drop(second);
        }
        let report = redirector.stop();
        let begun = 3 * ROUNDS + u64::from(has_first);
        // A segment that comes when its connection has just ended looks for a
        // listener as a SYN does, and is answered by RST.
        let strays = lab.host.tcp_counter("OutRsts") - resets - ROUNDS;
        let flows = flows(&report);
        assert!(
            (begun..=begun + strays).contains(&flows),
            "{flows} flows of {begun} connections and {strays} stray segments"
        );
        assert_eq!(served_by(cell, &lab, 80), None);
    }
}

/// The members of a group, by their names.
fn members(lab: &Lab, names: impl Iterator<Item = u32>) -> Vec<Server> {
    names
        .map(|name| {
            let listen = Listen::on(ANY, 8080).shared();
            listen.start(&lab.host, &name.to_string())
        })
        .collect()
}

/// Who serves many connections.
fn all_who(cell: &Cell, lab: &Lab, count: u32) -> BTreeSet<u32> {
    let one = |_| served_by(cell, lab, 80).expect("a server");
    (0..count)
        .map(|i| one(i).parse().expect("a number"))
        .collect()
}

/// Servers that share the port share the connections, and each may go.
fn group(cell: &Cell) {
    let lab = Lab::new(cell);
    let mut old = members(&lab, 0..4);
    let redirector = start(&lab, "h0");
    assert_eq!(all_who(cell, &lab, 80), (0..4).collect());
    for gone in 0..3 {
        old.remove(0);
        let left = (gone + 1)..4;
        let count = 20 * u32::try_from(left.len()).expect("few");
        assert_eq!(all_who(cell, &lab, count), left.collect());
    }
    // A new group comes before the old one goes, as in a restart without a gap.
    for generation in 1..6 {
        let names = 10 * generation..10 * generation + 4;
        let new = members(&lab, names.clone());
        drop(std::mem::replace(&mut old, new));
        assert_eq!(all_who(cell, &lab, 80), names.collect());
    }
    while old.len() > 1 {
        old.pop();
        all_who(cell, &lab, 10);
    }
    drop(old);
    assert_eq!(served_by(cell, &lab, 80), None);
    redirector.stop();
}

/// More than are kept: those that are left are found soon.
fn group_of_eight(cell: &Cell) {
    let lab = Lab::new(cell);
    let redirector = start(&lab, "h0");
    let mut servers = members(&lab, 0..8);
    assert_eq!(all_who(cell, &lab, 200), (0..8).collect());
    while servers.len() > 1 {
        servers.remove(0);
        wait_within(Duration::from_secs(1), "another of the group", || {
            served_by(cell, &lab, 80)
        });
    }
    redirector.stop();
}

/// Servers for one version of IP and for both.
fn families(cell: &Cell) {
    let lab = Lab::new(cell);
    let check = |v4: Option<&str>, v6: Option<&str>| {
        let served = Family::BOTH.map(|family| who(&lab.client, family.host(80)));
        assert_eq!([served[0].as_deref(), served[1].as_deref()], [v4, v6]);
    };
    let v4 = || Listen::on(Ipv4Addr::UNSPECIFIED, 8080).start(&lab.host, "v4");
    let v6 = || Listen::on(ANY, 8080).v6_only().start(&lab.host, "v6");
    let both = || Listen::on(ANY, 8080).start(&lab.host, "both");
    // Known from before, then told by the kernel.
    let before = match cell.family {
        Family::V4 => v4(),
        Family::V6 => v6(),
    };
    let redirector = start(&lab, "h0");
    match cell.family {
        Family::V4 => check(Some("v4"), None),
        Family::V6 => check(None, Some("v6")),
    }
    drop(before);
    check(None, None);
    {
        let _v4 = v4();
        check(Some("v4"), None);
        let _v6 = v6();
        check(Some("v4"), Some("v6"));
    }
    {
        let _v6 = v6();
        check(None, Some("v6"));
        let _v4 = v4();
        check(Some("v4"), Some("v6"));
    }
    {
        let _both = both();
        check(Some("both"), Some("both"));
    }
    // An IPv6 socket on an IPv4 address.
    let mapped = Ipv4Addr::new(10, 9, 1, 1).to_ipv6_mapped();
    let _mapped = Listen::on(mapped, 8080).start(&lab.host, "mapped");
    check(Some("mapped"), None);
    redirector.stop();
}

/// What a server keeps to the host stays there.
fn loopback_server(cell: &Cell) {
    let lab = Lab::new(cell);
    let local = SocketAddr::new(loopback(cell.family), 80);
    let serve = || Listen::on(loopback(cell.family), 8080).start(&lab.host, "loopback");
    let before = serve();
    let redirector = start(&lab, "all");
    for server in [Some(before), None] {
        let _server = server.unwrap_or_else(serve);
        for port in [80, 8080] {
            let local = SocketAddr::new(local.ip(), port);
            assert_eq!(served_by(cell, &lab, port), None);
            assert_eq!(who(&lab.host, cell.family.host(port)), None);
            assert_eq!(who(&lab.host, local).as_deref(), Some("loopback"));
        }
    }
    let report = redirector.stop();
    assert_eq!(flows(&report), 2);
    // Refused by `lo` and by h0.
    assert_eq!(report["drops"]["no_listener"], 4, "{report}");
}

/// Unless it is told otherwise.
fn loopback_target(cell: &Cell) {
    let lab = Lab::new(cell);
    let args = ["--iface", "all", "--engine", "socket"];
    let rule = ["--allow-loopback-target", "80:8080"];
    let redirector = Redirector::start(&lab.host, &[args.as_slice(), &rule].concat());
    assert_eq!(served_by(cell, &lab, 80), None);
    let _loopback = Listen::on(loopback(cell.family), 8080).start(&lab.host, "loopback");
    let own = SocketAddr::new(loopback(cell.family), 80);
    for _ in 0..2 {
        assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("loopback"));
        assert_eq!(served_by(cell, &lab, 8080), None);
        assert_eq!(who(&lab.host, own).as_deref(), Some("loopback"));
        assert_eq!(
            who(&lab.host, cell.family.host(80)).as_deref(),
            Some("loopback")
        );
    }
    let (mut conn, greeting) = meet(&lab.client, 0, cell.family.host(80)).expect("the server");
    assert_eq!(greeting.local, cell.family.host(80), "what was dialled");
    conn.echo(&[7; 50_000]);
    // One on the address itself comes first.
    let addr = cell.family.addr(1, 1);
    let outside = Listen::on(addr, 8080).start(&lab.host, "outside");
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("outside"));
    assert_eq!(who(&lab.host, own).as_deref(), Some("loopback"));
    drop(outside);
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("loopback"));
    redirector.stop();
}

/// The kernel does not tell of servers there, but they are found.
fn outside_of_the_cgroup(cell: &Cell) {
    let lab = Lab::new(cell);
    let cgroup = Cgroup::new(&lab.host.name);
    let args = ["--iface", "h0", "--engine", "socket"];
    let rule = ["--cgroup", cgroup.path(), "80:8080"];
    let redirector = Redirector::start(&lab.host, &[args.as_slice(), &rule].concat());
    for _ in 0..2 {
        assert_eq!(served_by(cell, &lab, 80), None);
        let _server = Listen::on(ANY, 8080).start(&lab.host, "outside");
        let served = || served_by(cell, &lab, 80);
        let served = wait_within(Duration::from_secs(1), "the server outside", served);
        assert_eq!(served, "outside");
    }
    let on = SocketAddr::new(any(cell.family), 8080);
    let args = talk_args("fast-open-server", on);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut inside = cgroup.start(&lab.host, &args);
    inside.wait_for_words("ready");
    let name = served_by(cell, &lab, 80);
    assert_eq!(name.as_deref(), Some("fast-open-server"));
    inside.kill();
    assert_eq!(served_by(cell, &lab, 80), None);
    redirector.stop();
}

fn one_of_two_addresses(cell: &Cell) {
    let lab = Lab::new(cell);
    let second = cell.family.addr(1, 9);
    let bits = if second.is_ipv4() { 24 } else { 64 };
    lab.host
        .ip(&format!("addr add {second}/{bits} dev h0 nodad"));
    let first = cell.family.addr(1, 1);
    let check = |at_first: Option<&str>, at_second: Option<&str>| {
        let served = [first, second].map(|addr| who(&lab.client, SocketAddr::new(addr, 80)));
        assert_eq!(
            [served[0].as_deref(), served[1].as_deref()],
            [at_first, at_second]
        );
    };
    let _second = Listen::on(second, 8080).start(&lab.host, "second");
    let redirector = start(&lab, "h0");
    check(None, Some("second"));
    let at_first = Listen::on(first, 8080).start(&lab.host, "first");
    check(Some("first"), Some("second"));
    drop(at_first);
    check(None, Some("second"));
    redirector.stop();
}

/// The kernel prefers the server on the address itself; so do we.
fn address_before_any(cell: &Cell) {
    let lab = Lab::new(cell);
    let addr = cell.family.addr(1, 1);
    let _any = Listen::on(ANY, 8080).shared().start(&lab.host, "both");
    let family = Listen::on(any(cell.family), 8080).v6_only().shared();
    let _family = (cell.family == Family::V4).then(|| family.start(&lab.host, "family"));
    let redirector = start(&lab, "h0");
    let check = |name: &str| {
        for port in [80, 8080] {
            assert_eq!(served_by(cell, &lab, port).as_deref(), Some(name), "{port}");
        }
    };
    let without = match cell.family {
        Family::V4 => "family",
        Family::V6 => "both",
    };
    check(without);
    let exact = Listen::on(addr, 8080).shared().start(&lab.host, "exact");
    check("exact");
    drop(exact);
    check(without);
    redirector.stop();
}

/// A server that is bound to a device serves what comes in there.
fn device(cell: &Cell) {
    let lab = Lab::new(cell);
    link(&lab.host, "h2", (3, 1), &lab.client, "c2", (3, 2));
    let check = |at_h0: Option<&str>, at_h2: Option<&str>| {
        for port in [80, 8080] {
            let at = |net| SocketAddr::new(cell.family.addr(net, 1), port);
            let served = [1, 3].map(|net| who(&lab.client, at(net)));
            let served = [served[0].as_deref(), served[1].as_deref()];
            assert_eq!(served, [at_h0, at_h2], "port {port}");
        }
    };
    let on = |device: &'static str| {
        let listen = Listen {
            device,
            ..Listen::on(ANY, 8080)
        };
        listen.start(&lab.host, device)
    };
    let h0 = on("h0");
    let redirector = start(&lab, "h0,h2");
    check(Some("h0"), None);
    let h2 = on("h2");
    check(Some("h0"), Some("h2"));
    drop(h0);
    check(None, Some("h2"));
    let h0 = on("h0");
    check(Some("h0"), Some("h2"));
    redirector.stop();
    // Both are there before.
    let redirector = start(&lab, "h0,h2");
    check(Some("h0"), Some("h2"));
    drop((h0, h2));
    check(None, None);
    redirector.stop();
}

/// A server that is bound to a device that is gone is in nobody's way.
fn device_that_is_gone(cell: &Cell) {
    let lab = Lab::new(cell);
    lab.host.ip("link add gone0 type veth peer name gone1");
    let gone = Listen {
        device: "gone0",
        ..Listen::on(ANY, 8080)
    };
    let _gone = gone.shared().start(&lab.host, "gone");
    lab.host.ip("link del gone0");
    let first = Listen::on(ANY, 8080).shared().start(&lab.host, "first");
    let redirector = start(&lab, "h0");
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("first"));
    drop(first);
    assert_eq!(served_by(cell, &lab, 80), None);
    redirector.stop();
}

/// A server that is found late on its own address is not mistaken for the one
/// that its port is sent on to.
fn chained_rules(cell: &Cell) {
    let lab = Lab::new(cell);
    let cgroup = Cgroup::new(&lab.host.name);
    let _next = Listen::on(ANY, 9090).start(&lab.host, "next");
    let args = ["--iface", "h0", "--engine", "socket", "--cgroup"];
    let rules = [cgroup.path(), "80:8080", "8080:9090"];
    let redirector = Redirector::start(&lab.host, &[args.as_slice(), &rules].concat());
    let on_address = Listen::on(cell.family.addr(1, 1), 8080);
    let _server = on_address.start(&lab.host, "outside");
    let served = || served_by(cell, &lab, 80);
    let served = wait_within(Duration::from_secs(1), "the server outside", served);
    assert_eq!(served, "outside");
    assert_eq!(served_by(cell, &lab, 8080).as_deref(), Some("next"));
    redirector.stop();
}

/// A counter of the kernel, from `/proc/net/netstat`.
fn netstat(namespace: &Namespace, name: &str) -> u64 {
    let text = namespace.proc_net("netstat");
    let lines: Vec<_> = text.lines().collect();
    let mut pairs = lines.chunks_exact(2).flat_map(|pair| {
        let values = pair[1].split_whitespace();
        pair[0].split_whitespace().zip(values)
    });
    let (_, value) = pairs.find(|(key, _)| *key == name).expect(name);
    value.parse().expect("a number")
}

/// Without a request socket the last ACK looks for the listener again.
fn syn_cookies(cell: &Cell) {
    let lab = Lab::new(cell);
    lab.host.sysctl("ipv4/tcp_syncookies", "2");
    let _server = Listen::on(ANY, 8080).start(&lab.host, "server");
    let redirector = start(&lab, "h0");
    for port in [80, 8080].repeat(5) {
        let (mut conn, greeting) =
            meet(&lab.client, 0, cell.family.host(port)).expect("the server");
        assert_eq!(greeting.local.port(), port);
        conn.echo(b"by a cookie");
    }
    assert_eq!(netstat(&lab.host, "SyncookiesRecv"), 10);
    redirector.stop();
}

/// Clients and servers that Rust's library does not know of.
const TALK: &str = r#"
import ctypes, os, signal, socket, sys
what, family, host, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
family = socket.AF_INET if family == "V4" else socket.AF_INET6
MPTCP = 262
def serve(listener):
    listener.listen(16)
    print("ready", flush=True)
    while True:
        conn, peer = listener.accept()
        conn.sendall(what.encode() + b" 0.0.0.0:%d 0.0.0.0:%d\n" % (conn.getsockname()[1], peer[1]))
        conn.sendall(conn.recv(1000))
        conn.close()
def listener(proto):
    s = socket.socket(family, socket.SOCK_STREAM, proto)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, port))
    return s
def talk(s):
    print("peer", s.getpeername()[1])
    s.sendall(b"hello\n")
    heard = b""
    while not heard.endswith(b"hello\n"):
        more = s.recv(1000)
        assert more, heard
        heard += more
    print(heard.decode())
if what == "fast-open-server":
    s = listener(0)
    s.setsockopt(socket.IPPROTO_TCP, 23, 16) # TCP_FASTOPEN
    serve(s)
elif what == "mptcp-server":
    serve(listener(MPTCP))
elif what == "forking-server":
    s = listener(0)
    s.listen(16)
    # Who began to listen keeps nothing of it.
    if os.fork():
        s.close()
        signal.pause()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL) # PR_SET_PDEATHSIG
    serve(s)
elif what == "fast-open":
    signal.alarm(10) # with a timeout it would not wait
    for _ in range(3):
        s = socket.socket(family, socket.SOCK_STREAM)
        assert s.sendto(b"x", socket.MSG_FASTOPEN, (host, port)) == 1
        print("peer", s.getpeername()[1])
        while s.recv(1000):
            pass
        s.close()
elif what == "mptcp":
    s = socket.socket(family, socket.SOCK_STREAM, MPTCP)
    s.settimeout(5)
    s.connect((host, port))
    talk(s)
elif what == "options":
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(5)
    if family == socket.AF_INET:
        # Record route, RFC 791, 3.1.
        s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([7, 39, 4]) + bytes(37))
    else:
        # Pad options, RFC 8200, 4.2.
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
    s.connect((host, port))
    talk(s)
"#;

/// Arguments that run a part of [`TALK`].
pub fn talk_args(what: &str, to: SocketAddr) -> Vec<String> {
    let family = if to.is_ipv4() { "V4" } else { "V6" };
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    [echo::python(), "-c", TALK, what, family, &host, &port]
        .map(str::to_owned)
        .to_vec()
}

/// Runs a client of [`TALK`] to its end; what it printed.
pub fn talk(at: &Namespace, what: &str, to: SocketAddr) -> String {
    let args = talk_args(what, to);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    at.run(&args)
}

/// Starts a server of [`TALK`].
pub fn talk_server(at: &Namespace, what: &str, on: SocketAddr) -> crate::lab::process::Process {
    let args = talk_args(what, on);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut server = at.start(&args);
    server.wait_for_words("ready");
    server
}

fn fast_open(cell: &Cell) {
    let lab = Lab::new(cell);
    lab.host.sysctl("ipv4/tcp_fastopen", "3");
    lab.client.sysctl("ipv4/tcp_fastopen", "1");
    let redirector = start(&lab, "h0");
    let on = SocketAddr::new(any(cell.family), 8080);
    let _server = talk_server(&lab.host, "fast-open-server", on);
    let said = talk(&lab.client, "fast-open", cell.family.host(80));
    assert_eq!(said, "peer 80\n".repeat(3));
    // The first asked for the cookie.
    assert_eq!(netstat(&lab.host, "TCPFastOpenPassive"), 2);
    redirector.stop();
}

fn mptcp_client(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = Listen::on(ANY, 8080).start(&lab.host, "server");
    let redirector = start(&lab, "h0");
    let said = talk(&lab.client, "mptcp", cell.family.host(80));
    assert!(said.starts_with("peer 80\nserver "), "{said}");
    redirector.stop();
}

/// Kernels that keep such sockets out of maps make us say so.
fn mptcp_server(cell: &Cell) {
    let lab = Lab::new(cell);
    let on = SocketAddr::new(any(cell.family), 8080);
    let _server = talk_server(&lab.host, "mptcp-server", on);
    let redirector = start(&lab, "h0");
    let is_refused_by_map = redirector.process.err().contains("MPTCP");
    let served = meet(&lab.client, 0, cell.family.host(80));
    if is_refused_by_map {
        println!("{:?}: MPTCP servers are kept out of maps", cell.family);
        assert!(served.is_err());
    } else {
        println!("{:?}: MPTCP servers are redirected to", cell.family);
        assert_eq!(served.expect("the server").1.name, "mptcp-server");
    }
    redirector.stop();
}

/// The process that began to listen is gone, its child serves.
fn forking_server(cell: &Cell) {
    let lab = Lab::new(cell);
    let redirector = start(&lab, "h0");
    let on = SocketAddr::new(any(cell.family), 8080);
    let _server = talk_server(&lab.host, "forking-server", on);
    for _ in 0..3 {
        let name = served_by(cell, &lab, 80);
        assert_eq!(name.as_deref(), Some("forking-server"));
    }
    redirector.stop();
}

/// A client port is used again while the server's end is in `TIME_WAIT`.
fn time_wait(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = Listen::on(ANY, 8080)
        .hanging_up()
        .start(&lab.host, "server");
    let redirector = start(&lab, "h0");
    let to = cell.family.host(80);
    let mut peers = BTreeSet::new();
    for _ in 0..5 {
        // The client's end may take a moment to go.
        let is_ours = |error: &io::Error| error.kind() == io::ErrorKind::AddrNotAvailable;
        let met = wait_for("the port", || match meet(&lab.client, 40_001, to) {
            Err(error) if is_ours(&error) => None,
            met => Some(met),
        });
        let (mut conn, greeting) = met.expect("the server");
        assert!(conn.receive(1).is_err(), "it hangs up");
        peers.insert(greeting.peer);
    }
    assert_eq!(peers.len(), 1);
    redirector.stop();
}

/// One with a server on the dialled port when we come, and ours when we go.
fn connections_survive(cell: &Cell) {
    let lab = Lab::new(cell);
    let dialled = Listen::on(ANY, 80).start(&lab.host, "dialled");
    let _target = Listen::on(ANY, 8080).start(&lab.host, "target");
    let to = cell.family.host(80);
    let (mut old, greeting) = meet(&lab.client, 0, to).expect("the server");
    assert_eq!(greeting.name, "dialled");
    let mut new = Vec::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let redirector = start(&lab, "h0");
        old.echo(b"while we are there");
        let (mut conn, greeting) = meet(&lab.client, 0, to).expect("the server");
        assert_eq!(greeting.name, "target");
        conn.echo(b"while we are there");
        new.push(conn);
        redirector.stop_by(signal);
        assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("dialled"));
        old.echo(b"when we are gone");
        new.iter_mut().for_each(|conn| conn.echo(&[7; 50_000]));
    }
    drop(dialled);
    assert_eq!(served_by(cell, &lab, 80), None);
    new.iter_mut().for_each(|conn| conn.echo(b"at the end"));
}

/// The cgroup is one for all network namespaces, but servers are not.
fn other_namespace(cell: &Cell) {
    let lab = Lab::new(cell);
    let third = lab.third();
    let _before = Listen::on(ANY, 8080).start(&third, "other");
    let redirector = start(&lab, "all");
    assert_eq!(served_by(cell, &lab, 80), None);
    let _after = Listen::on(loopback(cell.family), 8080).start(&lab.client, "client");
    assert_eq!(served_by(cell, &lab, 80), None);
    let _server = Listen::on(ANY, 8080).start(&lab.host, "host");
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("host"));
    let report = redirector.stop();
    assert_eq!(report["drops"]["no_listener"], 2);
}

/// Interfaces that were not chosen are let alone.
fn scope(cell: &Cell) {
    let lab = Lab::new(cell);
    link(&lab.host, "h2", (3, 1), &lab.client, "c2", (3, 2));
    let _dialled = Listen::on(ANY, 80).start(&lab.host, "dialled");
    let _target = Listen::on(ANY, 8080).start(&lab.host, "target");
    let redirector = start(&lab, "h0");
    let other = SocketAddr::new(cell.family.addr(3, 1), 80);
    let own = SocketAddr::new(loopback(cell.family), 80);
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("target"));
    assert_eq!(who(&lab.client, other).as_deref(), Some("dialled"));
    assert_eq!(who(&lab.host, own).as_deref(), Some("dialled"));
    assert_eq!(who(&lab.host, other).as_deref(), Some("dialled"));
    let report = redirector.stop();
    assert_eq!(flows(&report), 1);
    // Nobody else is in the way of what is for others.
    let redirector = start(&lab, "all");
    for (at, to) in [(&lab.client, other), (&lab.host, own), (&lab.host, other)] {
        assert_eq!(who(at, to).as_deref(), Some("target"));
    }
    redirector.stop();
}

/// IP options and extension headers.
fn options(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = Listen::on(ANY, 8080).start(&lab.host, "server");
    let redirector = start(&lab, "h0");
    let said = talk(&lab.client, "options", cell.family.host(80));
    assert!(said.starts_with("peer 80\nserver "), "{said}");
    redirector.stop();
}

fn counters(cell: &Cell) {
    let lab = Lab::new(cell);
    link(&lab.host, "h2", (3, 1), &lab.client, "c2", (3, 2));
    let _server = Listen::on(ANY, 8080).start(&lab.host, "server");
    let args = ["--iface", "all", "--engine", "socket"];
    let rules = ["80:8080", "81:8080", "82:9090"];
    let redirector = Redirector::start(&lab.host, &[&args[..], &rules].concat());
    let other = SocketAddr::new(cell.family.addr(3, 1), 80);
    let own = SocketAddr::new(loopback(cell.family), 81);
    for (at, to, count) in [
        (&lab.client, cell.family.host(80), 3),
        (&lab.client, other, 2),
        (&lab.host, own, 4),
        (&lab.client, cell.family.host(8080), 5),
    ] {
        for _ in 0..count {
            assert_eq!(who(at, to).as_deref(), Some("server"));
        }
    }
    assert!(is_refused(&lab.client, Proto::Tcp, cell.family.host(82)));
    let report = redirector.stop();
    let engines = report["interfaces"].as_array().expect("a list");
    assert_eq!(engines.len(), 3);
    assert!(engines.iter().all(|i| i["engine"] == "socket"), "{report}");
    let rules = report["rules"].as_array().expect("a list");
    let flows: Vec<_> = rules.iter().map(|rule| &rule["flows"]).collect();
    assert_eq!(flows, [5, 4, 0]);
    assert_eq!(rules[0]["interfaces"]["h0"]["flows"], 3);
    assert_eq!(rules[0]["interfaces"]["h2"]["flows"], 2);
    assert_eq!(rules[1]["interfaces"]["lo"]["flows"], 4);
    assert!(rules[0]["last_hit"].is_string() && rules[2]["last_hit"].is_null());
    assert_eq!(report["drops"]["no_listener"], 1);
}

/// Nothing is attached by us, to interfaces or elsewhere, once we are gone.
fn nothing_is_left(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = Listen::on(ANY, 8080).start(&lab.host, "server");
    for engine in ["socket", "auto"] {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
            let args = ["--iface", "all", "--engine", engine, "80:8080"];
            let mut redirector = Redirector::start(&lab.host, &args);
            let ours = redirector.process.links();
            // For listeners two, for clients eight, and TCX.
            let expected = if engine == "socket" { 2 } else { 8 };
            assert!(ours.len() >= expected, "{engine}: {ours:?}");
            assert_eq!(ours.intersection(&links()).count(), ours.len());
            if signal == Signal::SIGKILL {
                redirector.process.kill();
            } else {
                redirector.stop_by(signal);
            }
            wait_for("the links to go", || {
                ours.is_disjoint(&links()).then_some(())
            });
            // Filters of kernels without TCX outlive who added them.
            if signal != Signal::SIGKILL {
                assert!(attached(&lab.host).is_empty());
            }
            assert_eq!(served_by(cell, &lab, 80), None);
            assert_eq!(served_by(cell, &lab, 8080).as_deref(), Some("server"));
        }
    }
    // Who is refused leaves nothing either.
    let first = start(&lab, "h0");
    let before = links();
    let args = ["--iface", "h0", "--engine", "socket", "81:8080"];
    let mut second = lab.host.start(&[&[PROGRAM], &args[..]].concat());
    assert!(!second.wait().success());
    assert!(first.process.links().is_subset(&before));
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("server"));
    first.stop();
}

fn three_capabilities(cell: &Cell) {
    let lab = Lab::new(cell);
    let before = Listen::on(ANY, 8080).start(&lab.host, "before");
    let caps = "-all,+bpf,+perfmon,+net_admin";
    let redirector =
        Redirector::wait_until_redirecting(start_as_nobody(cell, &lab, caps, "80:8080"));
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("before"));
    drop(before);
    assert_eq!(served_by(cell, &lab, 80), None);
    let _after = Listen::on(ANY, 8080).start(&lab.host, "after");
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("after"));
    redirector.stop();
}

/// A SYN in fragments of eight bytes: the kernel puts it together before it
/// looks for a socket.
fn tiny_fragments() {
    let cell = Cell {
        engine: "socket",
        is_offloaded: true,
        family: Family::V4,
    };
    const SEND: &str = r#"
import socket, struct, sys
def csum(b):
    s = sum(struct.unpack("!%dH" % (len(b) // 2), b))
    s = (s & 0xffff) + (s >> 16)
    return 0xffff - ((s & 0xffff) + (s >> 16))
src, dst = (socket.inet_aton(a) for a in sys.argv[1:3])
tcp = struct.pack("!HHIIBBHHH", 40001, int(sys.argv[3]), 1, 0, 5 << 4, 2, 64240, 0, 0)
tcp = tcp[:16] + struct.pack("!H", csum(src + dst + struct.pack("!HH", 6, len(tcp)) + tcp)) + tcp[18:]
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for at in range(0, len(tcp), 8):
    more = 0x2000 if at + 8 < len(tcp) else 0
    part = tcp[at:at + 8]
    s.sendto(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(part), 77, more | at // 8, 64, 6, 0, src, dst) + part, (sys.argv[2], 0))
"#;
    let lab = Lab::new(&cell);
    let _server = Echo::start(&lab.host, 8080);
    let redirector = start(&lab, "h0");
    let filter = "tcp[13] == 0x12 or tcp[13] == 0x14";
    let capture = Capture::start(&lab.client, "c0", filter);
    let [host, client] = [1, 2].map(|n| cell.family.addr(1, n).to_string());
    lab.client
        .run(&[echo::python(), "-c", SEND, &client, &host, "80"]);
    let (flags, port) = capture.wait_for("an answer", |frame| {
        let port = frame.get(34..36)?.try_into().ok()?;
        Some((frame.get(47).copied()?, u16::from_be_bytes(port)))
    });
    assert_eq!((flags, port), (0x12, 80), "a SYN-ACK from the dialled port");
    let _ = Conn::to(&lab.client, Proto::Tcp, 0, cell.family.host(80));
    redirector.stop();
}
