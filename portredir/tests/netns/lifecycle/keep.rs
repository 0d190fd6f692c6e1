//! Events that must cost no connection: a link that goes down and comes up, a switch of
//! `br_netfilter`; and interfaces that are named before they exist.

use std::thread::sleep;
use std::time::Duration;

use crate::lab::process::{wait_for, wait_within};
use crate::lab::program::{Redirector, attached, link_state};
use crate::lab::{Family, Lab, add_addrs, link};
use crate::lifecycle::bridge::ENSLAVE;
use crate::lifecycle::follow::SOON;
use crate::lifecycle::host::{CELL, Host};
use crate::lifecycle::oracle::{
    BridgeTracking, are_bridges_tracked, carriers, set_bridge_tracking,
};
use crate::peer::conn::{Conn, Proto, answers};
use crate::peer::echo::EchoServer;
use crate::{Cell, ENGINES, Tests, skip};

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "link_flap_keeps_connections", &[], link_flap);
    tests.add_for(
        &["tc", "tc-clsact"],
        "bridge_tracking_is_switched",
        &[],
        tracking_switched,
    );
    tests.add_for(&ENGINES, "named_interface_comes_later", &[], comes_later);
    tests.add("outlive/named_interface_is_away", &[], is_away);
    tests.add("outlive/filters_of_a_killed_run", &[], left_filters);
}

const ARGS: [&str; 3] = ["--iface", "all", "--engine"];

fn redirect(cell: &Cell, lab: &Lab) -> Redirector {
    let args = [&ARGS[..], &[cell.engine, "80:8080/both"]].concat();
    Redirector::start(&lab.host, &args)
}

fn link_flap(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = redirect(cell, &lab);
    let before = attached(&lab.host);
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"before");
    server.peer(Proto::Tcp, b"before");
    for down_ms in [180, 1500] {
        lab.host.ip("link set h0 down");
        sleep(Duration::from_millis(down_ms));
        assert_eq!(
            attached(&lab.host),
            before,
            "programs stay on a link that is down"
        );
        lab.host.ip("link set h0 up");
        // At once: nothing has to be attached first.
        conn.echo(b"after");
    }
    redirector.finish(&lab);
}

/// The sysctl makes no message of netlink.
fn tracking_switched(cell: &Cell) {
    let lab = Lab::new(cell);
    set_bridge_tracking(&lab.host, BridgeTracking::On);
    if !are_bridges_tracked(&lab.host) {
        skip("needs br_netfilter");
    }
    set_bridge_tracking(&lab.host, BridgeTracking::Off);
    lab.host.ip(ENSLAVE);
    add_addrs(&lab.host, "br0", (1, 1));
    lab.client.run(&["ip", "neigh", "flush", "dev", "c0"]);
    lab.wait_for_link();
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = redirect(cell, &lab);
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"before");
    server.peer(Proto::Tcp, b"before");
    for (tracking, carrier, other) in [
        (BridgeTracking::On, "h0", "br0"),
        (BridgeTracking::Off, "br0", "h0"),
    ] {
        set_bridge_tracking(&lab.host, tracking);
        wait_for(&format!("programs on {carrier} alone"), || {
            conn.echo(b"meanwhile");
            let carriers = carriers(&lab.host, cell.engine);
            (carriers.contains(carrier) && !carriers.contains(other)).then_some(())
        });
        conn.echo(b"after");
    }
    redirector.finish(&lab);
}

fn comes_later(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 8080);
    let args = ["--iface", "h0,h2", "--engine", cell.engine, "80:8080/both"];
    let redirector = Redirector::start(&lab.host, &args);
    let said = redirector.process.err();
    assert!(said.contains("`h2` does not exist yet"), "{said}");
    let to = std::net::SocketAddr::new(Family::V4.addr(3, 1), 80);
    for _ in 0..2 {
        link((&lab.host, "h2", (3, 1)), (&lab.client, "c2", (3, 2)));
        wait_within(SOON, "h2", || {
            carriers(&lab.host, cell.engine)
                .contains("h2")
                .then_some(())
        });
        wait_for("an answer by h2", || {
            answers(&lab.client, Proto::Tcp, to).then_some(())
        });
        lab.host.ip("link del h2");
    }
    redirector.finish(&lab);
}

/// Rules come and go while an interface that is named is away.
fn is_away() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.run(&["up", "--iface", "h0,h2", "80:8080"]);
    assert!(answers(&lab.client, Proto::Tcp, Family::V4.host(80)));
    assert_eq!(host.run(&["add", "81:8080 on h2"]), "+ 81:8080 on h2\n");
    host.run(&["up", "--replace", "--iface", "h0,h2", "82:8080"]);
    assert!(answers(&lab.client, Proto::Tcp, Family::V4.host(82)));
    host.down();
}

/// Before Linux 6.6 filters outlive a process that is killed: the next command tells of
/// them, and `down` removes them.
fn left_filters() {
    let cell = Cell {
        engine: "tc-clsact",
        ..CELL
    };
    let lab = Lab::new(&cell);
    let before = link_state(&lab);
    let kill = || {
        let mut redirector = Redirector::of(&cell, &lab, &["80:8080/both"]);
        redirector.process.kill();
        assert_ne!(link_state(&lab), before);
    };
    let host = Host::of(&lab);
    assert!(!host.fails(3, &["status"]).contains("h0"));
    kill();
    let status = host.fails(3, &["status"]);
    assert!(
        status.contains("tc filters on h0") && status.contains("portredir down"),
        "{status}"
    );
    host.run(&["down", "--dry-run"]);
    assert_ne!(link_state(&lab), before);
    host.run(&["down"]);
    assert_eq!(link_state(&lab), before);
    assert!(!host.fails(3, &["status"]).contains("h0"));
    // A run on other interfaces removes them as well.
    kill();
    link((&lab.host, "h2", (3, 1)), (&lab.client, "c2", (3, 2)));
    host.run(&["up", "--iface", "h2", "81:8080"]);
    let expected = ["h0 egress", "h2"].map(str::to_owned);
    assert_eq!(carriers(&lab.host, "auto"), expected.into());
    host.down();
}
