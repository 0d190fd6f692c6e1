//! `import` of what iptables and nft say on a host whose redirects they make, and then the same
//! redirects by portredir.

use std::fs;

use crate::Tests;
use crate::lab::program::PROGRAM;
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host, answers, check_reaches};
use crate::peer::conn::{Conn, Proto};
use crate::peer::echo::EchoServer;

pub fn add(tests: &mut Tests) {
    tests.add("import/iptables", &["iptables", "ip6tables"], iptables);
    tests.add("import/nft", &["nft"], nft);
}

const IPTABLES: &str = r#"
for t in iptables ip6tables; do
    $t -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080
    $t -t nat -A PREROUTING -p udp --dport 80 -j REDIRECT --to-ports 8080
    $t -t nat -A OUTPUT -o lo -p tcp --dport 80 -j REDIRECT --to-ports 8080
    $t -t nat -A OUTPUT -o lo -p udp --dport 80 -j REDIRECT --to-ports 8080
done
iptables -t nat -A PREROUTING -i h0 -s 10.9.0.0/16 -p tcp -m multiport --dports 81,90:92 -m comment --comment "the \"old\" shop" -j REDIRECT --to-ports 8080
iptables -t nat -A PREROUTING ! -i h7 -p tcp --dport 84 -j REDIRECT --to-ports 8080
iptables -t nat -A POSTROUTING -o h7 -j MASQUERADE
iptables -t nat -N MORE
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j MORE
iptables -t nat -A MORE -d 10.9.1.1 -p tcp --dport 83 -j REDIRECT --to-ports 8080
"#;

const NFT: &str = r#"
nft -f - <<X
table inet redirects {
    set clients { type ipv4_addr; flags interval; elements = { 10.9.0.0/16 } }
    chain in {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local meta l4proto { tcp, udp } th dport 80 redirect to :8080
        iifname "h0" ip saddr @clients tcp dport { 81, 90-92 } counter redirect to :8080 comment "shop"
        ip saddr != 10.9.1.2 tcp dport 84 redirect to :8080
        ip daddr 10.9.1.1 meta l4proto tcp redirect to :tcp dport map { 83 : 8080 }
    }
    chain out {
        type nat hook output priority -100; policy accept;
        oifname "lo" meta l4proto { tcp, udp } th dport 80 redirect to :8080
    }
}
X
"#;

/// Runs a script on the host; then `program` says what there is, and `flush` removes it.
fn check(script: &str, (list, flush): (&str, &str), (rules, refused): (&[&str], &[&str])) {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    lab.host.run(&["sh", "-ec", script]);
    let look = || {
        check_reaches(&lab, 80, &server);
        for port in [81, 91, 83] {
            let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(port));
            conn.echo(b"through");
        }
        let mut local = Conn::to(
            &lab.host,
            Proto::Tcp,
            0,
            "127.0.0.1:80".parse().expect("addr"),
        );
        local.echo(b"from here");
    };
    look();
    let file = lab.dir.0.join("rules.toml");
    let path = file.to_str().expect("text");
    let import = |args: &str| {
        let line = format!("({list}) | {PROGRAM} import {args}");
        let mut process = lab.host.start(&["sh", "-c", &line]);
        assert_eq!(process.wait().code(), Some(1), "{}", process.err());
        (process.out(), process.err())
    };
    let (out, said) = import("");
    assert_eq!(out.lines().collect::<Vec<_>>(), rules, "{said}");
    let lines = said.lines().filter(|line| {
        line.starts_with("portredir: not taken over: ") || line.starts_with("not taken over: ")
    });
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines.len(), refused.len(), "{said}");
    for (line, part) in lines.iter().zip(refused) {
        assert!(line.contains(part), "{said}");
    }
    let (toml, _) = import("- --toml");
    fs::write(&file, toml).expect("write a file");
    lab.host.run(&["sh", "-ec", flush]);
    assert!(!answers(&lab, Proto::Tcp, 80));
    host.run(&["up", "--config", path]);
    assert_eq!(host.rules(), rules);
    look();
    host.down();
}

fn iptables() {
    check(
        IPTABLES,
        (
            "iptables-save; ip6tables-save",
            "iptables -t nat -F; ip6tables -t nat -F",
        ),
        (
            &[
                "80:8080/both",
                "81:8080 from 10.9.0.0/16 on h0 # the \"old\" shop",
                "90-92:8080 from 10.9.0.0/16 on h0 # the \"old\" shop",
                "10.9.1.1:83:8080",
            ],
            &["! -i h7", "MASQUERADE"],
        ),
    );
}

fn nft() {
    check(
        NFT,
        ("nft -j list ruleset", "nft flush ruleset"),
        (
            &[
                "80:8080/both",
                "81:8080 from 10.9.0.0/16 on h0 # shop",
                "90-92:8080 from 10.9.0.0/16 on h0 # shop",
                "10.9.1.1:83:8080",
            ],
            &["inet redirects in handle"],
        ),
    );
}
