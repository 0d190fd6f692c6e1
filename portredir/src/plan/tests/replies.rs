//! Interfaces that nobody selected and by which replies may leave.

use super::*;

fn routers() -> Snapshot {
    snapshot([
        interface(1, "lo"),
        driver(2, "eth0", "ice"),
        driver(3, "eth1", "ice"),
        Interface {
            is_up: false,
            ..driver(4, "eth2", "ice")
        },
        Interface {
            link: Link::Ip,
            ..kind(5, "wg0", "wireguard")
        },
    ])
}

#[test]
fn replies_may_leave_by_every_other_interface() {
    let snapshot = routers();
    for (text, expected) in [
        ("--iface eth0", vec!["eth1", "wg0"]),
        ("--iface eth0,wg*", vec!["eth1"]),
        // It is not there yet, and then no packet is redirected.
        ("--iface ppp9", vec![]),
        ("--iface ppp9,lo", vec![]),
        ("--iface lo --engine tc", vec![]),
        ("--iface eth0 --engine socket", vec![]),
        ("", vec![]),
        ("--iface !eth1", vec![]),
        ("--iface eth0,!wg0", vec!["eth1"]),
    ] {
        assert_eq!(exits(&plan(&snapshot, text)), expected, "{text}");
    }
    for (engine, hook) in [
        ("auto", "tcx"),
        ("xdp", "tcx"),
        ("xdp-generic", "tcx"),
        ("tc", "tcx"),
        ("tc-clsact", "clsact"),
    ] {
        let plan = plan(&snapshot, &format!("--iface eth0 --engine {engine}"));
        assert_eq!(plan.attach[&3].hook, hook, "{engine}");
        assert_eq!(plan.check(), Ok(()));
    }
}

#[test]
fn plan_says_where_replies_alone_are_restored() {
    let snapshot = snapshot([
        driver(2, "eth0", "ena"),
        kind(3, "docker0", "bridge"),
        kind(4, "br-lan", "bridge"),
        port(kind(5, "tap0", "tun"), 4),
    ]);
    let plan = plan(&snapshot, "--iface eth0,!docker* --engine tc");
    assert_eq!(
        plan.to_string(),
        "\
INTERFACE  ENGINE  HOOK  WHY
eth0       tc      tcx   requested with --engine
docker0    -       -     excluded by !docker*; a reply that leaves here keeps the target port
br-lan     tc      tcx   replies only; --iface does not select it
firewall: allow 8080/tcp (INPUT sees the port after redirection)
"
    );
    let json = serde_json::to_value(plan.report()).expect("JSON");
    let only = [0, 1, 2].map(|i| json["interfaces"][i]["replies_only"].as_bool());
    assert_eq!(only, [Some(false), Some(false), Some(true)]);
    assert_eq!(json["interfaces"][2]["action"], "attach");
    // Replies are restored before they are redirected anywhere.
    let order: Vec<_> = plan.in_order().map(|it| &it.interface.name).collect();
    assert_eq!(order, ["br-lan", "eth0"]);
}

#[test]
fn reply_crosses_one_program_where_that_is_possible() {
    let tracked = Interface {
        is_tracked_bridge: true,
        ..kind(4, "br0", "bridge")
    };
    let snapshot = snapshot([
        driver(2, "eth0", "ice"),
        on(kind(3, "eth0.7", "vlan"), 2),
        tracked,
        port(kind(5, "veth0", "veth"), 4),
        port(kind(6, "veth1", "veth"), 4),
        kind(7, "red", "vrf"),
        port(interface(8, "eth1"), 7),
        interface(9, "eth2"),
        on(kind(10, "mv0", "macvlan"), 9),
        kind(11, "bond0", "bond"),
        port(interface(12, "eth3"), 11),
        on(kind(13, "bond0.8", "vlan"), 11),
    ]);
    let others = ["eth1", "eth2", "mv0", "bond0"];
    for (iface, expected) in [
        ("eth0", vec!["br0"]),
        ("eth0.7", vec!["eth0", "br0"]),
        // The bridge gives way to its ports, of which one has a program.
        ("eth0,veth1", vec!["veth0"]),
        ("eth0,veth1,!veth0", vec![]),
        ("eth0,br0", vec![]),
        ("eth0,!br0", vec![]),
    ] {
        let plan = plan(&snapshot, &format!("--iface {iface}"));
        assert_eq!(exits(&plan), [&expected[..], &others].concat(), "{iface}");
    }
    let all = plan(&snapshot, "--iface !br0,!eth2,!veth0");
    assert_eq!(exits(&all), [""; 0]);
    // The ports of a bridge that is left out are left out with it.
    let left: Vec<_> = skipped(&all)
        .into_iter()
        .filter(|(_, why)| why.contains("keeps the target port"))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(left, ["br0", "eth2"]);
}

#[test]
fn program_for_replies_makes_no_interface_selected() {
    let attached = Attached {
        selected: SelectedBy::Pattern,
        is_egress_only: true,
    };
    let attached = BTreeMap::from([(3, attached)]);
    let next = |text: &str, snapshot: &Snapshot| {
        snapshot.plan(&settings(text), &features(), &attached, &Others)
    };
    let down = snapshot([
        driver(2, "eth0", "ice"),
        Interface {
            is_up: false,
            ..driver(3, "eth1", "ice")
        },
    ]);
    // A link that comes back finds its connections.
    assert_eq!(exits(&next("--iface eth0", &down)), ["eth1"]);
    assert_eq!(exits(&plan(&down, "--iface eth0")), [""; 0]);
    let foreign = snapshot([
        driver(2, "eth0", "ice"),
        Interface {
            xdp: Some(7),
            ..driver(3, "eth1", "ice")
        },
    ]);
    // A program of ours that sees only what goes out is no XDP program.
    let all = next("--engine xdp", &foreign);
    assert!(
        all.refuse[0].why.contains("probe (id 7)"),
        "{:?}",
        all.refuse
    );
    assert_eq!(exits(&all), [""; 0]);
    let renamed = next(
        "--iface eth0,lan*",
        &snapshot([driver(2, "eth0", "ice"), driver(3, "lan1", "ice")]),
    );
    assert!(!renamed.attach[&3].is_egress_only);
}
