mod filters;

use super::*;
use crate::host::forwarding::Switch;
use crate::host::packet_filter::Rulesets;
use crate::host::way::NoRoute;

/// The ingress interface, and the one of the targets.
const ETH0: u32 = 2;
const DOCKER0: u32 = 3;

fn addr(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn net(text: &str) -> IpNet {
    text.parse().expect(text)
}

fn device(index: u32, name: &str) -> Device {
    Device {
        index,
        name: name.to_owned(),
        kind: None,
        is_up: true,
        has_carrier: true,
        ports: 0,
        is_tracked_bridge: false,
        forwards_v4: true,
        forwards_v6: true,
        rp_filter: 0,
    }
}

/// A way out by an interface, to a host on the link.
fn way(index: u32, on_link: &str) -> Way {
    Way {
        route: Route::Out(Hop {
            index,
            gateway: None,
            source: Some(net(on_link).hosts().next().expect("a host")),
            on_link: Some(net(on_link)),
        }),
        neighbour: Neighbour::Reachable,
    }
}

/// A host with an uplink and a bridge of containers, which has all that is needed.
fn facts() -> Facts {
    let bridge = Device {
        kind: Some("bridge".to_owned()),
        ports: 1,
        is_tracked_bridge: true,
        ..device(DOCKER0, "docker0")
    };
    Facts {
        ways: [
            (addr("172.17.0.2"), way(DOCKER0, "172.17.0.0/16")),
            (addr("fd00::2"), way(DOCKER0, "fd00::/64")),
        ]
        .into(),
        devices: [(ETH0, device(ETH0, "eth0")), (DOCKER0, bridge)].into(),
        has_force_forwarding: true,
        hears_routers: Vec::new(),
        filters: Rulesets::default(),
    }
}

fn wanted(target: &str) -> WantedWay {
    let target = addr(target);
    WantedWay {
        rule: "80:TARGET".to_owned(),
        target,
        port: Port::new(8080),
        protocols: Protocols::Tcp,
        from: None,
        dialled: Some(if target.is_ipv4() {
            addr("192.0.2.1")
        } else {
            addr("2001:db8::1")
        }),
        ingress: [ETH0, LOOPBACK_IFINDEX].into(),
    }
}

fn plan(facts: &Facts, wanted: &WantedWay) -> Ways {
    let request = WayRequest {
        wanted: std::slice::from_ref(wanted),
        local: Some(Engine::Cgroup),
        may_enable: false,
    };
    Ways::plan(facts, request)
}

/// The checks and weights of the findings.
fn found(ways: &Ways) -> Vec<(&'static str, Severity)> {
    let findings = ways.diagnosis.findings.iter();
    findings.map(|it| (it.check, it.severity)).collect()
}

/// The one finding.
fn only(ways: &Ways) -> Finding {
    let [finding] = ways.diagnosis.findings.as_slice() else {
        panic!("{ways}");
    };
    finding.clone()
}

/// Whether a sentence tells that something was not evaluated.
fn is_left_out(ways: &Ways, words: &str) -> bool {
    let mut unchecked = ways.diagnosis.unchecked.iter();
    unchecked.any(|it| it.why.contains(words))
}

#[test]
fn a_target_that_is_reached_has_no_finding() {
    for target in ["172.17.0.2", "fd00::2"] {
        let ways = plan(&facts(), &wanted(target));
        assert_eq!(found(&ways), [], "{ways}");
        ways.check().expect("a way");
        assert_eq!(ways.diagnosis.passed.len(), 3);
        // Routes of the target are its own.
        let [unchecked] = ways.diagnosis.unchecked.as_slice() else {
            panic!("{ways}");
        };
        assert_eq!(unchecked.check, RETURN);
    }
}

#[test]
fn targets_without_a_way_are_refused() {
    for (route, what) in [
        (Route::Local, "is an address of this host"),
        (Route::None(NoRoute::Missing), "no route leads to"),
        (
            Route::None(NoRoute::Refusing("blackhole")),
            "has type blackhole",
        ),
        (Route::None(NoRoute::Many), "broadcast or multicast"),
        (Route::None(NoRoute::LinkLocal), "link-local"),
    ] {
        let mut facts = facts();
        let neighbour = Neighbour::NotNeeded;
        let way = Way { route, neighbour };
        facts.ways.insert(addr("172.17.0.2"), way);
        let ways = plan(&facts, &wanted("172.17.0.2"));
        let finding = only(&ways);
        assert_eq!((finding.check, finding.severity), (ROUTE, Severity::Error));
        assert!(finding.what.contains(what), "{ways}");
        let error = ways.check().expect_err("no way").to_string();
        assert!(error.contains(what), "{error}");
        assert!(
            ways.to_string()
                .starts_with("target 172.17.0.2:8080: no way\n")
        );
    }
    let mut facts = facts();
    let neighbour = Neighbour::NotNeeded;
    let route = Route::Unknown("a riddle".to_owned());
    let way = Way { route, neighbour };
    facts.ways.insert(addr("172.17.0.2"), way);
    let ways = plan(&facts, &wanted("172.17.0.2"));
    assert_eq!(found(&ways), []);
    assert!(is_left_out(&ways, "the kernel says: a riddle"), "{ways}");
}

#[test]
fn links_and_neighbours_may_be_dead() {
    let mut down = facts();
    down.devices.get_mut(&DOCKER0).expect("a bridge").is_up = false;
    let mut empty = facts();
    let bridge = empty.devices.get_mut(&DOCKER0).expect("a bridge");
    bridge.ports = 0;
    let mut unplugged = facts();
    let bridge = unplugged.devices.get_mut(&DOCKER0).expect("a bridge");
    bridge.has_carrier = false;
    let mut silent = facts();
    let way = silent.ways.get_mut(&addr("172.17.0.2")).expect("a way");
    way.neighbour = Neighbour::Failed;
    for (facts, what) in [
        (down, "docker0 is down"),
        (empty, "bridge docker0 has no ports"),
        (unplugged, "docker0 has no carrier"),
        (silent, "nobody answers for 172.17.0.2 on docker0"),
    ] {
        let ways = plan(&facts, &wanted("172.17.0.2"));
        let finding = only(&ways);
        assert_eq!(
            (finding.check, finding.severity, finding.what.as_str()),
            (ROUTE, Severity::Warning, what)
        );
        // A link may come up later, and a host start.
        ways.check().expect("a way");
    }
    let mut asked = facts();
    let way = asked.ways.get_mut(&addr("172.17.0.2")).expect("a way");
    way.neighbour = Neighbour::Unknown;
    let ways = plan(&asked, &wanted("172.17.0.2"));
    assert_eq!(found(&ways), []);
    assert!(
        is_left_out(&ways, "nothing was sent there lately"),
        "{ways}"
    );
}

#[test]
fn forwarding_is_switched_on_only_when_asked_for() {
    let mut facts = facts();
    for device in facts.devices.values_mut() {
        (device.forwards_v4, device.forwards_v6) = (false, false);
    }
    let v4 = ["eth0", "docker0"].map(|name| Switch::Ipv4(name.to_owned()));
    let v6 = ["eth0", "docker0"].map(|name| Switch::Ipv6(name.to_owned()));
    for (target, switches) in [("172.17.0.2", v4), ("fd00::2", v6)] {
        let wanted = wanted(target);
        let ways = plan(&facts, &wanted);
        let finding = only(&ways);
        assert_eq!(
            (finding.check, finding.severity),
            (FORWARDING, Severity::Error)
        );
        let command = format!(
            "sysctl -w {}=1 {}=1",
            switches[1].name(),
            switches[0].name()
        );
        assert!(finding.fix.starts_with(&command), "{}", finding.fix);
        assert_eq!(ways.forwarding, Forwarding::default());
        ways.check().expect_err("no forwarding");
        let allowed = Ways::plan(
            &facts,
            WayRequest {
                wanted: &[wanted],
                local: None,
                may_enable: true,
            },
        );
        let [docker0, eth0] = [switches[1].clone(), switches[0].clone()];
        assert_eq!(allowed.forwarding.switches, [docker0, eth0]);
        assert_eq!(found(&allowed), [(FORWARDING, Severity::Note)]);
        allowed.check().expect("a way");
    }
    // Clients on this host need no forwarding.
    let local = WantedWay {
        ingress: [LOOPBACK_IFINDEX].into(),
        ..wanted("172.17.0.2")
    };
    assert_eq!(found(&plan(&facts, &local)), []);
}

#[test]
fn one_interface_needs_its_switch_alone() {
    let mut facts = facts();
    let eth0 = facts.devices.get_mut(&ETH0).expect("an interface");
    eth0.forwards_v4 = false;
    let finding = only(&plan(&facts, &wanted("172.17.0.2")));
    assert_eq!(
        finding.what,
        "IPv4 packets that come in by eth0 are not forwarded"
    );
    assert_eq!(found(&plan(&facts, &wanted("fd00::2"))), []);
}

#[test]
fn router_advertisements_get_lost_without_force_forwarding() {
    let mut facts = Facts {
        has_force_forwarding: false,
        hears_routers: vec!["eth0".to_owned(), "eth1.7".to_owned()],
        ..facts()
    };
    for device in facts.devices.values_mut() {
        device.forwards_v6 = false;
    }
    let ways = Ways::plan(
        &facts,
        WayRequest {
            wanted: &[wanted("fd00::2")],
            local: None,
            may_enable: true,
        },
    );
    assert_eq!(ways.forwarding.switches, [Switch::Ipv6All]);
    let [warning, note] = ways.diagnosis.findings.as_slice() else {
        panic!("{ways}");
    };
    assert_eq!(
        warning.fix,
        "sysctl -w net.ipv6.conf.eth0.accept_ra=2 net/ipv6/conf/eth1.7/accept_ra=2"
    );
    assert_eq!(note.severity, Severity::Note);
    assert!(note.why.contains("comes in by any interface"), "{ways}");
    facts.has_force_forwarding = true;
    let ways = plan(&facts, &wanted("fd00::2"));
    assert_eq!(found(&ways), [(FORWARDING, Severity::Error)]);
}

/// A target on the link of the clients.
fn one_arm(facts: &mut Facts) -> WantedWay {
    facts
        .ways
        .insert(addr("192.0.2.9"), way(ETH0, "192.0.2.0/24"));
    wanted("192.0.2.9")
}

#[test]
fn a_target_beside_its_clients_answers_them_directly() {
    let mut facts = facts();
    let wanted = one_arm(&mut facts);
    let from = |text| WantedWay {
        from: Some(net(text)),
        ..wanted.clone()
    };
    for (wanted, severity) in [
        (wanted.clone(), Severity::Warning),
        (from("192.0.0.0/16"), Severity::Warning),
        (from("192.0.2.128/25"), Severity::Error),
    ] {
        let ways = plan(&facts, &wanted);
        let finding = only(&ways);
        assert_eq!((finding.check, finding.severity), (RETURN, severity));
        assert_eq!(
            finding.what,
            "replies of 192.0.2.9:8080 to clients in 192.0.2.0/24 do not come back by this host"
        );
        assert!(
            finding.fix.starts_with(
                "on the target: ip route add default via 192.0.2.1 table 100 && ip rule add \
                 ipproto tcp sport 8080 table 100;"
            ),
            "{}",
            finding.fix
        );
    }
    // Such clients come by a router, which may be this host.
    let ways = plan(&facts, &from("10.0.0.0/8"));
    assert_eq!(found(&ways), []);
    assert_eq!(ways.diagnosis.unchecked.len(), 1);
}

#[test]
fn clients_on_the_bridge_of_a_target_need_br_netfilter() {
    let mut facts = facts();
    let wanted = WantedWay {
        ingress: [ETH0, DOCKER0].into(),
        ..wanted("172.17.0.2")
    };
    assert_eq!(found(&plan(&facts, &wanted)), []);
    let bridge = facts.devices.get_mut(&DOCKER0).expect("a bridge");
    bridge.is_tracked_bridge = false;
    let finding = only(&plan(&facts, &wanted));
    assert_eq!(
        (finding.check, finding.severity),
        (RETURN, Severity::Warning)
    );
    assert!(finding.fix.ends_with("bridge-nf-call-iptables=1"));
}

#[test]
fn a_router_on_the_way_is_named() {
    let mut facts = facts();
    facts.devices.get_mut(&DOCKER0).expect("a device").rp_filter = 1;
    let way = facts.ways.get_mut(&addr("172.17.0.2")).expect("a way");
    if let Route::Out(hop) = &mut way.route {
        hop.gateway = Some(addr("172.17.0.9"));
        hop.on_link = None;
    }
    let ways = plan(&facts, &wanted("172.17.0.2"));
    let said = &ways.diagnosis.unchecked[0].why;
    assert!(
        said.contains("come back by docker0 and 172.17.0.9"),
        "{said}"
    );
    assert!(said.contains("rp_filter of docker0"), "{said}");
    assert!(
        ways.to_string()
            .starts_with("target 172.17.0.2:8080: by docker0 and router 172.17.0.9, neighbour")
    );
}

#[test]
fn one_version_cannot_become_the_other() {
    let facts = facts();
    let any = |target| WantedWay {
        dialled: None,
        ..wanted(target)
    };
    let note = only(&plan(&facts, &any("172.17.0.2")));
    assert_eq!((note.check, note.severity), (FAMILY, Severity::Note));
    let both = [any("172.17.0.2"), any("fd00::2")];
    let request = WayRequest {
        wanted: &both,
        local: None,
        may_enable: false,
    };
    assert_eq!(found(&Ways::plan(&facts, request)), []);
    let other = WantedWay {
        from: Some(net("2001:db8::/32")),
        ..any("172.17.0.2")
    };
    let ways = plan(&facts, &other);
    assert_eq!(found(&ways), [(FAMILY, Severity::Error)]);
    ways.check().expect_err("two IP versions");
}

#[test]
fn local_clients_need_the_hooks_of_a_cgroup() {
    let wanted = [wanted("172.17.0.2")];
    for (local, is_served) in [
        (Some(Engine::Cgroup), true),
        (None, true),
        (Some(Engine::Tc), false),
    ] {
        let request = WayRequest {
            wanted: &wanted,
            local,
            may_enable: false,
        };
        let ways = Ways::plan(&facts(), request);
        let expected = (!is_served).then_some((LOCAL, Severity::Warning));
        assert_eq!(found(&ways), Vec::from_iter(expected), "{ways}");
    }
}

#[test]
fn text_fits_a_terminal_and_json_has_the_same() {
    let mut facts = facts();
    for device in facts.devices.values_mut() {
        device.forwards_v4 = false;
    }
    let mut wanted = one_arm(&mut facts);
    wanted.dialled = None;
    let request = WayRequest {
        wanted: &[wanted],
        local: Some(Engine::Tc),
        may_enable: false,
    };
    let ways = Ways::plan(&facts, request);
    let text = ways.to_string();
    assert_eq!(ways.diagnosis.findings.len(), 4, "{text}");
    // Commands stay whole, so that they can be copied.
    let lines = text.lines().filter(|line| !line.starts_with("  fix: "));
    for line in lines {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let json = serde_json::to_value(ways.report()).expect("JSON");
    assert_eq!(json["targets"][0]["addr"], "192.0.2.9");
    assert_eq!(json["targets"][0]["interface"], "eth0");
    assert_eq!(json["targets"][0]["neighbour"], "reachable");
    assert_eq!(json["findings"][0]["check"], FORWARDING);
    assert_eq!(json["findings"][0]["severity"], "error");
    assert_eq!(json["forwarding"], serde_json::json!([]));
}
