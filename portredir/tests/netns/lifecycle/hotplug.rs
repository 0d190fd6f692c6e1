//! Interfaces that go and come back before the program can have looked, and netlink
//! messages that are lost.

use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::lab::process::wait_within;
use crate::lab::{Family, Lab, add_addrs, link};
use crate::lifecycle::follow::{SOON, redirect_all};
use crate::lifecycle::oracle::{ALL, wait_for_carriers};
use crate::peer::conn::{Proto, answers};
use crate::peer::echo::EchoServer;
use crate::{ANYWHERE, Cell, Tests};

pub fn add(tests: &mut Tests) {
    for (name, test) in [
        ("there_and_back", there_and_back as fn(&Cell)),
        ("same_index", same_index),
        ("messages_lost", messages_lost),
    ] {
        tests.add_for(&ANYWHERE, name, &[], test);
    }
}

/// Away and back before anybody can have looked: the same interface, of the
/// same index, but what was attached to it may be gone.
fn there_and_back(cell: &Cell) {
    let mut lab = Lab::new(cell);
    lab.far = Some(lab.third());
    let _server = EchoServer::start(&lab.host, 7778);
    let redirector = redirect_all(cell, &lab);
    wait_for_carriers(&lab, cell.engine, ALL);
    for _ in 0..3 {
        let [here, there] = [&lab.host, lab.far()].map(|at| at.name.clone());
        lab.host.ip(&format!("link set h0 netns {there}"));
        lab.far().ip(&format!("link set h0 netns {here}"));
        add_addrs(&lab.host, "h0", (1, 1));
        wait_for_carriers(&lab, cell.engine, ALL);
        let to = Family::V4.host(7777);
        wait_within(SOON, "a redirect", || {
            answers(&lab.client, Proto::Udp, to).then_some(())
        });
    }
    redirector.finish(&lab);
}

/// Gone, and another one there with its index, before anybody can have looked.
fn same_index(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 7778);
    let redirector = redirect_all(cell, &lab);
    wait_for_carriers(&lab, cell.engine, ALL);
    for name in ["h0", "h0", "other0"] {
        let old = if name == "other0" { "h0" } else { name };
        lab.host.ip(&format!("link del {old}"));
        link((&lab.host, name, (1, 1)), (&lab.client, "c0", (1, 2)));
        wait_for_carriers(&lab, cell.engine, ALL);
        let to = Family::V4.host(7777);
        wait_within(SOON, "a redirect", || {
            answers(&lab.client, Proto::Udp, to).then_some(())
        });
    }
    redirector.finish(&lab);
}

/// More news than the kernel keeps for us.
fn messages_lost(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 7778);
    let redirector = redirect_all(cell, &lab);
    wait_for_carriers(&lab, cell.engine, ALL);
    redirector.process.signal(Signal::SIGSTOP);
    let addrs = (0..2000).map(|number| format!("10.200.{}.{}/32", number / 250, number % 250));
    let (mut add, mut del) = (String::new(), String::new());
    for addr in addrs {
        add += &format!("addr add {addr} dev lo\n");
        del += &format!("addr del {addr} dev lo\n");
    }
    lab.host.ip(&add);
    lab.host.ip(&del);
    link((&lab.host, "h2", (3, 1)), (&lab.client, "c2", (3, 2)));
    redirector.process.signal(Signal::SIGCONT);
    wait_for_carriers(&lab, cell.engine, ALL);
    for family in Family::BOTH {
        let to = SocketAddr::new(family.addr(3, 1), 7777);
        wait_within(SOON, &format!("a redirect of {to}"), || {
            answers(&lab.client, Proto::Udp, to).then_some(())
        });
    }
    // The program still follows changes.
    lab.host.ip("link del h2");
    wait_for_carriers(&lab, cell.engine, ALL);
    redirector.finish(&lab);
}
