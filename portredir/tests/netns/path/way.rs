//! The facts about the way to targets with an address, and what the plan makes of them:
//! real routes, bridges, switches and rules, and what packets do there.

mod filters;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use portredir::config::engine::Engine;
use portredir::host::forwarding::{Saved, Switch};
use portredir::host::netlink::Netlink;
use portredir::host::way::{Facts, Neighbour, NoRoute, Route};
use portredir::plan::way::{FORWARDING, RETURN, ROUTE, WantedWay, WayRequest, Ways};
use portredir::rule::Protocols;
use portredir_common::net::Port;

use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;
use crate::lab::{Family, Far, Lab, link};
use crate::peer::conn::{Proto, answers};
use crate::peer::echo::EchoServer;
use crate::{Cell, Tests, skip};

pub fn add(tests: &mut Tests) {
    tests.add("way/routes", &["nft", "ping"], routes);
    tests.add("way/links", &["nft"], links);
    tests.add("way/forwarding", &["nft", "sysctl"], forwarding);
    tests.add("way/forwarding_for_all", &["nft"], forwarding_for_all);
    tests.add("way/one_arm", &["nft"], one_arm);
    filters::add(tests);
}

const CELL: Cell = Cell {
    engine: "tc",
    is_offloaded: true,
    family: Family::V4,
};

/// A host that forwards between a client and a server.
fn lab() -> Lab {
    Lab::with_far(&CELL, Far::BehindHost)
}

/// The server behind the host.
fn far(family: Family) -> IpAddr {
    family.addr(2, 2)
}

fn text(addr: &str) -> IpAddr {
    addr.parse().expect(addr)
}

/// Looks at the way to a target from the client's interface.
fn look(host: &Namespace, target: IpAddr) -> (Facts, Ways) {
    look_from(host, target, &["h0"])
}

fn look_from(host: &Namespace, target: IpAddr, ingress: &[&str]) -> (Facts, Ways) {
    let snapshot = host.enter(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let netlink = Netlink::open().expect("netlink");
            netlink.snapshot().await.expect("a snapshot")
        })
    });
    let interfaces = snapshot.interfaces.values();
    let ingress = interfaces.filter(|it| ingress.contains(&it.name.as_str()));
    let wanted = [WantedWay {
        rule: format!("80:{target}:8080"),
        target,
        port: Port::new(8080),
        protocols: Protocols::Both,
        from: None,
        dialled: Some(Family::addr(
            if target.is_ipv4() {
                Family::V4
            } else {
                Family::V6
            },
            1,
            1,
        )),
        ingress: ingress.map(|it| it.index).collect::<BTreeSet<_>>(),
    }];
    let request = WayRequest {
        wanted: &wanted,
        local: Some(Engine::Cgroup),
        may_enable: false,
    };
    let facts = host.enter(|| Facts::read(&snapshot, &request.targets(), &request.ingress()));
    let facts = facts.expect("facts");
    let ways = Ways::plan(&facts, request);
    (facts, ways)
}

fn route(facts: &Facts, target: IpAddr) -> &Route {
    &facts.ways[&target].route
}

/// The facts of the findings of one check.
fn whats(ways: &Ways, check: &str) -> Vec<String> {
    let findings = ways.diagnosis.findings.iter();
    let findings = findings.filter(|finding| finding.check == check);
    findings.map(|finding| finding.what.clone()).collect()
}

/// The cure of the only finding of one check.
fn fix(ways: &Ways, check: &str) -> String {
    let findings = ways.diagnosis.findings.iter();
    let findings: Vec<_> = findings.filter(|it| it.check == check).collect();
    let [finding] = findings.as_slice() else {
        panic!("{ways}");
    };
    finding.fix.clone()
}

/// Runs the first commands of a cure.
fn follow(host: &Namespace, fix: &str) {
    let commands = fix.split("; or").next().expect("a command");
    for command in commands.split(" && ") {
        host.run(&command.split(' ').collect::<Vec<_>>());
    }
}

