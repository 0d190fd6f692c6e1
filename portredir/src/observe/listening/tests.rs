use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use portredir_common::map::local;
use portredir_common::net::{Addr, Port};

use super::*;
use crate::config::engine::EngineChoice;
use crate::host::snapshot::LocalAddrs;
use crate::sys::process::Process;
use crate::sys::sock_diag::Server;

const NGINX: u32 = 812;

/// A socket, as `8080/tcp 0.0.0.0` or `53/udp :: v6only`; its inode is the port.
fn server(text: &str) -> Server {
    let mut words = text.split(' ');
    let (port, protocol) = words.next().and_then(|w| w.split_once('/')).expect(text);
    let addr = words
        .next()
        .expect("an address")
        .parse()
        .expect("an address");
    let port: u16 = port.parse().expect("a port");
    Server {
        protocol: match protocol {
            "udp" => Protocol::Udp,
            _ => Protocol::Tcp,
        },
        addr,
        port: Port::new(port),
        is_v6_only: text.ends_with("v6only"),
        // The index of `lo` in every namespace.
        device: u32::from(text.ends_with("on lo")),
        inode: port.into(),
        uid: 0,
    }
}

fn host(addrs: &[&str]) -> Snapshot {
    let addrs = addrs.iter().map(|text| {
        let addr: IpAddr = text.parse().expect(text);
        (Addr::from(addr).octets(), local::ANYWHERE)
    });
    Snapshot {
        local: LocalAddrs::from(addrs.collect::<HashMap<_, _>>()),
        ..Snapshot::default()
    }
}

fn settings(rules: &[&str]) -> Settings {
    Settings {
        rules: rules.iter().map(|rule| rule.parse().expect(rule)).collect(),
        ..Settings::default()
    }
}

/// Every socket is held by nginx.
fn listeners(servers: &[&str]) -> Listeners {
    let servers: Vec<_> = servers.iter().map(|text| server(text)).collect();
    let nginx = || Process {
        pid: NGINX,
        name: "nginx".to_owned(),
    };
    let holders = servers.iter().map(|server| (server.inode, nginx()));
    Listeners::new(&servers, &holders.collect())
}

fn lines(settings: &Settings, servers: &[&str]) -> Vec<String> {
    let host = host(&["10.0.0.5", "2001:db8::5", "fe80::1"]);
    let all = of_rules(&listeners(servers), settings, &host, &TakenPorts::default());
    all.iter().flat_map(Listening::lines).collect()
}

/// The findings, without the rule before each.
fn findings(rules: &[&str], servers: &[&str]) -> Vec<String> {
    found(&settings(rules), servers)
}

fn found(settings: &Settings, servers: &[&str]) -> Vec<String> {
    let host = host(&["10.0.0.5", "2001:db8::5", "fe80::1"]);
    let all = of_rules(&listeners(servers), settings, &host, &TakenPorts::default());
    let findings = all.iter().flat_map(|listening| &listening.findings);
    findings.map(ToString::to_string).collect()
}

#[test]
fn servers_are_named_and_neighbours_are_one() {
    assert_eq!(
        lines(
            &settings(&["80:8080"]),
            &["8080/tcp 0.0.0.0", "8080/tcp ::"]
        ),
        ["80:8080: nginx (pid 812) listens on 8080/tcp (0.0.0.0, [::])"]
    );
    let range = settings(&["1000-1003:2000-2003/udp"]);
    assert_eq!(
        lines(
            &range,
            &["2000/udp ::", "2001/udp ::", "2002/udp ::", "2003/udp ::"]
        ),
        ["1000-1003:2000-2003/udp: nginx (pid 812) listens on 2000-2003/udp ([::])"]
    );
    let one = server("8080/tcp 0.0.0.0");
    let unknown = Listeners::new(&[one], &HashMap::new());
    let unknown = of_rules(
        &unknown,
        &settings(&["10.0.0.5:80:8080"]),
        &host(&["10.0.0.5"]),
        &TakenPorts::default(),
    );
    assert_eq!(
        unknown[0].lines().collect::<Vec<_>>(),
        ["10.0.0.5:80:8080: a process of user root listens on 8080/tcp (0.0.0.0)"]
    );
}

#[test]
fn sockets_that_share_a_place_count_once() {
    let servers = [10, 11, 12].map(|inode| Server {
        inode,
        ..server("8080/tcp ::")
    });
    let process = |pid| Process {
        pid,
        name: "envoy".to_owned(),
    };
    let holders = [(10, process(7)), (11, process(7)), (12, process(9))];
    let listeners = Listeners::new(&servers, &holders.into());
    let all = of_rules(
        &listeners,
        &settings(&["80:8080"]),
        &host(&["10.0.0.5"]),
        &TakenPorts::default(),
    );
    assert_eq!(all[0].listeners.len(), 1);
    assert_eq!(
        all[0].lines().collect::<Vec<_>>(),
        ["80:8080: envoy (pid 7 and 1 more) listens on 8080/tcp ([::])"]
    );
}

