//! The doctor, on hosts with one fault each: it finds the fault, and names the way out.

mod attached;
mod ways;

use std::net::Ipv4Addr;

use serde_json::Value;

use crate::Tests;
use crate::lab::Lab;
use crate::lab::process::Process;
use crate::lab::program::{PROGRAM, copy_world_executable};
use crate::lifecycle::host::{CELL, Host};
use crate::peer::echo::EchoServer;
use crate::peer::listener::Listen;

pub fn add(tests: &mut Tests) {
    tests.add("doctor/healthy", &["nft"], healthy);
    tests.add("doctor/listeners", &["nft"], listeners);
    tests.add("doctor/said_by_other_commands", &[], said_by_other_commands);
    tests.add("doctor/firewall", &["nft"], firewall);
    tests.add("doctor/other_redirects", &["nft"], other_redirects);
    tests.add("doctor/iptables", &["iptables", "iptables-save"], iptables);
    tests.add("doctor/rules", &["nft"], rules);
    tests.add("doctor/running", &["nft"], running);
    attached::add(tests);
    ways::add(tests);
    tests.add("doctor/left_filters", &["nft"], left_filters);
    tests.add(
        "doctor/what_it_may_not_see",
        &["nft", "setpriv"],
        unprivileged,
    );
}

/// The result of an examination.
struct Examined(Value);

impl Examined {
    fn of(lab: &Lab, args: &[&str]) -> Self {
        let mut all = vec![PROGRAM, "doctor", "--json"];
        all.extend(args);
        Self::by(lab.host.start(&all))
    }

    /// Reads the result of a process, and compares its exit code with it.
    fn by(mut process: Process) -> Self {
        let status = process.wait();
        let json: Value = serde_json::from_str(&process.out())
            .unwrap_or_else(|error| panic!("{error}: {}", process.err()));
        let findings = json["findings"].as_array().expect("a list").len();
        let expected = if findings == 0 { 0 } else { 5 };
        assert_eq!(status.code(), Some(expected), "{json}");
        Self(json)
    }

    /// The only finding: the fact has some words, and so has the cure, which is
    /// returned.
    fn only(&self, check: &str, what: &str, fix: &str) -> String {
        let findings = self.0["findings"].as_array().expect("a list");
        assert_eq!(findings.len(), 1, "{findings:#?}");
        self.one(check, what, fix)
    }

    /// A finding among others.
    fn one(&self, check: &str, what: &str, fix: &str) -> String {
        let findings = self.0["findings"].as_array().expect("a list");
        let has = |finding: &Value, key: &str, words: &str| {
            finding[key]
                .as_str()
                .is_some_and(|text| text.contains(words))
        };
        let found = findings.iter().find(|finding| {
            finding["check"] == check && has(finding, "what", what) && has(finding, "fix", fix)
        });
        let found = found.unwrap_or_else(|| panic!("no {check} {what} {fix}: {findings:#?}"));
        found["fix"].as_str().expect("a text").to_owned()
    }

    fn nothing(&self) {
        assert_eq!(self.0["findings"], Value::Array(Vec::new()), "{}", self.0);
    }

    fn unchecked(&self, check: &str, why: &str) {
        let all = self.0["unchecked"].as_array().expect("a list");
        let is_it = |unchecked: &Value| {
            let text = unchecked["why"].as_str();
            unchecked["check"] == check && text.is_some_and(|text| text.contains(why))
        };
        assert!(all.iter().any(is_it), "no {check} {why}: {all:#?}");
    }
}

/// A rule that is examined and does not run, with a server for everybody.
fn examine(lab: &Lab, rule: &str) -> Examined {
    Examined::of(lab, &["--iface", "h0", rule])
}

fn nft(lab: &Lab, ruleset: &str) {
    lab.host.run(&["nft", ruleset]);
}

/// Runs the first command of a cure.
fn follow(lab: &Lab, fix: &str) {
    let command = fix.split("; or").next().expect("a command");
    let words: Vec<_> = command.split(' ').collect();
    lab.host.run(&words);
}

