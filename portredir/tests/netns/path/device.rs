//! Kinds of devices, most of which are modules that not every kernel has, and
//! what kernels of different age do with programs.

use std::net::SocketAddr;

use nix::sys::utsname::uname;
use serde_json::Value;

use crate::lab::program::{PROGRAM, Redirector, attached};
use crate::lab::{Family, Lab, add_addrs, link, wait_for_route};
use crate::path::link::redirects_all;
use crate::peer::conn::{Conn, PROTOS};
use crate::peer::echo::EchoServer;
use crate::{ANYWHERE, Cell, ENGINES, Tests, skip};

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "bond", &["curl", "python3"], bond);
    tests.add_for(&ENGINES, "dummy", &[], dummy);
    tests.add_for(
        &ANYWHERE,
        "wireguard",
        &["curl", "python3", "wg"],
        wireguard,
    );
    tests.add_for(&ENGINES, "plan_is_kept", &[], plan_is_kept);
}

/// Whether the kernel is of this version or newer. For what can only be found
/// out by the very thing that is tested.
pub fn is_kernel(major: u32, minor: u32) -> bool {
    let name = uname().expect("uname");
    let release = name.release().to_string_lossy();
    let mut numbers = release.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// Two links that are one.
fn bond(cell: &Cell) {
    let lab = Lab::unlinked();
    for (at, name) in [(&lab.host, "h0"), (&lab.client, "c0")] {
        let bond = ["type", "bond", "mode", "active-backup", "miimon", "50"];
        let mut add = vec!["ip", "link", "add", "name", name];
        add.extend(bond);
        if !at.succeeds(&add) {
            skip("needs CONFIG_BONDING");
        }
    }
    for number in [1, 2] {
        let (host_port, client_port) = (format!("hp{number}"), format!("cp{number}"));
        let net = 2 + number;
        link(
            (&lab.host, &host_port, (net, 1)),
            (&lab.client, &client_port, (net, 2)),
        );
        for (at, bond, port) in [
            (&lab.host, "h0", &host_port),
            (&lab.client, "c0", &client_port),
        ] {
            at.ip(&format!(
                "link set {port} down\n\
                 addr flush dev {port}\n\
                 link set {port} master {bond}"
            ));
        }
    }
    add_addrs(&lab.host, "h0", (1, 1));
    add_addrs(&lab.client, "c0", (1, 2));
    redirects_all(cell, &lab);
}

/// An address of the host that is on no link.
fn dummy(cell: &Cell) {
    let lab = Lab::new(cell);
    let add = ["ip", "link", "add", "d0", "type", "dummy"];
    if !lab.host.succeeds(&add) {
        skip("needs CONFIG_DUMMY");
    }
    add_addrs(&lab.host, "d0", (5, 1));
    lab.client.ip("route add default via 10.9.1.1\n\
         route add default via fd09:0:0:1::1");
    let addrs = Family::BOTH.map(|family| family.addr(5, 1));
    for addr in addrs {
        wait_for_route(&lab.client, SocketAddr::new(addr, 80));
    }
    // Dummies have no native XDP, so they are not named with `--engine xdp`.
    let iface = if cell.engine == "xdp" { "h0,lo" } else { "all" };
    let args = ["--iface", iface, "--engine", cell.engine, "80:8080/both"];
    let redirector = Redirector::start(&lab.host, &args);
    for addr in addrs {
        // Replies from this address are up to the server.
        let server = EchoServer::at(&lab.host, addr, 8080);
        for proto in PROTOS {
            for at in [&lab.client, &lab.host] {
                let message = format!("{proto:?} to {addr} from {}", at.name);
                let mut conn = Conn::to(at, proto, 0, SocketAddr::new(addr, 80));
                conn.echo(message.as_bytes());
                server.peer(proto, message.as_bytes());
            }
        }
    }
    redirector.finish(&lab);
}

/// Packets without an Ethernet header, out of a tunnel.
fn wireguard(cell: &Cell) {
    let lab = Lab::unlinked();
    link((&lab.host, "h9", (3, 1)), (&lab.client, "c9", (3, 2)));
    let ends = [(&lab.host, "h0", 1_u8), (&lab.client, "c0", 2)];
    let keys = ends.map(|(at, name, number)| {
        if !at.succeeds(&["ip", "link", "add", name, "type", "wireguard"]) {
            skip("needs CONFIG_WIREGUARD");
        }
        let private = lab.dir.0.join(format!("key-{number}"));
        let private = private.to_str().expect("text").to_owned();
        std::fs::write(&private, at.run(&["wg", "genkey"])).expect("write a key");
        at.run(&["wg", "set", name, "private-key", &private]);
        let listen = format!("5182{number}");
        at.run(&["wg", "set", name, "listen-port", &listen]);
        at.run(&["wg", "show", name, "public-key"])
            .trim()
            .to_owned()
    });
    for (i, (at, name, number)) in ends.into_iter().enumerate() {
        let other = 3 - number;
        let endpoint = SocketAddr::new(Family::V4.addr(3, other), 51820 + u16::from(other));
        let (v4, v6) = (Family::V4.addr(1, other), Family::V6.addr(1, other));
        at.run(&[
            "wg",
            "set",
            name,
            "peer",
            &keys[1 - i],
            "endpoint",
            &endpoint.to_string(),
            "allowed-ips",
            &format!("{v4}/32,{v6}/128"),
        ]);
        add_addrs(at, name, (1, number));
    }
    redirects_all(cell, &lab);
}

/// The program attaches what its plan announces: TCX where the kernel has it,
/// clsact elsewhere.
fn plan_is_kept(cell: &Cell) {
    let lab = Lab::new(cell);
    let args = ["--iface", "h0", "--engine", cell.engine, "80:8080"];
    let plan = [&[PROGRAM, "plan", "--json"], &args[..]].concat();
    let plan: Value = serde_json::from_str(&lab.host.run(&plan)).expect("JSON");
    let interfaces = plan["interfaces"].as_array().expect("interfaces");
    let h0 = interfaces
        .iter()
        .find(|interface| interface["name"] == "h0");
    let hook = h0.expect("h0")["hook"].as_str().expect("a hook");
    let tc = if is_kernel(6, 6) { "tcx" } else { "clsact" };
    let expected = match cell.engine {
        "xdp" => "native",
        "xdp-generic" => "generic",
        "tc" => tc,
        _ => "clsact",
    };
    assert_eq!(hook, expected);
    let redirector = Redirector::start(&lab.host, &args);
    let said = redirector.process.err();
    let line = said.lines().find(|line| line.starts_with("h0"));
    let line = line.unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains(hook), "{line}");
    // With XDP, replies go out by TC, by links where there are some.
    let tc = if hook == "clsact" { "clsact" } else { tc };
    let egress = match tc {
        "tcx" => "h0 tcx-egress portredir_out",
        _ => "h0 tc-egress portredir_out",
    };
    let ingress = match (hook, tc) {
        ("native" | "generic", _) => "h0 xdp portredir_frags",
        (_, "tcx") => "h0 tcx-ingress portredir_in",
        _ => "h0 tc-ingress portredir_in",
    };
    let mut all = vec![ingress, egress];
    all.extend((tc == "clsact").then_some("h0 clsact"));
    assert_eq!(attached(&lab.host), all);
    redirector.finish(&lab);
}
