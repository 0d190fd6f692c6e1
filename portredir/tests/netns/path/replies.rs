//! Replies that leave by another interface than the one by which the request came in, also
//! one that `--iface` does not name.
//!
//! ```text
//!   client c0 ---- h0 host     requests
//!   client c2 ---- h2 host     replies
//! ```

use std::net::{IpAddr, SocketAddr};

use crate::lab::process::{wait_for, wait_within};
use crate::lab::program::{Redirector, attached};
use crate::lab::{Family, Lab, link};
use crate::lifecycle::follow::SOON;
use crate::lifecycle::oracle::carriers;
use crate::peer::conn::{Conn, PROTOS, Proto, answers, is_refused};
use crate::peer::echo::EchoServer;
use crate::{Cell, Tests};

const ENGINES: [&str; 5] = ["auto", "xdp", "xdp-generic", "tc", "tc-clsact"];

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "reply_by_another_interface", &[], by_another);
    tests.add_for(&ENGINES, "reply_by_a_later_interface", &[], by_a_later);
    tests.add_for(&ENGINES, "no_reply_by_an_excluded_interface", &[], excluded);
}

/// The net of the address on `lo` of the host, and of that of the client.
const NETS: (u8, u8) = (5, 6);

/// Two hosts; requests for the addresses of the host go by `h0`.
fn lab(cell: &Cell) -> Lab {
    let lab = Lab::new(cell);
    let (host_net, client_net) = NETS;
    for (at, net) in [(&lab.host, host_net), (&lab.client, client_net)] {
        let (v4, v6) = (Family::V4.addr(net, 1), Family::V6.addr(net, 1));
        at.ip(&format!(
            "addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad"
        ));
    }
    for family in Family::BOTH {
        let (to, via) = (family.addr(host_net, 1), family.addr(1, 1));
        let from = family.addr(client_net, 1);
        lab.client
            .ip(&format!("route add {to} via {via} dev c0 src {from}"));
    }
    lab
}

/// Adds the link by which replies leave from now on.
fn add_link(lab: &Lab, cell: &Cell) {
    link((&lab.host, "h2", (2, 1)), (&lab.client, "c2", (2, 2)));
    if !cell.is_offloaded {
        lab.host.run(&["ethtool", "-K", "h2", "tx", "off"]);
        lab.client.run(&["ethtool", "-K", "c2", "tx", "off"]);
    }
    for (at, names) in [(&lab.host, ["h0", "h2"]), (&lab.client, ["c0", "c2"])] {
        for name in [&["all"][..], &names].concat() {
            at.sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0");
        }
    }
    add_routes(lab, "h2");
}

fn add_routes(lab: &Lab, name: &str) {
    for family in Family::BOTH {
        let (to, via) = (family.addr(NETS.1, 1), family.addr(2, 2));
        lab.host
            .ip(&format!("route replace {to} via {via} dev {name}"));
    }
}

/// The address of the host on `lo`.
fn vip(family: Family) -> IpAddr {
    family.addr(NETS.0, 1)
}

/// The servers at the addresses that clients connect to, from which they also answer
/// datagrams.
fn servers(lab: &Lab) -> Vec<EchoServer> {
    let addrs = Family::BOTH.map(|family| [vip(family), family.addr(2, 1)]);
    let addrs = addrs.into_iter().flatten();
    // The link with one of them may come later.
    lab.host.sysctl("ipv4/ip_nonlocal_bind", "1");
    lab.host.sysctl("ipv6/ip_nonlocal_bind", "1");
    addrs
        .map(|addr| EchoServer::at(&lab.host, addr, 8080))
        .collect()
}

fn redirect(cell: &Cell, lab: &Lab, iface: &str) -> Redirector {
    let args = ["--iface", iface, "--engine", cell.engine, "80:8080/both"];
    Redirector::start(&lab.host, &args)
}

/// How many packets have left by an interface of the host.
pub fn sent(lab: &Lab, name: &str) -> u64 {
    let devices = lab.host.proc_net("dev");
    let prefix = format!("{name}:");
    let mut lines = devices.lines();
    let counts = lines.find_map(|line| line.trim_start().strip_prefix(&prefix));
    // Behind eight columns about what was received come bytes, then packets.
    let count = counts.expect(name).split_whitespace().nth(9);
    count
        .and_then(|count| count.parse().ok())
        .expect("a number")
}

