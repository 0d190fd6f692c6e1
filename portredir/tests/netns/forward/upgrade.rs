//! `up` by another version of the program while flows go through targets, or before there
//! were any targets.

use std::net::SocketAddr;
use std::time::Duration;

use super::rules::Rule;
use super::site::Site;
use super::subject::{Layout, Place, Subject, Variant};
use super::talk::still_talks;
use crate::Tests;
use crate::conformance::client::{Conversation, greeting};
use crate::conformance::server::{Manner, Server};
use crate::conformance::site::Offload;
use crate::lab::Family;
use crate::lab::extent::allow;
use crate::lab::program::{PROGRAM, attached, copy_world_executable};
use crate::lifecycle::host::Host;
use crate::peer::conn::{Conn, PROTOS, Proto};

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, fn(&Site, &'static str));
    const TESTS: [Test; 2] = [
        ("with_flows", with_flows),
        ("from_before_targets", from_before),
    ];
    for (name, test) in TESTS {
        for engine in ["auto", "tc"] {
            let name = format!("forward/upgrade/{name}/{engine}");
            tests.add(name, &[], move || {
                allow(Duration::from_secs(120));
                let (layout, offload) = (Layout::Bridge(true), Offload::On);
                let variant = Variant { layout, offload };
                test(&Site::idle(Subject::Engine(engine), variant), engine);
            });
        }
    }
}

/// The maps that came with targets.
const MAPS: [&str; 8] = [
    "FORWARDS",
    "FORWARD_ENDS",
    "OWN_ADDRS",
    "OWN_NUMBERS",
    "SERVICES",
    "SLOTS",
    "TARGETS",
    "TARGET_ADDRS",
];

/// Port 80 of both IP versions to F and G.
fn rules(site: &Site) -> Vec<String> {
    let rule = |family| {
        let targets = [Place::F, Place::G];
        let targets = targets.map(|place| SocketAddr::new(site.addr(place, family), 8080));
        Rule::new(site.own(family, 80), &targets).words()
    };
    Family::BOTH.map(rule).into()
}

/// Another file counts as another version.
fn up(site: &Site, program: &str, engine: &str, rules: &[String]) -> String {
    let mut args = vec![program, "up", "--iface", "all", "--engine", engine];
    args.extend(rules.iter().map(String::as_str));
    site.lab.host.run(&args)
}

/// Some flows of each protocol and IP version to a port.
fn flows(site: &Site, port: u16) -> Vec<Conversation> {
    let mut flows = Vec::new();
    for family in Family::BOTH {
        for proto in PROTOS {
            for _ in 0..8 {
                flows.push(begin(site, family, proto, port));
            }
        }
    }
    flows
}

fn begin(site: &Site, family: Family, proto: Proto, port: u16) -> Conversation {
    let to = site.own(family, port);
    let begun = Conversation::begin(&site.lab.client, proto, site.port(), to);
    begun.unwrap_or_else(|error| panic!("{proto:?} to {to}: {error}"))
}

/// Every flow is where it was.
fn check(flows: &mut [Conversation], when: &str) {
    for flow in flows {
        let name = flow.name.clone();
        let reached = match &flow.conn {
            Conn::Tcp(_) => still_talks(flow).map(|()| name.clone()),
            Conn::Udp(_) => flow
                .conn
                .send(b"who?")
                .and_then(|()| flow.conn.receive(0))
                .map(|reply| greeting(&reply).expect("a greeting").0),
        };
        let reached = reached.unwrap_or_else(|error| panic!("{when}: a flow to {name}: {error}"));
        assert_eq!(reached, name, "{when}");
    }
}

/// The names of the servers that new flows to port 80 reach.
fn reached(site: &Site) -> std::collections::BTreeSet<String> {
    flows(site, 80).into_iter().map(|flow| flow.name).collect()
}

/// Flows to targets, and a target that is drained, outlive the change; `down` waits for them.
fn with_flows(site: &Site, engine: &'static str) {
    let host = Host::of(&site.lab);
    let mut all = rules(site);
    up(site, PROGRAM, engine, &all);
    let hooks = attached(&site.lab.host);
    let mut flows = flows(site, 80);
    for family in Family::BOTH {
        let f = SocketAddr::new(site.addr(Place::F, family), 8080);
        host.run(&["drain", &f.to_string()]);
    }
    check(&mut flows, "while F is drained");
    let watcher = host.status()["pid"].clone();
    up(site, PROGRAM, engine, &all);
    assert_eq!(host.status()["pid"], watcher);
    check(&mut flows, "after the same program");
    let other = copy_world_executable(&site.lab.dir.0);
    all.push("90:7070".to_owned());
    up(site, &other, engine, &all);
    assert_ne!(host.status()["pid"], watcher);
    assert_eq!(attached(&site.lab.host), hooks);
    check(&mut flows, "after another program");
    assert_eq!(reached(site), ["G".to_owned()].into(), "F is still drained");
    assert_eq!(begin(site, Family::V4, Proto::Tcp, 90).name, "host");
    let counted = &host.status()["rules"][0]["flows"];
    assert!(counted.as_u64() >= Some(16), "{counted}");
    check(&mut flows, "at the end");
    host.down();
}

/// Programs of before there were targets have no maps for them: a connection by their rule
/// outlives the change, and targets work after it.
fn from_before(site: &Site, engine: &'static str) {
    let _server = Server::start(&site.lab.host, "81 by a rule", 8181, Manner::Echo);
    let host = Host::of(&site.lab);
    let mut all = vec!["81:8181/both".to_owned()];
    up(site, PROGRAM, engine, &all);
    let mut kept = flows(site, 81);
    let pins = host.pins();
    for name in MAPS {
        let path = pins.join(name);
        std::fs::remove_file(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    check(&mut kept, "with the programs of before");
    let counted = host.status()["rules"][0]["flows"].as_u64();
    assert!(counted >= Some(16), "{counted:?}");
    let other = copy_world_executable(&site.lab.dir.0);
    all.extend(rules(site));
    up(site, &other, engine, &all);
    check(&mut kept, "after the change");
    let mut new = flows(site, 80);
    let both = ["F".to_owned(), "G".to_owned()].into();
    assert_eq!(reached(site), both);
    check(&mut new, "to targets");
    check(&mut kept, "beside targets");
    assert!(host.status()["rules"][0]["flows"].as_u64() >= counted);
    host.down();
}
