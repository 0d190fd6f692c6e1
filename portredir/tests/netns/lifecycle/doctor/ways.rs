//! The ways to targets of rules that run.

use super::{Examined, nft};
use crate::Tests;
use crate::lab::{Far, Lab};
use crate::lifecycle::host::{CELL, Host};

pub fn add(tests: &mut Tests) {
    tests.add("doctor/targets", &["nft", "sysctl"], targets);
}

/// The checks of targets that an examination has made, each with its result.
fn checks_of_targets(examined: &Examined) -> Vec<String> {
    let all = ["findings", "unchecked", "passed"].map(|key| {
        let list = examined.0[key].as_array().expect("a list").iter();
        let checks = list.filter_map(|one| one["check"].as_str());
        let checks = checks.filter(|check| check.starts_with("target-"));
        checks
            .map(|check| format!("{key} {check}"))
            .collect::<Vec<_>>()
    });
    all.concat()
}

/// Adds a chain of the hook forward.
fn forward_chain(lab: &Lab, body: &str) {
    let hook = "type filter hook forward priority 0;";
    let table = format!("table inet lab {{\nchain forward {{\n{hook} {body}\n}}\n}}");
    nft(lab, &table);
}

fn targets() {
    let lab = Lab::with_far(&CELL, Far::BehindHost);
    let host = Host::of(&lab);
    host.up(&["80:10.9.2.2:8080"]);
    let examine = || Examined::of(&lab, &[]);
    let healthy = examine();
    healthy.nothing();
    let passed = ["target-route", "target-forwarding", "target-firewall"];
    let passed = passed.map(|check| format!("passed {check}"));
    let seen = checks_of_targets(&healthy);
    assert!(passed.iter().all(|check| seen.contains(check)), "{seen:?}");

    forward_chain(&lab, "policy drop;");
    examine().one(
        "target-firewall",
        "drops packets to 10.9.2.2:8080/tcp",
        "nft",
    );
    nft(&lab, "delete table inet lab");
    forward_chain(
        &lab,
        "ip daddr . tcp dport vmap { 10.9.2.2 . 8080 : drop };",
    );
    examine().one(
        "target-firewall",
        "drops packets to 10.9.2.2:8080/tcp",
        "nft",
    );
    nft(&lab, "delete table inet lab");
    forward_chain(&lab, "meta mark vmap { 0 : drop };");
    let unknown = examine();
    unknown.nothing();
    unknown.unchecked("target-firewall", "10.9.2.2:8080/tcp");
    nft(&lab, "delete table inet lab");

    lab.host
        .run(&["sysctl", "-qw", "net.ipv4.conf.h1.forwarding=0"]);
    let fix = examine().only(
        "target-forwarding",
        "IPv4 packets that come in by h1 are not forwarded",
        "sysctl -w net.ipv4.conf.h1.forwarding=1",
    );
    let command = fix.split("; or").next().expect("a command");
    lab.host.run(&command.split(' ').collect::<Vec<_>>());
    examine().nothing();

    lab.host.ip("route del 10.9.2.0/24 dev h1");
    examine().only("target-route", "no route leads to 10.9.2.2", "ip route add");
    lab.host.ip("route add 10.9.2.0/24 dev h1");
    examine().nothing();
    host.down();
}