fn healthy() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    nft(
        &lab,
        "table inet lab {
            chain input {
                type filter hook input priority 0; policy drop;
                ct state invalid drop
                ct state established,related accept
                iifname lo accept
                meta l4proto { icmp, ipv6-icmp } accept
                meta l4proto { tcp, udp } th dport { 22, 8080 } accept
            }
        }",
    );
    examine(&lab, "80:8080/both").nothing();
    let host = Host::of(&lab);
    host.up(&["80:8080/both"]);
    let examined = Examined::of(&lab, &[]);
    examined.nothing();
    assert_eq!(examined.0["running"], true);
    assert_eq!(examined.0["rules"][0], "80:8080/both");
    let text = host.run(&["doctor"]);
    assert!(
        text.contains("ok: listeners: every target port has a server"),
        "{text}"
    );
    host.down();
}

fn listeners() {
    let lab = Lab::new(&CELL);
    let v4 = |port| Listen::on(Ipv4Addr::UNSPECIFIED, port);
    let _servers = [
        Listen::on(Ipv4Addr::LOCALHOST, 8081).start(&lab.host, "loopback"),
        v4(8082).start(&lab.host, "IPv4"),
        Listen::on(std::net::Ipv6Addr::UNSPECIFIED, 8083)
            .v6_only()
            .start(&lab.host, "IPv6"),
        v4(84).start(&lab.host, "shadowed"),
        Listen::on(Ipv4Addr::new(10, 9, 1, 1), 8085).start(&lab.host, "one address"),
    ];
    let _server = EchoServer::start(&lab.host, 8084);
    let check = "listeners";
    examine(&lab, "80:9999").only(check, "nobody listens on 9999/tcp", "'80:PORT'");
    examine(&lab, "81:8081").only(
        check,
        "8081/tcp listens on 127.0.0.1 only: other hosts are refused",
        "--engine socket --allow-loopback-target '81:8081'",
    );
    let args = ["--engine", "socket", "--allow-loopback-target"];
    let mut socket = args.to_vec();
    socket.extend(["--iface", "h0", "81:8081 from 0.0.0.0/0"]);
    Examined::of(&lab, &socket).nothing();
    let fix = examine(&lab, "82:8082").only(check, "IPv6 clients are refused", "[::]:8082");
    assert!(fix.ends_with("'82:8082 from 0.0.0.0/0'"), "{fix}");
    examine(&lab, "82:8082 from 0.0.0.0/0").nothing();
    examine(&lab, "83:8083").only(check, "IPv4 clients are refused", "0.0.0.0:8083");
    let pid = std::process::id().to_string();
    examine(&lab, "84:8084").only(
        check,
        &format!("(pid {pid}) also listens on 84/tcp: its new clients go to 8084"),
        "portredir rm '84:8084'",
    );
    let words = "clients of 10.9.1.7 are refused";
    lab.host.ip("addr add 10.9.1.7/24 dev h0");
    examine(&lab, "10.9.1.7:85:8085").only(check, words, "listen on 10.9.1.7");
    examine(&lab, "10.9.1.1:85:8085").nothing();
}

/// Every command that shows a plan or a redirect says who serves the rules.
fn said_by_other_commands() {
    let lab = Lab::new(&CELL);
    let any = Listen::on(Ipv4Addr::UNSPECIFIED, 8082).start(&lab.host, "IPv4");
    let host = Host::of(&lab);
    let nobody = "81:9999: nobody listens on 9999/tcp";
    let who = format!("(pid {}) listens on 8082/tcp (0.0.0.0)", std::process::id());
    let v4 = "82:8082: 8082/tcp listens on IPv4 only: IPv6 clients are refused";
    let check = |said: &str| {
        for words in [nobody, &who, v4] {
            assert!(said.contains(words), "{words} in {said}");
        }
    };
    let rules = ["--iface", "h0", "81:9999", "82:8082"];
    let with = |command: &str| {
        let words = command.split(' ').filter(|word| !word.is_empty());
        words.chain(rules).map(str::to_owned).collect::<Vec<_>>()
    };
    let start = |args: &[String]| {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        host.start(&args)
    };
    let end = |mut process: Process| {
        assert!(process.wait().success(), "{}", process.err());
        (process.out(), process.err())
    };
    check(&end(start(&with("plan"))).0);
    let json: Value = serde_json::from_str(&end(start(&with("plan --json"))).0).expect("JSON");
    assert_eq!(
        json["listening"][0]["findings"][0]["kind"],
        "nobody-listens"
    );
    assert_eq!(json["listening"][1]["listeners"][0]["addr"], "0.0.0.0");
    let mut foreground = start(&with(""));
    foreground.wait_for_words(crate::lab::message::REDIRECTING);
    check(&foreground.err());
    foreground.kill();
    check(&end(start(&with("up"))).1);
    check(&host.run(&["status"]));
    assert_eq!(host.status()["listening"], json["listening"]);
    let mut add = host.start(&["add", "83:9998"]);
    assert!(add.wait().success());
    assert_eq!(add.err(), "83:9998: nobody listens on 9998/tcp\n");
    drop(any);
    assert!(
        host.run(&["status"])
            .contains("82:8082: nobody listens on 8082/tcp")
    );
    let rests = ["plan", "--if-listening", "--iface", "h0", "80:9999"];
    assert!(
        host.run(&rests)
            .contains("the rule rests until somebody does")
    );
    host.down();
}

