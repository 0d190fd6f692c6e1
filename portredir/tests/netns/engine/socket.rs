//! Connections from outside under `--engine socket`: the kernel assigns them to the
//! server on the target port, and no packet is rewritten.

mod servers;
mod variants;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::process::wait_for;
use crate::lab::program::{PROGRAM, Redirector, attached, links};
use crate::lab::{Family, Lab, link};
use crate::lifecycle::life::start_unprivileged;
use crate::peer::conn::{Proto, is_refused};
use crate::peer::listener::{Listen, connect_and_greet, server_name};
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, &'static [&'static str], fn(&Cell));
    const TESTS: [Test; 26] = [
        ("server_comes_and_goes", &[], servers::comes_and_goes),
        ("group", &[], servers::group),
        ("group_of_eight", &[], servers::group_of_eight),
        ("families", &[], servers::families),
        ("loopback_server", &[], servers::loopback_server),
        ("loopback_target", &[], servers::loopback_target),
        ("outside_of_the_cgroup", &[], servers::outside_of_the_cgroup),
        ("one_of_two_addresses", &[], servers::one_of_two_addresses),
        ("address_before_any", &[], servers::address_before_any),
        ("device", &[], servers::device),
        ("syn_cookies", &[], variants::syn_cookies),
        ("fast_open", &["python3"], variants::fast_open),
        ("mptcp_client", &["python3"], variants::mptcp_client),
        ("mptcp_server", &["python3"], variants::mptcp_server),
        ("forking_server", &["python3"], variants::forking_server),
        ("time_wait", &[], variants::time_wait),
        ("connections_survive", &[], connections_survive),
        ("other_namespace", &[], other_namespace),
        ("scope", &[], scope),
        ("local_clients", &[], local_clients),
        ("options", &["python3"], variants::options),
        ("counters", &[], counters),
        ("nothing_is_left", &[], nothing_is_left),
        ("three_capabilities", &[], three_capabilities),
        ("device_that_is_gone", &[], servers::device_that_is_gone),
        ("chained_rules", &[], servers::chained_rules),
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
    tests.add(
        "socket/tiny_fragments",
        &["python3"],
        variants::tiny_fragments,
    );
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

/// The name of the server that the client reaches at the host's first address.
fn served_by(cell: &Cell, lab: &Lab, port: u16) -> Option<String> {
    server_name(&lab.client, cell.family.host(port))
}

/// A connection to a server on the destination port survives the start of the
/// program, and a redirected one survives its end.
fn connections_survive(cell: &Cell) {
    let lab = Lab::new(cell);
    let dst_server = Listen::on(ANY, 80).start(&lab.host, "destination");
    let _target = Listen::on(ANY, 8080).start(&lab.host, "target");
    let to = cell.family.host(80);
    let (mut old, greeting) = connect_and_greet(&lab.client, 0, to).expect("the server");
    assert_eq!(greeting.name, "destination");
    let mut new = Vec::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let redirector = start(&lab, "h0");
        old.echo(b"while we are there");
        let (mut conn, greeting) = connect_and_greet(&lab.client, 0, to).expect("the server");
        assert_eq!(greeting.name, "target");
        conn.echo(b"while we are there");
        new.push(conn);
        redirector.stop_by(signal);
        assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("destination"));
        old.echo(b"when we are gone");
        new.iter_mut().for_each(|conn| conn.echo(&[7; 50_000]));
    }
    drop(dst_server);
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
    link((&lab.host, "h2", (3, 1)), (&lab.client, "c2", (3, 2)));
    let _dst_server = Listen::on(ANY, 80).start(&lab.host, "destination");
    let _target = Listen::on(ANY, 8080).start(&lab.host, "target");
    let redirector = start(&lab, "h0");
    let other = SocketAddr::new(cell.family.addr(3, 1), 80);
    let own = SocketAddr::new(loopback(cell.family), 80);
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("target"));
    assert_eq!(
        server_name(&lab.client, other).as_deref(),
        Some("destination")
    );
    assert_eq!(server_name(&lab.host, own).as_deref(), Some("destination"));
    assert_eq!(
        server_name(&lab.host, other).as_deref(),
        Some("destination")
    );
    let report = redirector.stop();
    assert_eq!(flows(&report), 1);
    // On all interfaces every connection reaches the target.
    let redirector = start(&lab, "all");
    for (at, to) in [(&lab.client, other), (&lab.host, own), (&lab.host, other)] {
        assert_eq!(server_name(at, to).as_deref(), Some("target"));
    }
    redirector.stop();
}

/// A local client comes by `lo`, whichever address of this host it connects to.
fn local_clients(cell: &Cell) {
    let lab = Lab::new(cell);
    let _dst_server = Listen::on(ANY, 80).start(&lab.host, "destination");
    let _target = Listen::on(ANY, 8080).start(&lab.host, "target");
    let own = [cell.family.addr(1, 1), loopback(cell.family)];
    for (args, local, outside) in [
        (&["80:8080"][..], "target", "target"),
        (&["--no-local", "80:8080"], "destination", "target"),
        (&["80:8080 on lo"], "target", "destination"),
        (&["80:8080 on h0"], "destination", "target"),
        (&["--iface", "h0", "80:8080"], "destination", "target"),
        (&["--iface", "lo", "80:8080"], "target", "destination"),
    ] {
        let redirector = Redirector::start(&lab.host, &[&["--engine", "socket"], args].concat());
        for addr in own {
            let name = server_name(&lab.host, SocketAddr::new(addr, 80));
            assert_eq!(
                name.as_deref(),
                Some(local),
                "{args:?}: {addr} from the host"
            );
        }
        let name = served_by(cell, &lab, 80);
        assert_eq!(name.as_deref(), Some(outside), "{args:?}: from outside");
        let report = redirector.stop();
        let on_h0 = &report["rules"][0]["interfaces"]["h0"]["flows"];
        let expected = u64::from(outside == "target");
        assert_eq!(on_h0.as_u64().unwrap_or_default(), expected, "{report}");
    }
}

fn counters(cell: &Cell) {
    let lab = Lab::new(cell);
    link((&lab.host, "h2", (3, 1)), (&lab.client, "c2", (3, 2)));
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
            assert_eq!(server_name(at, to).as_deref(), Some("server"));
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
            // Two links for listeners, eight for local clients, and those of TCX.
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
            // Filters of kernels without TCX outlive the process that added them.
            if signal != Signal::SIGKILL {
                assert!(attached(&lab.host).is_empty());
            }
            assert_eq!(served_by(cell, &lab, 80), None);
            assert_eq!(served_by(cell, &lab, 8080).as_deref(), Some("server"));
        }
    }
    // A program that is refused leaves nothing either.
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
        Redirector::wait_until_redirecting(start_unprivileged(cell, &lab, caps, "80:8080"));
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("before"));
    drop(before);
    assert_eq!(served_by(cell, &lab, 80), None);
    let _after = Listen::on(ANY, 8080).start(&lab.host, "after");
    assert_eq!(served_by(cell, &lab, 80).as_deref(), Some("after"));
    redirector.stop();
}
