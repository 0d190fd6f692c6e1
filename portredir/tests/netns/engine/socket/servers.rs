//! Servers that come and go, share a port, listen on one address, one family or
//! one device: the one that a client of the target port reaches is the one that a
//! client of the destination port reaches.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{ANY, any, flows, loopback, served_by, start};
use crate::Cell;
use crate::lab::cgroup::Cgroup;
use crate::lab::process::wait_within;
use crate::lab::program::Redirector;
use crate::lab::{Family, Lab, link};
use crate::peer::listener::{Listen, Server, connect_and_greet, server_name};
use crate::peer::tcp_variant;

/// The program finds every server by itself: one that was there before, one that
/// takes its place, and one that starts when there was none.
pub fn comes_and_goes(cell: &Cell) {
    let lab = Lab::new(cell);
    for has_first in [true, false] {
        let first = has_first.then(|| Listen::on(ANY, 8080).start(&lab.host, "first"));
        let redirector = start(&lab, "h0");
        if let Some(first) = first {
            let (mut conn, greeting) =
                connect_and_greet(&lab.client, 0, cell.family.host(80)).expect("the server");
            assert_eq!(greeting.name, "first");
            assert_eq!(
                greeting.local,
                cell.family.host(80),
                "the destination of the client"
            );
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
        // A segment that arrives after its connection has ended looks up a
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

/// The names of the servers that many connections reach.
fn all_server_names(cell: &Cell, lab: &Lab, count: u32) -> BTreeSet<u32> {
    let one = |_| served_by(cell, lab, 80).expect("a server");
    (0..count)
        .map(|i| one(i).parse().expect("a number"))
        .collect()
}

/// Servers that share the port share the connections, and each may go.
pub fn group(cell: &Cell) {
    let lab = Lab::new(cell);
    let mut old = members(&lab, 0..4);
    let redirector = start(&lab, "h0");
    assert_eq!(all_server_names(cell, &lab, 80), (0..4).collect());
    for gone in 0..3 {
        old.remove(0);
        let left = (gone + 1)..4;
        let count = 20 * u32::try_from(left.len()).expect("few");
        assert_eq!(all_server_names(cell, &lab, count), left.collect());
    }
    // A new group comes before the old one goes, as in a restart without a gap.
    for generation in 1..6 {
        let names = 10 * generation..10 * generation + 4;
        let new = members(&lab, names.clone());
        drop(std::mem::replace(&mut old, new));
        assert_eq!(all_server_names(cell, &lab, 80), names.collect());
    }
    while old.len() > 1 {
        old.pop();
        all_server_names(cell, &lab, 10);
    }
    drop(old);
    assert_eq!(served_by(cell, &lab, 80), None);
    redirector.stop();
}

/// More than are kept: those that are left are found soon.
pub fn group_of_eight(cell: &Cell) {
    let lab = Lab::new(cell);
    let redirector = start(&lab, "h0");
    let mut servers = members(&lab, 0..8);
    assert_eq!(all_server_names(cell, &lab, 200), (0..8).collect());
    while servers.len() > 1 {
        servers.remove(0);
        wait_within(Duration::from_secs(1), "another of the group", || {
            served_by(cell, &lab, 80)
        });
    }
    redirector.stop();
}

/// Servers for one version of IP and for both.
pub fn families(cell: &Cell) {
    let lab = Lab::new(cell);
    let check = |v4: Option<&str>, v6: Option<&str>| {
        let served = Family::BOTH.map(|family| server_name(&lab.client, family.host(80)));
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

/// A server on loopback is not reached from outside.
pub fn loopback_server(cell: &Cell) {
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
            assert_eq!(server_name(&lab.host, cell.family.host(port)), None);
            assert_eq!(server_name(&lab.host, local).as_deref(), Some("loopback"));
        }
    }
    let report = redirector.stop();
    assert_eq!(flows(&report), 2);
    // Refused by `lo` and by h0.
    assert_eq!(report["drops"]["no_listener"], 4, "{report}");
}

/// Unless it is told otherwise.
pub fn loopback_target(cell: &Cell) {
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
        assert_eq!(server_name(&lab.host, own).as_deref(), Some("loopback"));
        assert_eq!(
            server_name(&lab.host, cell.family.host(80)).as_deref(),
            Some("loopback")
        );
    }
    let (mut conn, greeting) =
        connect_and_greet(&lab.client, 0, cell.family.host(80)).expect("the server");
    assert_eq!(
        greeting.local,
        cell.family.host(80),
        "the destination of the client"
    );
    conn.echo(&[7; 50_000]);
    // A server on the address itself comes first.
    let addr = cell.family.addr(1, 1);
    let outside = Listen::on(addr, 8080).start(&lab.host, "outside");
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("outside"));
    assert_eq!(server_name(&lab.host, own).as_deref(), Some("loopback"));
    drop(outside);
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("loopback"));
    redirector.stop();
}

/// The kernel does not tell of servers there, but they are found.
pub fn outside_of_the_cgroup(cell: &Cell) {
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
    let args = tcp_variant::command("fast-open-server", on);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut inside = cgroup.start(&lab.host, &args);
    inside.wait_for_words("ready");
    let name = served_by(cell, &lab, 80);
    assert_eq!(name.as_deref(), Some("fast-open-server"));
    inside.kill();
    assert_eq!(served_by(cell, &lab, 80), None);
    redirector.stop();
}

pub fn one_of_two_addresses(cell: &Cell) {
    let lab = Lab::new(cell);
    let second = cell.family.addr(1, 9);
    let bits = if second.is_ipv4() { 24 } else { 64 };
    lab.host
        .ip(&format!("addr add {second}/{bits} dev h0 nodad"));
    let first = cell.family.addr(1, 1);
    let check = |at_first: Option<&str>, at_second: Option<&str>| {
        let served =
            [first, second].map(|addr| server_name(&lab.client, SocketAddr::new(addr, 80)));
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
pub fn address_before_any(cell: &Cell) {
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
pub fn device(cell: &Cell) {
    let lab = Lab::new(cell);
    link((&lab.host, "h2", (3, 1)), (&lab.client, "c2", (3, 2)));
    let check = |at_h0: Option<&str>, at_h2: Option<&str>| {
        for port in [80, 8080] {
            let at = |net| SocketAddr::new(cell.family.addr(net, 1), port);
            let served = [1, 3].map(|net| server_name(&lab.client, at(net)));
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

/// A server that is bound to a deleted device does not hide other servers.
pub fn device_that_is_gone(cell: &Cell) {
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
pub fn chained_rules(cell: &Cell) {
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
