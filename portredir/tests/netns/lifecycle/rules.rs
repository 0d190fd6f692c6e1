//! Rules that `up` gets: every condition of a rule, and as many rules as fit.

use std::fs;
use std::time::Instant;

use crate::Tests;
use crate::lab::process::{note, wait_for};
use crate::lab::{Family, Lab, add_addrs};
use crate::lifecycle::host::{CELL, Host, answers, check_reaches};
use crate::peer::conn::{Conn, Proto, is_refused};
use crate::peer::echo::EchoServer;

pub fn add(tests: &mut Tests) {
    tests.add("outlive/conditions", &[], conditions);
    tests.add("outlive/many_rules", &[], many_rules);
}

/// Each condition of a rule, on real interfaces.
fn conditions() {
    let lab = Lab::new(&CELL);
    let servers = [8080, 8081, 8082, 8083].map(|port| EchoServer::start(&lab.host, port));
    lab.host.ip("addr add 10.9.1.7/24 dev h0");
    lab.client.ip("addr add 10.9.1.9/24 dev c0");
    let host = Host::of(&lab);
    host.run(&[
        "up",
        "80:8080/both",
        "80:8081/both",
        "from",
        "10.9.1.9",
        "10.9.1.7:80:8082/both",
        "81:8083/both",
        "on",
        "h*",
        "82:8083/both",
        "on",
        "lo",
        "1000-1003:8080-8083/both",
    ]);
    check_reaches(&lab, 80, &servers[0]);
    for (i, server) in servers.iter().enumerate() {
        check_reaches(&lab, 1000 + u16::try_from(i).expect("few"), server);
    }
    check_reaches(&lab, 81, &servers[3]);
    assert!(!answers(&lab, Proto::Tcp, 82));
    let mut second = Conn::to(
        &lab.client,
        Proto::Tcp,
        0,
        "10.9.1.7:80".parse().expect("addr"),
    );
    second.echo(b"the second address");
    servers[2].peer(Proto::Tcp, b"the second address");
    // A local client comes in on lo.
    let mut local = Conn::to(&lab.host, Proto::Tcp, 0, Family::V4.host(82));
    local.echo(b"by lo");
    servers[3].peer(Proto::Tcp, b"by lo");
    assert!(is_refused(&lab.host, Proto::Tcp, Family::V4.host(81)));
    lab.client.sysctl("ipv4/conf/all/promote_secondaries", "1");
    lab.client.ip("addr del 10.9.1.2/24 dev c0");
    check_reaches(&lab, 80, &servers[1]);
    // A later interface matches `h*` as well.
    lab.host.ip("link add h7 type veth peer name c7");
    let to = format!("link set c7 netns {}", lab.client.name);
    lab.host.ip(&to);
    add_addrs(&lab.host, "h7", (7, 1));
    add_addrs(&lab.client, "c7", (7, 2));
    let seven = "10.9.7.1:81".parse().expect("addr");
    wait_for("the new interface", || {
        (!is_refused(&lab.client, Proto::Tcp, seven)).then_some(())
    });
    host.run(&["down"]);
    assert!(!host.pins().exists());
}

/// The program takes the promised number of rules, of all kinds, and ranges of
/// every port.
fn many_rules() {
    let lab = Lab::new(&CELL);
    let servers = [8080, 8081].map(|port| EchoServer::start(&lab.host, port));
    let host = Host::of(&lab);
    let file = lab.dir.0.join("rules.toml");
    let mut rules: Vec<String> = (0..10_000)
        .map(|i| {
            let (port, target) = (10_000 + i, 8080 + i % 2);
            match i % 5 {
                0 | 1 => format!("{port}:{target}/both"),
                2 => format!("10.9.1.1:{port}:{target}/both"),
                3 => format!("{port}:{target}/both from 10.9.1.0/24"),
                _ => format!("{port}:{target}/both on h0"),
            }
        })
        .collect();
    let write = |rules: &[String]| {
        fs::write(&file, format!("iface = 'h0'\nrules = {rules:?}\n")).expect("write a file");
    };
    write(&rules);
    let file_name = file.to_str().expect("text").to_owned();
    let start = Instant::now();
    host.run(&["up", "--force", "--config", &file_name]);
    note(&format!("10 000 rules: {:?}", start.elapsed()));
    let look = |rules: &[String]| {
        assert_eq!(host.rules(), rules);
        for i in [0, 1, 2, 3, 4, 4999, 5002, 9998, 9999] {
            check_reaches(&lab, 10_000 + i, &servers[usize::from(i % 2)]);
        }
        assert!(!answers(&lab, Proto::Tcp, 9999) && !answers(&lab, Proto::Tcp, 20_000));
    };
    look(&rules);
    // One rule more, one less, and each rule has counters of its own.
    let start = Instant::now();
    host.run(&["add", "20000:8080"]);
    note(&format!("one more: {:?}", start.elapsed()));
    assert!(answers(&lab, Proto::Tcp, 20_000));
    host.run(&["rm", "20000:8080"]);
    look(&rules);
    let report = &host.status()["rules"];
    let hits = |i: usize| report[i]["packets"].as_u64().expect("a number");
    assert!(hits(4999) > 0 && hits(5002) > 0 && hits(9999) > 0);
    assert_eq!(hits(5000), 0);
    // All ports to one target port, then each to the port before it.
    rules = vec!["1-8079:8080".into(), "8082-65535:8081".into()];
    write(&rules);
    host.run(&["apply", "--force", "-f", &file_name]);
    for (port, server) in [(1, 0), (8079, 0), (8082, 1), (65_535, 1)] {
        let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(port));
        conn.echo(port.to_string().as_bytes());
        servers[server].peer(Proto::Tcp, port.to_string().as_bytes());
    }
    rules = vec!["2-65535:1-65534/both".into()];
    write(&rules);
    host.run(&["apply", "--force", "-f", &file_name]);
    check_reaches(&lab, 8081, &servers[0]);
    check_reaches(&lab, 8082, &servers[1]);
    host.down();
}
