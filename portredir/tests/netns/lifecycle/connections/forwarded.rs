//! Flows to targets with an address, and to a port whose server somebody's DNAT sends
//! elsewhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{all_ends, end_of, ends, list, text};
use crate::lab::process::wait_for;
use crate::lab::program::Redirector;
use crate::lab::{Family, Far, Lab};
use crate::lifecycle::host::{CELL, Host};
use crate::peer::conn::{Conn, PROTOS, Proto};
use crate::peer::echo::EchoServer;

/// A target in each version of IP, one of them by two ports, and a port that DNAT takes.
const RULES: [&str; 4] = [
    "80:10.9.2.2:8080/both",
    "81:10.9.2.2:8080/both",
    "82:[fd09:0:0:2::2]:8080/both",
    "90:30080",
];

/// The host, and behind it one with a server that answers at both its addresses.
fn lab() -> (Lab, [EchoServer; 2]) {
    let lab = Lab::with_far(&CELL, Far::BehindHost);
    let far = lab.far.as_ref().expect("a third host");
    let servers = Family::BOTH.map(|family| EchoServer::at(far, family.addr(2, 2), 8080));
    lab.host.run(&[
        "nft",
        "table ip other {
            chain prerouting {
                type nat hook prerouting priority dstnat
                tcp dport 30080 dnat to 10.9.2.2:8080
            }
        }",
    ]);
    (lab, servers)
}

/// A redirect that outlives its process.
pub fn outlive() {
    let (lab, _servers) = lab();
    let host = Host::of(&lab);
    host.up(&RULES);
    check(&lab);
    host.down();
}

/// A run in the foreground, whose maps are pinned nowhere.
pub fn foreground() {
    let (lab, _servers) = lab();
    let redirector = Redirector::of(&CELL, &lab, &RULES);
    check(&lab);
    redirector.stop();
}

/// Clients on the host are pointed at a target, whose address they never named.
pub fn local() {
    let (lab, _servers) = lab();
    let host = Host::of(&lab);
    host.run(&["up", "--iface", "h0,lo", RULES[0], RULES[1], RULES[2]]);
    let mut conns = Vec::new();
    for to in [
        "10.9.1.1:80",
        "127.0.0.1:80",
        "127.0.0.1:81",
        "[::1]:82",
        "[fd09:0:0:1::1]:82",
    ] {
        let to: SocketAddr = to.parse().expect("an address");
        let mut conn = Conn::to(&lab.host, Proto::Tcp, 0, to);
        conn.echo(b"hello");
        conns.push((conn, to));
    }
    let flows = wait_for("the last acknowledgements", || {
        let flows = list(&lab, &[]);
        let is_acked = |flow: &Value| flow["bytes_in"] == 5 && flow["bytes_out"] == 5;
        flows.iter().all(is_acked).then_some(flows)
    });
    let expected = conns.iter().map(|(conn, to)| end_of(Proto::Tcp, conn, *to));
    assert_eq!(all_ends(&flows), expected.collect(), "{flows:#?}");
    assert_eq!(flows.len(), conns.len(), "{flows:#?}");
    for flow in &flows {
        let (_, _, to) = ends(flow);
        let (addr, rule) = match to.port() {
            80 => ("10.9.2.2", RULES[0]),
            81 => ("10.9.2.2", RULES[1]),
            _ => ("fd09:0:0:2::2", RULES[2]),
        };
        assert_eq!(flow["target_addr"], addr, "{flow}");
        assert_eq!(flow["target_port"], 8080, "{flow}");
        assert_eq!(flow["rule"], rule, "{flow}");
        assert_eq!(flow["engines"], json!(["local"]), "{flow}");
        assert_eq!(flow["state"], "established", "{flow}");
        assert_eq!(
            (&flow["bytes_in"], &flow["bytes_out"]),
            (&json!(5), &json!(5))
        );
        assert_eq!(
            flow["processes"],
            json!([]),
            "the server is elsewhere: {flow}"
        );
    }
    assert_eq!(list(&lab, &["rule", RULES[1]]).len(), 1);
    drop(conns);
    wait_for("the end of the connections", || {
        list(&lab, &["state", "established"])
            .is_empty()
            .then_some(())
    });
    host.down();
}