fn firewall() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let check = "firewall";
    let chain = |rules: &str| {
        let hook = "type filter hook input priority 0; policy accept;";
        let table = "table inet lab { }; delete table inet lab; table inet lab";
        nft(
            &lab,
            &format!("{table} {{\nchain input {{\n{hook}\n{rules}\n}}\n}}"),
        );
    };
    chain("tcp dport 8080 drop");
    let fix = examine(&lab, "80:8080").only(check, "`tcp dport 8080 drop`", "nft insert rule");
    follow(&lab, &fix);
    examine(&lab, "80:8080").nothing();
    // Only the destination port is open.
    chain("tcp dport 80 accept\nmeta l4proto tcp reject with tcp reset");
    let dropped = "reject with tcp reset` in chain input of table inet lab drops 8080/tcp";
    let fix = examine(&lab, "80:8080").only(check, dropped, "tcp dport 8080 accept");
    follow(&lab, &fix);
    examine(&lab, "80:8080").nothing();
    // The last engine leaves the packets as they are until the firewall has seen them.
    chain("tcp dport 8080 drop");
    let socket = ["--engine", "socket", "--iface", "h0", "80:8080"];
    Examined::of(&lab, &socket).nothing();
    chain("iifname h0 tcp dport 8080 drop");
    examine(&lab, "80:8080").only(check, "drops 8080/tcp on h0", "tcp dport 8080 accept");
    // A ban in the raw table, as of fail2ban.
    chain("");
    nft(
        &lab,
        "table ip raw {
            set bans { type ipv4_addr; elements = { 192.0.2.9 } }
            chain prerouting {
                type filter hook prerouting priority raw;
                ip saddr @bans tcp dport 80 drop
            }
        }",
    );
    examine(&lab, "80:8080").only(
        check,
        "is meant for 80/tcp and does not see these packets now",
        "add the rule for 8080/tcp, too",
    );
}

fn other_redirects() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let check = "other-redirects";
    let chain = |rules: &str| {
        let table = "table ip nat { }; delete table ip nat; table ip nat";
        nft(
            &lab,
            &format!(
                "{table} {{
                    chain docker {{\n{rules}\n}}
                    chain prerouting {{
                        type nat hook prerouting priority dstnat;
                        fib daddr type local jump docker
                    }}
                }}"
            ),
        );
    };
    for (rule, what) in [
        ("tcp dport 80 redirect to :8081", "redirects 80/tcp, too"),
        (
            "iifname != docker0 tcp dport 80 dnat to 10.9.3.2:80",
            "redirects 80/tcp, too",
        ),
        ("tcp dport 8080 dnat to 10.9.3.2:80", "redirects 8080/tcp"),
    ] {
        chain(rule);
        let fix = examine(&lab, "80:8080").only(check, what, "nft delete rule ip nat docker");
        follow(&lab, &fix);
        examine(&lab, "80:8080").nothing();
    }
}

fn iptables() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let rule = [
        "-p",
        "tcp",
        "--dport",
        "80",
        "-j",
        "REDIRECT",
        "--to-ports",
        "8081",
    ];
    let mut add = vec!["iptables", "-t", "nat", "-A", "PREROUTING"];
    add.extend(rule);
    lab.host.run(&add);
    let fix = examine(&lab, "80:8080").only(
        "other-redirects",
        "redirects 80/tcp, too",
        "iptables -t nat -D PREROUTING",
    );
    follow(&lab, &fix);
    lab.host.run(&[
        "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "8080", "-j", "DROP",
    ]);
    let examined = examine(&lab, "80:8080");
    let fix = examined.only("firewall", "drops 8080/tcp", "iptables -t filter -I INPUT");
    follow(&lab, &fix);
    examine(&lab, "80:8080").nothing();
}