/// Waits until the server gets what the client sends it.
fn reach(lab: &Lab, family: Family) {
    wait_for("the server", || is_reached(lab, family).then_some(()));
}

/// Whether the server gets what the client sends it. Packets of a redirect have the same
/// addresses when a filter or a route decides about them.
fn is_reached(lab: &Lab, family: Family) -> bool {
    let to = SocketAddr::new(far(family), 8080);
    answers(&lab.client, Proto::Udp, to)
}

fn server(lab: &Lab) -> EchoServer {
    EchoServer::start(lab.far.as_ref().expect("a server"), 8080)
}

fn routes() {
    let lab = lab();
    let host = &lab.host;
    host.ip(
        "route add blackhole 203.0.113.0/26\nroute add unreachable 203.0.113.64/26\n\
         route add prohibit 203.0.113.128/26\nroute add 198.51.100.0/24 via 10.9.2.2\n\
         route add blackhole 2001:db8:1::/48\nroute add unreachable 2001:db8:2::/48\n\
         route add prohibit 2001:db8:3::/48\nroute add 2001:db8:4::/48 via fd09:0:0:2::2",
    );
    for (target, expected) in [
        ("192.0.2.1", NoRoute::Missing),
        ("2001:db8:9::1", NoRoute::Missing),
        ("203.0.113.1", NoRoute::Refusing("blackhole")),
        ("2001:db8:1::1", NoRoute::Refusing("blackhole")),
        ("203.0.113.65", NoRoute::Refusing("unreachable")),
        ("2001:db8:2::1", NoRoute::Refusing("unreachable")),
        ("203.0.113.129", NoRoute::Refusing("prohibit")),
        ("2001:db8:3::1", NoRoute::Refusing("prohibit")),
        ("10.9.2.255", NoRoute::Many),
        ("fe80::1", NoRoute::LinkLocal),
    ] {
        let target = text(target);
        let (facts, ways) = look(host, target);
        assert_eq!(route(&facts, target), &Route::None(expected), "{target}");
        ways.check().expect_err("no way");
    }
    for own in ["10.9.1.1", "10.9.2.1", "127.0.0.5", "::1", "fd09:0:0:2::1"] {
        let (facts, ways) = look(host, text(own));
        assert_eq!(route(&facts, text(own)), &Route::Local, "{own}");
        let error = ways.check().expect_err("an own address").to_string();
        assert!(error.contains("write the port alone as the target: 8080"));
    }
    for (family, behind, link) in [
        (Family::V4, "198.51.100.7", "10.9.2.0/24"),
        (Family::V6, "2001:db8:4::7", "fd09:0:0:2::/64"),
    ] {
        let (facts, ways) = look(host, far(family));
        let Route::Out(hop) = route(&facts, far(family)) else {
            panic!("{ways}");
        };
        assert_eq!((hop.gateway, hop.source), (None, Some(family.addr(2, 1))));
        assert_eq!(hop.on_link, Some(link.parse().expect(link)));
        assert_eq!(facts.devices[&hop.index].name, "h1");
        ways.check().expect("a way");
        assert!(ways.diagnosis.findings.is_empty(), "{ways}");
        let (facts, ways) = look(host, text(behind));
        let Route::Out(hop) = route(&facts, text(behind)) else {
            panic!("{ways}");
        };
        assert_eq!((hop.gateway, hop.on_link), (Some(far(family)), None));
        let unchecked = &ways.diagnosis.unchecked;
        let by = format!("come back by h1 and {}", far(family));
        assert!(unchecked.iter().any(|it| it.why.contains(&by)), "{ways}");
    }
    neighbours(&lab);
}