#[test]
fn nobody_listens() {
    for (rule, servers, expected) in [
        ("80:9999", &[][..], "nobody listens on 9999/tcp"),
        ("80:9999", &["9999/udp ::"], "nobody listens on 9999/tcp"),
        (
            "80-180:9000-9100/udp",
            &[],
            "nobody listens on 9000-9100/udp",
        ),
        (
            "80-180:9000-9100/udp",
            &["9001/udp ::", "9050/udp ::", "9051/udp ::"],
            "nobody listens on 9000/udp, 9002-9049/udp, 9052-9100/udp",
        ),
        (
            "1-10:101-110",
            &[
                "102/tcp ::",
                "104/tcp ::",
                "106/tcp ::",
                "108/tcp ::",
                "110/tcp ::",
            ],
            "nobody listens on 101/tcp, 103/tcp, 105/tcp, 107/tcp and 1 more ranges",
        ),
        ("2-65535:1-65534", &[], "nobody listens on 1-65534/tcp"),
        ("1-65534:65535", &[], "nobody listens on 65535/tcp"),
    ] {
        assert_eq!(findings(&[rule], servers), [expected], "{rule} {servers:?}");
    }
    let both = ["nobody listens on 9999/tcp", "nobody listens on 9999/udp"];
    assert_eq!(findings(&["80:9999/both"], &[]), both);
    let rests = Settings {
        if_listening: true,
        ..settings(&["80:9999"])
    };
    assert_eq!(
        found(&rests, &["80/tcp ::"]),
        ["nobody listens on 9999/tcp; the rule rests until somebody does (--if-listening)"]
    );
}

#[test]
fn clients_that_are_refused() {
    let loopback = "8081/tcp listens on 127.0.0.1 only: other hosts are refused";
    let v4 = "8081/tcp listens on IPv4 only: IPv6 clients are refused";
    let v6 = "8081/tcp listens on IPv6 only: IPv4 clients are refused";
    for (rule, servers, expected) in [
        ("80:8081", &["8081/tcp ::"][..], &[][..]),
        ("80:8081", &["8081/tcp 127.0.0.1"], &[loopback]),
        ("10.0.0.5:80:8081", &["8081/tcp 127.0.0.1"], &[loopback]),
        ("127.0.0.1:80:8081", &["8081/tcp 127.0.0.1"], &[]),
        ("80:8081 on lo", &["8081/tcp 127.0.0.1"], &[]),
        ("80:8081 from 127.0.0.0/8", &["8081/tcp 127.0.0.1"], &[]),
        (
            "80:8081",
            &["8081/tcp 127.0.0.1", "8081/tcp ::1"],
            &["8081/tcp listens on 127.0.0.1 and [::1] only: other hosts are refused"],
        ),
        (
            "80:8081",
            &["8081/tcp :: on lo"],
            &["8081/tcp listens on [::]%lo only: other hosts are refused"],
        ),
        ("80:8081", &["8081/tcp 0.0.0.0"], &[v4]),
        ("80:8081", &["8081/tcp 0.0.0.0", "8081/tcp ::1"], &[v4]),
        ("10.0.0.5:80:8081", &["8081/tcp 0.0.0.0"], &[]),
        ("80:8081 from 10.0.0.0/8", &["8081/tcp 0.0.0.0"], &[]),
        ("80:8081", &["8081/tcp :: v6only"], &[v6]),
        ("[2001:db8::5]:80:8081", &["8081/tcp :: v6only"], &[]),
        ("80:8081", &["8081/tcp :: v6only", "8081/tcp 0.0.0.0"], &[]),
        ("80:8081", &["8081/tcp 10.0.0.9", "8081/tcp ::"], &[]),
        (
            "80:8081 from 0.0.0.0/0",
            &["8081/tcp 10.0.0.9"],
            &[
                "8081/tcp listens on 10.0.0.9 only: clients of other addresses of this host are \
               refused",
            ],
        ),
        (
            "10.0.0.5:80:8081",
            &["8081/tcp 10.0.0.9"],
            &["8081/tcp listens on 10.0.0.9 only: clients of 10.0.0.5 are refused"],
        ),
        ("10.0.0.9:80:8081", &["8081/tcp 10.0.0.9"], &[]),
    ] {
        assert_eq!(findings(&[rule], servers), expected, "{rule} {servers:?}");
    }
    // A host without addresses, and one without IPv6.
    for (addrs, expected) in [(&[][..], 0), (&["10.0.0.5", "fe80::1"], 0), (&["::9"], 1)] {
        let all = of_rules(
            &listeners(&["8081/tcp 0.0.0.0"]),
            &settings(&["80:8081"]),
            &host(addrs),
            &TakenPorts::default(),
        );
        assert_eq!(all[0].findings.len(), expected, "{addrs:?}");
    }
}