fn rules() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    lab.host.sysctl("ipv4/ip_local_port_range", "32768 60999");
    examine(&lab, "192.0.2.1:80:8080").one(
        "rules",
        "192.0.2.1 is not an address of this host",
        "ip addr add 192.0.2.1",
    );
    examine(&lab, "80:8080 on h7").only(
        "rules",
        "interface `h7` does not exist yet",
        "portredir rm '80:8080 on h7'",
    );
    lab.host
        .ip("link add h5 type veth peer name h6\nlink set h5 up");
    examine(&lab, "80:8080 on h5").only("rules", "matches nothing on h5", "let --iface select h5");
    let range = "40000-40100:8080/udp";
    let fix = examine(&lab, range).only(
        "source-ports",
        "40000-40100/udp are also source ports",
        "sysctl -w net.ipv4.ip_local_reserved_ports=40000-40100",
    );
    let (_, value) = fix.split_once('=').expect("a value");
    lab.host.sysctl("ipv4/ip_local_reserved_ports", value);
    examine(&lab, range).nothing();
    examine(&lab, "40000-40100:8080").nothing();
    let args = ["--iface", "h0,h5", "--engine", "xdp", "80:8080"];
    Examined::of(&lab, &args).nothing();
    lab.host
        .run(&["ip", "tuntap", "add", "dev", "tun0", "mode", "tun"]);
    let args = ["--iface", "tun0", "--engine", "xdp", "80:8080"];
    Examined::of(&lab, &args).one("interfaces", "tun0", "--engine auto");
}

fn running() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["80:8080", "81:8080"]);
    Examined::of(&lab, &[]).nothing();
    // Other rules than the running ones.
    Examined::of(&lab, &["--iface", "h0", "82:9999"]).only("listeners", "9999/tcp", "start");
    host.run(&["add", "--confirm", "60s", "83:8080"]);
    Examined::of(&lab, &[]).only("change", "is rolled back in", "portredir confirm");
    host.run(&["confirm"]);
    Examined::of(&lab, &[]).nothing();
    host.kill_watcher();
    Examined::of(&lab, &[]).only("watcher", "no watcher process runs", "portredir watch");
    // An interface that came meanwhile has no programs.
    let up = ["up", "--replace", "--iface", "h*", "80:8080"];
    host.run(&up);
    Examined::of(&lab, &[]).nothing();
    host.kill_watcher();
    lab.host
        .ip("link add h5 type veth peer name c5\nlink set h5 up\nlink set c5 up");
    let examined = Examined::of(&lab, &[]);
    examined.one("watcher", "no watcher process runs", "portredir watch");
    examined.one("interfaces", "h5: not attached", "portredir up");
    host.run(&up);
    Examined::of(&lab, &[]).nothing();
    lab.host.ip("link del h5");
    host.run(&["down", "--drain-timeout", "0"]);
}

/// A run that is killed leaves clsact filters.
fn left_filters() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let mut run = host.start(&["--iface", "h0", "--engine", "tc-clsact", "80:8080"]);
    run.wait_for_words(crate::lab::message::REDIRECTING);
    run.kill();
    examine(&lab, "80:8080").only(
        "leftovers",
        "a killed run has left its tc filters on h0",
        "portredir down",
    );
    host.run(&["down"]);
    examine(&lab, "80:8080").nothing();
}

/// A user without rights reads which checks were not made.
fn unprivileged() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let program = copy_world_executable(&lab.dir.0);
    let user = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
    ];
    let mut all = user.to_vec();
    all.extend([&program, "doctor", "--json", "--iface", "h0", "80:8080"]);
    let examined = Examined::by(lab.host.start(&all));
    examined.nothing();
    examined.unchecked("privileges", "CAP_BPF");
    examined.unchecked("kernel", "cannot be probed without root");
    examined.unchecked("firewall", "needs root");
    // A mount namespace of its own has no bpffs of the host.
    let netns = [
        "ip",
        "netns",
        "exec",
        &lab.host.name,
        PROGRAM,
        "doctor",
        "--json",
    ];
    let mut all = netns.to_vec();
    all.extend(["--iface", "h0", "80:8080"]);
    let examined = Examined::by(lab.host.start(&all));
    examined.only("bpffs", "mounts of its own", "mount -t bpf bpf /sys/fs/bpf");
}