/// States of hosts on the link, before and after the kernel asks for them.
fn neighbours(lab: &Lab) {
    let host = &lab.host;
    for (family, nobody) in [(Family::V4, "10.9.2.77"), (Family::V6, "fd09:0:0:2::77")] {
        let neighbour = |target| look(host, target).0.ways[&target].neighbour;
        assert_eq!(neighbour(text(nobody)), Neighbour::Unknown);
        assert!(!host.succeeds(&["ping", "-c", "1", "-W", "4", nobody]));
        let failed = wait_for("a failed neighbour", || {
            let (facts, ways) = look(host, text(nobody));
            let state = facts.ways[&text(nobody)].neighbour;
            (state == Neighbour::Failed).then_some(ways)
        });
        assert_eq!(
            whats(&failed, ROUTE),
            [format!("nobody answers for {nobody} on h1")]
        );
        assert!(host.succeeds(&["ping", "-c", "1", &far(family).to_string()]));
        let known = neighbour(far(family));
        assert!(
            [Neighbour::Reachable, Neighbour::Stale].contains(&known),
            "{known:?}"
        );
    }
    host.ip("tuntap add t0 mode tun\nlink set t0 up\nroute add 192.0.2.0/24 dev t0");
    let (facts, ways) = look(host, text("192.0.2.1"));
    let way = &facts.ways[&text("192.0.2.1")];
    assert_eq!(way.neighbour, Neighbour::NotNeeded);
    // No program holds the other end.
    assert_eq!(whats(&ways, ROUTE), ["t0 has no carrier"]);
}

fn links() {
    let lab = lab();
    let host = &lab.host;
    host.ip(
        "link add br0 type bridge\naddr add 10.9.7.1/24 dev br0\nlink set br0 up\n\
         link add br1 type bridge\naddr add 10.9.8.1/24 dev br1\nlink set br1 up",
    );
    let (_, ways) = look(host, text("10.9.7.2"));
    assert_eq!(whats(&ways, ROUTE), ["bridge br0 has no ports"]);
    ways.check().expect("a container may start later");
    let container = lab.another("g");
    link((host, "p0", (9, 1)), (&container, "g0", (7, 2)));
    host.ip("link set p0 master br0");
    let expected = wait_for("a bridge with a port", || {
        let (facts, ways) = look(host, text("10.9.7.2"));
        whats(&ways, ROUTE).is_empty().then_some(facts)
    });
    let bridge = expected.devices.values().find(|it| it.name == "br0");
    assert_eq!(bridge.map(|it| (it.ports, it.is_bridge())), Some((1, true)));
    // Packets that come in on a port come in by its bridge.
    let (facts, _) = look_from(host, far(Family::V4), &["p0"]);
    let names: BTreeSet<_> = facts.devices.values().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["br0", "h1"].into());
    for (switch, is_found) in [("1", false), ("0", true)] {
        host.ip(&format!(
            "link set br0 type bridge nf_call_iptables {switch}"
        ));
        if fs::exists("/proc/sys/net/bridge").unwrap_or(false) {
            host.sysctl("bridge/bridge-nf-call-iptables", switch);
            host.sysctl("bridge/bridge-nf-call-ip6tables", switch);
        } else if !is_found {
            continue;
        }
        let (_, ways) = look_from(host, text("10.9.7.2"), &["h0", "p0"]);
        let expected = "clients on bridge br0 may get no answer from 10.9.7.2:8080";
        assert_eq!(
            whats(&ways, RETURN),
            Vec::from_iter(is_found.then_some(expected.to_owned()))
        );
    }
}

/// Writes the switches of both families, of all interfaces.
fn forward(host: &Namespace, value: &str) {
    host.sysctl("ipv4/ip_forward", value);
    host.sysctl("ipv6/conf/all/forwarding", value);
}

fn is_on(host: &Namespace, switch: &Switch) -> bool {
    host.enter(|| switch.is_on()).expect("a switch")
}

/// The switches that were off, and that a plan with permission sets.
fn saved(host: &Namespace, target: IpAddr) -> Saved {
    let (facts, refused) = look(host, target);
    refused.check().expect_err("no forwarding");
    let wanted = [WantedWay {
        rule: String::new(),
        target,
        port: Port::new(8080),
        protocols: Protocols::Tcp,
        from: None,
        dialled: None,
        ingress: facts.devices.keys().copied().collect(),
    }];
    let request = WayRequest {
        wanted: &wanted,
        local: None,
        may_enable: true,
    };
    let ways = Ways::plan(&facts, request);
    ways.check().expect("a way");
    host.enter(|| ways.forwarding.save()).expect("switches")
}