#[test]
fn engine_socket_may_reach_loopback() {
    let socket = Settings {
        engine: EngineChoice::Socket,
        ..settings(&["80:8081"])
    };
    let servers = ["8081/tcp 127.0.0.1", "8081/tcp ::1"];
    assert_eq!(found(&socket, &servers).len(), 1);
    let allowed = Settings {
        allow_loopback_target: true,
        ..socket
    };
    assert!(found(&allowed, &servers).is_empty());
    assert_eq!(
        found(&allowed, &servers[..1]),
        ["8081/tcp listens on IPv4 only: IPv6 clients are refused"]
    );
}

#[test]
fn shadowed_servers() {
    let target = "8080/tcp ::";
    for (rules, servers, expected) in [
        (
            &["80:8080"][..],
            &["80/tcp 0.0.0.0", "80/tcp ::", target][..],
            &["nginx (pid 812) also listens on 80/tcp: its new clients go to 8080"][..],
        ),
        (
            &["80-83:8080 from 10.0.0.0/8 on eth*"],
            &["80/tcp ::", "81/tcp ::", "83/tcp ::", target],
            &[
                "nginx (pid 812) also listens on 80-81/tcp: its new clients from 10.0.0.0/8 on \
                 eth* go to 8080",
                "nginx (pid 812) also listens on 83/tcp: its new clients from 10.0.0.0/8 on eth* \
                 go to 8080",
            ],
        ),
        (&["80:8080/udp"], &["80/tcp ::", "8080/udp ::"], &[]),
        (&["10.0.0.5:80:8080"], &["80/tcp 127.0.0.53", target], &[]),
        (&["80:8080 on eth0"], &["80/tcp 127.0.0.53", target], &[]),
        // The server is the one that other clients are sent to.
        (&["80:8080", "8080:9090"], &[target, "9090/tcp ::"], &[]),
        (&["80:81", "81:80"], &["80/tcp ::", "81/tcp ::"], &[]),
        // A target within its range keeps its own clients.
        (&["70-90:80"], &["80/tcp ::"], &[]),
    ] {
        assert_eq!(findings(rules, servers), expected, "{rules:?} {servers:?}");
    }
    let local = found(
        &settings(&["53:5353/udp"]),
        &["53/udp 127.0.0.53", "5353/udp ::"],
    );
    assert_eq!(local.len(), 1);
    let no_local = Settings {
        no_local: true,
        ..settings(&["53:5353/udp"])
    };
    assert!(found(&no_local, &["53/udp 127.0.0.53", "5353/udp ::"]).is_empty());
}

#[test]
fn programs_read_findings_too() {
    let all = listeners(&["80/tcp ::", "8080/tcp 127.0.0.1"]);
    let all = of_rules(
        &all,
        &settings(&["80:8080"]),
        &host(&["10.0.0.5"]),
        &TakenPorts::default(),
    );
    let json = serde_json::to_value(&all).expect("JSON");
    assert_eq!(json[0]["rule"], "80:8080");
    assert_eq!(json[0]["listeners"][0]["addr"], "127.0.0.1");
    assert_eq!(json[0]["listeners"][0]["processes"][0]["pid"], NGINX);
    let findings = &json[0]["findings"];
    assert_eq!(findings[0]["kind"], "loopback-only");
    assert_eq!(findings[0]["ports"][0], "8080");
    assert_eq!(findings[1]["kind"], "shadowed-listener");
    assert_eq!(
        findings[1]["fix"],
        "stop that server; or give it back its clients: portredir rm '80:8080'"
    );
}

/// Rules with long ranges do not multiply.
#[test]
fn ten_thousand_rules_take_moments() {
    let mut rules: Vec<_> = (1..=10_000_u16)
        .map(|port| format!("{port}:{}/both", port + 20_000))
        .collect();
    rules.push("40000-65535:30000-55535/both".to_owned());
    let rules: Vec<_> = rules.iter().map(String::as_str).collect();
    let settings = settings(&rules);
    let servers: Vec<_> = (20_000..30_000)
        .map(|port| format!("{port}/tcp ::"))
        .collect();
    let servers: Vec<_> = servers.iter().map(String::as_str).collect();
    let listeners = listeners(&servers);
    let host = host(&["10.0.0.5"]);
    let start = Instant::now();
    let all = of_rules(&listeners, &settings, &host, &TakenPorts::default());
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    assert_eq!(all.len(), 10_001);
}
