//! Real servers as targets: HTTP, iperf3 and DNS on F, whose bytes are compared.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::needs_targets;
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
}

/// Bytes of a file that goes up and down by HTTP.
const BODY: usize = 3_000_000;

fn serve(subject: Subject, layout: Layout) {
    if subject != Subject::Nft {
        needs_targets();
    }
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
    let report = site.lab.client.run(&[&args[..], options].concat());
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let end = &report["end"];
    if options.contains(&"--udp") {
        assert_eq!(end["sum"]["lost_packets"], 0, "{to}: {end}");
        assert!(end["sum"]["packets"].as_u64() > Some(1000), "{to}: {end}");
    } else {
        let [sent, received] =
            ["sum_sent", "sum_received"].map(|sum| end[sum]["bytes"].as_u64().expect("bytes"));
        assert!(received > 1_000_000, "{to}: {end}");
        assert!(sent >= received, "{to}: {end}");
    }
}
