//! Real servers as targets: HTTP, iperf3, DNS and PostgreSQL on F, whose bytes are
//! compared.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::rules::Rule;
use super::site::Site;
use super::subject::{Layout, Place, Subject, Variant};
use crate::conformance::site::Offload;
use crate::lab::Family;
use crate::lab::extent::allow;
use crate::lab::process::Process;
use crate::path::paths::has_br_netfilter;
use crate::peer::dns::dns_server_at;
use crate::peer::http::{get, http_server, noise, put};
use crate::{Tests, skip};

/// The tools that these tests need beyond those of all tests.
const TOOLS: &[&str] = &["nft", "python3", "curl", "iperf3", "dnsmasq", "dig"];

pub fn add(tests: &mut Tests) {
    for (layout, name) in [
        (Layout::Bridge(true), "bridge"),
        (Layout::Bridge(false), "bridge_without_br_netfilter"),
        (Layout::Interfaces, "interfaces"),
    ] {
        for subject in [Subject::Nft, Subject::Engine("auto"), Subject::Engine("tc")] {
            let name = format!("forward/real/{name}/{}", subject.name());
            tests.add(name, TOOLS, move || serve(subject, layout));
        }
    }
    for subject in [Subject::Nft, Subject::Engine("auto")] {
        let name = format!("forward/real/postgres/{}", subject.name());
        let tools = &["nft", "initdb", "postgres", "psql"];
        tests.add(name, tools, move || database(subject));
    }
}

/// A transaction, and rows of some megabytes, from a database behind the bridge.
fn database(subject: Subject) {
    allow(Duration::from_secs(120));
    let (layout, offload) = (Layout::Bridge(true), Offload::On);
    let mut site = Site::idle(subject, Variant { layout, offload });
    let _server = postgres(&site);
    let rule = |family| {
        let target = SocketAddr::new(site.addr(Place::F, family), 5433);
        Rule::new(site.own(family, 5432), &[target])
    };
    let rules = Family::BOTH.map(rule);
    site.up(&rules);
    for family in Family::BOTH {
        let [own, target] = [(Place::Host, "5432"), (Place::F, "5433")]
            .map(|(place, port)| (site.addr(place, family).to_string(), port));
        let ask = |(addr, port): &(String, &str), query| {
            let args = [
                "psql", "-X", "-h", addr, "-p", port, "-U", "lab", "-d", "postgres", "-Atc", query,
            ];
            site.lab.client.run(&args)
        };
        ask(
            &own,
            "begin; create table t as select 7 as n; update t set n = n + 1; commit",
        );
        assert_eq!(
            ask(&own, "select n from t; drop table t"),
            "8\nDROP TABLE\n"
        );
        let rows = "select repeat(md5(n::text), 40) from generate_series(1, 2000) n";
        let [by_us, direct] = [&own, &target].map(|to| ask(to, rows));
        assert!(by_us.len() > 2_000_000 && by_us == direct, "{own:?}");
    }
    site.finish();
}

/// PostgreSQL on port 5433 of F, which runs as a user without rights.
fn postgres(site: &Site) -> Process {
    const NOBODY: u32 = 65_534;
    let dir = site.lab.dir.0.join("database");
    std::fs::create_dir(&dir).expect("create a directory");
    std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).expect("chown");
    let dir = dir.to_str().expect("text");
    let user = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let run = |args: &[&str]| site.f.start(&[&user[..], args].concat());
    let mut init = run(&["initdb", "-D", dir, "-A", "trust", "-U", "lab", "--no-sync"]);
    assert!(init.wait().success(), "{}", init.err());
    let access = format!("{dir}/pg_hba.conf");
    std::fs::write(&access, "host all all all trust\n").expect("write a file");
    let mut server = run(&[
        "postgres",
        "-D",
        dir,
        "-p",
        "5433",
        "-c",
        "listen_addresses=*",
        "-c",
        "unix_socket_directories=",
    ]);
    server.wait_for_words("ready to accept connections");
    server
}

/// Bytes of a file that goes up and down by HTTP.
const BODY: usize = 3_000_000;

fn serve(subject: Subject, layout: Layout) {
    if layout == Layout::Bridge(true) && !has_br_netfilter() {
        skip("needs br_netfilter");
    }
    allow(Duration::from_secs(120));
    let offload = Offload::On;
    let mut site = Site::idle(subject, Variant { layout, offload });
    let _servers = [
        http_server(&site.f, 8000),
        iperf_server(&site),
        dns_server_at(&site.f, 5353),
    ];
    let mut rules = Vec::new();
    for family in Family::BOTH {
        for (port, target) in [(80, 8000), (5201, 5301), (53, 5353_u16)] {
            let target = SocketAddr::new(site.addr(Place::F, family), target);
            rules.push(Rule::new(site.own(family, port), &[target]));
        }
    }
    site.up(&rules);
    for family in Family::BOTH {
        check_http(&site, family);
        check_dns(&site, family);
        for direction in [&[][..], &["--reverse"], &["--udp", "--length", "1200"]] {
            check_iperf(&site, family, direction);
        }
    }
    site.finish();
    for at in [&site.lab.client, &site.lab.host, &site.f] {
        crate::lab::checksum::check(at);
    }
}

fn iperf_server(site: &Site) -> Process {
    let args = ["iperf3", "--server", "--port", "5301", "--forceflush"];
    let mut server = site.f.start(&args);
    server.wait_for_words("listening");
    server
}

/// A file up, and down again.
fn check_http(site: &Site, family: Family) {
    let (client, dir, to) = (&site.lab.client, &site.lab.dir, site.own(family, 80));
    let (file, bytes) = noise(dir, BODY);
    put(client, &file, to);
    assert!(get(client, dir, to) == bytes, "{to}: other bytes");
}

fn check_dns(site: &Site, family: Family) {
    let server = format!("@{}", site.own(family, 53).ip());
    for protocol in ["+notcp", "+tcp"] {
        let args = [
            "dig",
            "+short",
            "+time=3",
            protocol,
            &server,
            "name.test",
            "A",
            "name.test",
            "AAAA",
        ];
        let answer = site.lab.client.run(&args);
        assert_eq!(answer, "192.0.2.7\n2001:db8::7\n", "{protocol} {server}");
    }
}

fn check_iperf(site: &Site, family: Family, options: &[&str]) {
    let to = site.own(family, 5201);
    let addr = to.ip().to_string();
    let args = [
        "iperf3",
        "--client",
        &addr,
        "--port",
        "5201",
        "--time",
        "1",
        "--bitrate",
        "50M",
        "--json",
    ];
    let run = || {
        let report = site.lab.client.run(&[&args[..], options].concat());
        let report: Value = serde_json::from_str(&report).expect("JSON");
        report["end"].clone()
    };
    if options.contains(&"--udp") {
        // The server's socket overflows when a busy machine keeps the server waiting.
        let is_whole = |end: &Value| {
            let sum = &end["sum"];
            sum["lost_packets"] == 0 && sum["packets"].as_u64() > Some(1000)
        };
        let mut ends = Vec::new();
        let is_any_whole = (0..4).any(|_| {
            ends.push(run());
            ends.last().is_some_and(is_whole)
        });
        assert!(is_any_whole, "{to}: {ends:?}");
    } else {
        let end = run();
        let [sent, received] =
            ["sum_sent", "sum_received"].map(|sum| end[sum]["bytes"].as_u64().expect("bytes"));
        assert!(received > 1_000_000, "{to}: {end}");
        assert!(sent >= received, "{to}: {end}");
    }
}