/// The flows that clients have are those that are listed.
fn check(lab: &Lab) {
    let target = SocketAddr::new(Family::V4.addr(2, 2), 8080);
    let mut direct = Conn::to(&lab.client, Proto::Tcp, 0, target);
    direct.echo(b"direct");
    let mut conns = Vec::new();
    for proto in PROTOS {
        for (family, port, own) in [
            (Family::V4, 80, 0),
            (Family::V6, 82, 0),
            // These have one target, so the second has another port there.
            (Family::V4, 80, 5432),
            (Family::V4, 81, 5432),
        ] {
            let to = family.host(port);
            conns.push((proto, Conn::to(&lab.client, proto, own, to), to));
        }
    }
    let elsewhere = Family::V4.host(90);
    let conn = Conn::to(&lab.client, Proto::Tcp, 0, elsewhere);
    conns.push((Proto::Tcp, conn, elsewhere));
    for (_, conn, _) in &mut conns {
        conn.echo(b"hello");
    }
    let flows = list(lab, &[]);
    let expected = conns
        .iter()
        .map(|(proto, conn, to)| end_of(*proto, conn, *to));
    assert_eq!(all_ends(&flows), expected.collect(), "{flows:#?}");
    assert_eq!(flows.len(), conns.len(), "{flows:#?}");
    flows.iter().for_each(check_one);
    check_filters(lab);
    check_text(lab, &conns[0].1);
    drop((conns, direct));
    wait_for("the end of the connections", || {
        list(lab, &["state", "established"])
            .is_empty()
            .then_some(())
    });
}

/// Checks what is listed of a flow beside its ends.
fn check_one(flow: &Value) {
    let targets = BTreeMap::from([
        (80, (json!("10.9.2.2"), 8080, RULES[0])),
        (81, (json!("10.9.2.2"), 8080, RULES[1])),
        (82, (json!("fd09:0:0:2::2"), 8080, RULES[2])),
        (90, (Value::Null, 30080, RULES[3])),
    ]);
    let (proto, _, to) = ends(flow);
    let (addr, port, rule) = &targets[&to.port()];
    assert_eq!(&flow["target_addr"], addr, "{flow}");
    assert_eq!(&flow["target_port"], port, "{flow}");
    assert_eq!(flow["rule"], *rule, "{flow}");
    assert_eq!(flow["engines"], json!(["tc"]), "{flow}");
    let state = if proto == "tcp" {
        json!("established")
    } else {
        Value::Null
    };
    assert_eq!(flow["state"], state, "{flow}");
    for seconds in ["age_seconds", "idle_seconds"] {
        let is_young = flow[seconds].as_u64().is_some_and(|seconds| seconds < 60);
        assert!(is_young, "{seconds}: {flow}");
    }
    for unknown in ["bytes_in", "bytes_out"] {
        assert!(flow[unknown].is_null(), "{flow}");
    }
    assert_eq!(flow["processes"], json!([]), "{flow}");
}

fn check_filters(lab: &Lab) {
    for (filter, number) in [
        ("port 80", 4),
        ("port 8080", 8),
        ("port 30080", 1),
        ("from 10.9.1.2", 7),
        ("from 10.9.2.2", 0),
        ("rule 81:10.9.2.2:8080/both", 2),
        ("state established", 5),
        ("state established port 82", 1),
        ("state syn-recv", 0),
        ("state all", 9),
    ] {
        let words: Vec<_> = filter.split_whitespace().collect();
        let flows = list(lab, &words);
        assert_eq!(flows.len(), number, "`{filter}`: {flows:#?}");
    }
}

fn check_text(lab: &Lab, conn: &Conn) {
    let text = text(lab, &["port", "80", "state", "established"]);
    let from = conn.local();
    let way = format!("{from} ");
    let line = text.lines().find(|line| line.contains(&way));
    let line = line.unwrap_or_else(|| panic!("no {from}: {text}"));
    assert!(line.ends_with(" 10.9.1.1:80:10.9.2.2:8080"), "{line}");
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
}
