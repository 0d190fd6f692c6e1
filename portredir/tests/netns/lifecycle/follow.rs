//! Interfaces and addresses that change while portredir runs.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::Value;

use crate::lab::message::H2_IS_GONE;
use crate::lab::process::{wait_for, wait_within};
use crate::lab::program::{Redirector, attached, packets};
use crate::lab::{Family, Lab, link};
use crate::peer::conn::{Proto, answers};
use crate::peer::echo::EchoServer;
use crate::{Cell, ENGINES, Tests};

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "interface_comes_and_goes", &[], comes_and_goes);
    tests.add_for(&ENGINES, "interface_is_renamed", &[], is_renamed);
    tests.add_for(&ENGINES, "interface_down_and_up", &[], down_and_up);
    tests.add_for(
        &ENGINES,
        "address_comes_and_goes",
        &[],
        address_comes_and_goes,
    );
    tests.add_for(&["tc"], "many_addresses", &[], many_addresses);
}

/// How soon portredir has to follow.
pub const SOON: Duration = Duration::from_secs(1);

/// Redirects a port on all interfaces.
pub fn redirect_all(cell: &Cell, lab: &Lab) -> Redirector {
    let args = ["--iface", "all", "--engine", cell.engine, "7777:7778/both"];
    Redirector::start(&lab.host, &args)
}

fn on(report: &Value, interface: &str) -> u64 {
    let hits = &report["rules"][0]["interfaces"][interface];
    hits["packets"].as_u64().unwrap_or(0)
}

fn comes_and_goes(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 7778);
    let redirector = redirect_all(cell, &lab);
    let before = attached(&lab.host);
    link((&lab.host, "h2", (3, 1)), (&lab.client, "c2", (3, 2)));
    let is_there = || {
        attached(&lab.host)
            .iter()
            .any(|line| line.starts_with("h2"))
    };
    wait_within(SOON, "h2", || is_there().then_some(()));
    for family in Family::BOTH {
        let to = SocketAddr::new(family.addr(3, 1), 7777);
        let is_answered = || answers(&lab.client, Proto::Udp, to);
        wait_for("an answer by h2", || is_answered().then_some(()));
        assert!(answers(&lab.client, Proto::Tcp, to));
    }
    let report = redirector.wait_for_report("h2", |report| on(report, "h2") > 0);
    assert_eq!(report["interfaces"].as_array().expect("a list").len(), 3);
    lab.host.ip("link del h2");
    let is_gone = || redirector.process.err().contains(H2_IS_GONE);
    wait_within(SOON, "the loss", || is_gone().then_some(()));
    assert_eq!(attached(&lab.host), before);
    assert!(answers(&lab.client, Proto::Udp, Family::V4.host(7777)));
    let report = redirector.finish(&lab);
    assert_eq!(report["interfaces"].as_array().expect("a list").len(), 2);
    assert_eq!(on(&report, "h2"), 0, "names do not pile up: {report}");
    assert!(on(&report, "elsewhere") > 0, "its packets still count");
}

fn is_renamed(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 7778);
    let redirector = redirect_all(cell, &lab);
    let to = Family::V4.host(7777);
    assert!(answers(&lab.client, Proto::Udp, to));
    redirector.wait_for_report("h0", |report| on(report, "h0") == 1);
    let rename = ["ip", "link", "set", "h0", "name", "lan0"];
    if !lab.host.succeeds(&rename) {
        // Kernels before 6.2 do not rename what is up.
        lab.host
            .ip("link set h0 down\nlink set h0 name lan0\nlink set lan0 up");
    }
    wait_for("lan0", || {
        answers(&lab.client, Proto::Udp, to).then_some(())
    });
    let report = redirector.wait_for_report("lan0", |report| on(report, "lan0") >= 2);
    assert_eq!(on(&report, "h0"), 0, "the name it had: {report}");
    assert_eq!(report["interfaces"][1]["name"], "lan0");
    redirector.finish(&lab);
}

fn down_and_up(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 7778);
    let redirector = redirect_all(cell, &lab);
    let to = Family::V4.host(7777);
    assert!(answers(&lab.client, Proto::Udp, to));
    lab.host.ip("link set h0 down");
    assert!(!answers(&lab.client, Proto::Udp, to));
    lab.host.ip("link set h0 up");
    wait_for("h0", || answers(&lab.client, Proto::Udp, to).then_some(()));
    assert!(answers(&lab.client, Proto::Tcp, to));
    redirector.finish(&lab);
}

fn address_comes_and_goes(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 7778);
    let redirector = Redirector::of(cell, &lab, &["7777:7778/both"]);
    for addr in [Family::V4.addr(1, 9), Family::V6.addr(1, 9)] {
        let bits = if addr.is_ipv4() { 24 } else { 64 };
        know(&lab, addr);
        lab.host.ip(&format!("addr add {addr}/{bits} dev h0 nodad"));
        wait_for_redirect(&lab, addr);
        lab.host.ip(&format!("addr del {addr}/{bits} dev h0"));
        wait_for_loss(&lab, &redirector, addr);
    }
    redirector.finish(&lab);
}

/// Whatever else portredir is doing at the moment.
fn many_addresses(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 7778);
    let redirector = Redirector::of(cell, &lab, &["7777:7778/tcp"]);
    for number in 10..50 {
        let addr = Family::V4.addr(1, number);
        know(&lab, addr);
        lab.host.ip(&format!("addr add {addr}/24 dev h0"));
        wait_for_redirect(&lab, addr);
    }
    redirector.finish(&lab);
}

/// Adds a neighbour entry at the client, which then keeps on sending to the address
/// when no host has it any more.
fn know(lab: &Lab, addr: IpAddr) {
    let links = lab.host.run(&["ip", "-json", "link", "show", "h0"]);
    let links: Value = serde_json::from_str(&links).expect("JSON");
    let mac = links[0]["address"].as_str().expect("an address");
    lab.client
        .ip(&format!("neigh add {addr} lladdr {mac} dev c0"));
}

/// By TCP, as the echo answers UDP from the host's first address.
fn wait_for_redirect(lab: &Lab, addr: IpAddr) {
    let to = SocketAddr::new(addr, 7777);
    wait_within(SOON, &format!("a redirect of {addr}"), || {
        answers(&lab.client, Proto::Tcp, to).then_some(())
    });
}

/// Packets to an address that the host no longer has are let alone.
pub fn wait_for_loss(lab: &Lab, redirector: &Redirector, addr: IpAddr) {
    let any = if addr.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = lab
        .client
        .enter(|| UdpSocket::bind((any, 0)))
        .expect("bind");
    let send = || assert_eq!(socket.send_to(b"lost", (addr, 7777)).ok(), Some(4));
    let not_local = |report: &Value| report["passes"]["not_local"].as_u64().expect("a number");
    let before = redirector.fresh_report();
    let report = wait_within(SOON, &format!("the loss of {addr}"), || {
        send();
        let report = redirector.fresh_report();
        (not_local(&report) > not_local(&before)).then_some(report)
    });
    (0..5).for_each(|_| send());
    let after = redirector.wait_for_report("five packets more", |after| {
        not_local(after) >= not_local(&report) + 5
    });
    assert_eq!(packets(&after, 0), packets(&report, 0));
}