fn forwarding() {
    let lab = lab();
    let host = &lab.host;
    let _server = server(&lab);
    forward(host, "0");
    for family in Family::BOTH {
        let all = if family == Family::V4 {
            Switch::Ipv4("all".to_owned())
        } else {
            Switch::Ipv6All
        };
        let saved = saved(host, far(family));
        let names: Vec<_> = saved.switches.iter().map(|it| it.switch.name()).collect();
        if family == Family::V6 && names.len() == 1 {
            skip("needs force_forwarding for IPv6, added in Linux 6.17");
        }
        assert_eq!(names.len(), 2, "{names:?}");
        let (_, ways) = look(host, far(family));
        assert_eq!(whats(&ways, FORWARDING).len(), 1, "{ways}");
        for round in 0..2 {
            assert!(!is_reached(&lab, family), "{family:?} {round}");
            host.enter(|| saved.enable()).expect("forwarding");
            reach(&lab, family);
            let (_, ways) = look(host, far(family));
            assert_eq!(whats(&ways, FORWARDING), [""; 0], "{ways}");
            // Other interfaces do not forward.
            assert!(!is_on(host, &all));
            host.enter(|| saved.restore()).expect("forwarding");
        }
        assert!(!is_reached(&lab, family));
        // The command that the plan names does the same.
        follow(host, &fix(&ways, FORWARDING));
        reach(&lab, family);
        host.enter(|| saved.restore()).expect("forwarding");
    }
    // Somebody wants forwarding everywhere meanwhile.
    let saved = saved(host, far(Family::V4));
    host.enter(|| saved.enable()).expect("forwarding");
    host.sysctl("ipv4/ip_forward", "1");
    host.enter(|| saved.restore()).expect("forwarding");
    reach(&lab, Family::V4);
}

/// The switch of all interfaces writes over those of one.
fn forwarding_for_all() {
    let lab = lab();
    let host = &lab.host;
    let _server = server(&lab);
    forward(host, "0");
    host.sysctl("ipv6/conf/h1/forwarding", "1");
    let forwarding = portredir::host::forwarding::Forwarding {
        switches: vec![Switch::Ipv6All],
    };
    let saved = host.enter(|| forwarding.save()).expect("switches");
    assert_eq!(saved.routers, ["h1"]);
    assert!(!is_reached(&lab, Family::V6));
    host.enter(|| saved.enable()).expect("forwarding");
    reach(&lab, Family::V6);
    host.enter(|| saved.restore()).expect("forwarding");
    assert!(!is_reached(&lab, Family::V6));
    let setting = |name: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/forwarding");
        host.enter(|| fs::read_to_string(path)).expect(name)
    };
    assert_eq!(["h0", "h1", "all"].map(setting), ["0\n", "1\n", "0\n"]);
    let (facts, _) = look(host, far(Family::V6));
    assert!(facts.hears_routers.contains(&"h0".to_owned()), "{facts:?}");
    assert!(!facts.hears_routers.contains(&"h1".to_owned()), "{facts:?}");
}

/// A target on the link of its clients.
fn one_arm() {
    let lab = lab();
    for family in Family::BOTH {
        let target = family.addr(1, 9);
        let (_, ways) = look(&lab.host, target);
        let [what] = whats(&ways, RETURN).try_into().expect("one finding");
        let what: String = what;
        assert!(what.ends_with("do not come back by this host"), "{what}");
        let own = family.addr(1, 1);
        assert!(
            fix(&ways, RETURN).contains(&format!("route add default via {own} table 100")),
            "{ways}"
        );
        let (_, ways) = look(&lab.host, far(family));
        assert_eq!(whats(&ways, RETURN), [""; 0]);
    }
}