fn check(lab: &Lab, exit: &str) {
    for family in Family::BOTH {
        let to = SocketAddr::new(vip(family), 80);
        for proto in PROTOS {
            let what = format!("{to} by {proto:?}");
            wait_for(&what, || answers(&lab.client, proto, to).then_some(()));
            let before = sent(lab, exit);
            let mut conn = Conn::to(&lab.client, proto, 0, to);
            for round in 0..5 {
                conn.echo(format!("{round} {what}").as_bytes());
            }
            assert!(sent(lab, exit) >= before + 5, "replies leave by {exit}");
            // What is nobody's reply passes, from the very port of the target.
            let direct = SocketAddr::new(vip(family), 8080);
            Conn::to(&lab.client, proto, 0, direct).echo(b"direct");
        }
    }
}

/// Checks that requests by an interface that is not named are not redirected.
fn check_not_redirected(lab: &Lab) {
    for family in Family::BOTH {
        for proto in PROTOS {
            let to = |port| SocketAddr::new(family.addr(2, 1), port);
            assert!(is_refused(&lab.client, proto, to(80)), "{proto:?}");
            Conn::to(&lab.client, proto, 0, to(8080)).echo(b"direct");
        }
    }
}

fn by_another(cell: &Cell) {
    let lab = lab(cell);
    add_link(&lab, cell);
    let _servers = servers(&lab);
    let before = attached(&lab.host);
    let redirector = redirect(cell, &lab, "h0,lo");
    let plan = redirector.process.err();
    assert!(plan.contains("replies only; --iface does not"), "{plan}");
    check(&lab, "h2");
    check_not_redirected(&lab);
    let report = redirector.finish(&lab);
    let shown = report["interfaces"].as_array().expect("interfaces");
    assert!(shown.iter().any(|one| one["name"] == "h2"), "{report}");
    assert_eq!(attached(&lab.host), before);
}

/// The interface comes later, goes down and up, gets another name, and goes; an open
/// connection goes on.
fn by_a_later(cell: &Cell) {
    let lab = lab(cell);
    let _servers = servers(&lab);
    let redirector = redirect(cell, &lab, "h0,lo");
    let on = |name: &str| {
        let expected = format!("{name} egress");
        wait_within(SOON, &format!("a program on {name}"), || {
            let carriers = carriers(&lab.host, cell.engine);
            carriers.contains(&expected).then_some(())
        });
    };
    for _ in 0..2 {
        add_link(&lab, cell);
        on("h2");
        check(&lab, "h2");
        let to = SocketAddr::new(vip(Family::V4), 80);
        let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, to);
        conn.echo(b"before");
        let programs = attached(&lab.host);
        lab.host.ip("link set h2 down");
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(attached(&lab.host), programs);
        lab.host.ip("link set h2 name lan2\nlink set lan2 up");
        let v6 = Family::V6.addr(2, 1);
        lab.host.ip(&format!("addr replace {v6}/64 dev lan2 nodad"));
        add_routes(&lab, "lan2");
        conn.echo(b"after");
        on("lan2");
        check(&lab, "lan2");
        check_not_redirected(&lab);
        lab.host.ip("link del lan2");
    }
    redirector.finish(&lab);
}

/// A user who excludes an interface has it left alone.
fn excluded(cell: &Cell) {
    let lab = lab(cell);
    add_link(&lab, cell);
    let _servers = servers(&lab);
    let redirector = redirect(cell, &lab, "h0,lo,!h2");
    let plan = redirector.process.err();
    let said = "excluded by !h2; a reply that leaves here keeps the target port";
    assert!(plan.contains(said), "{plan}");
    let programs = attached(&lab.host);
    let is_on_it = programs.iter().any(|line| line.starts_with("h2 "));
    assert!(!is_on_it, "{programs:?}");
    let to = SocketAddr::new(vip(cell.family), 80);
    assert!(!answers(&lab.client, Proto::Udp, to));
    check_not_redirected(&lab);
    redirector.finish(&lab);
}
