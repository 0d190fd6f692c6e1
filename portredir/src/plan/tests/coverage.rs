//! Interfaces whose packets are redirected elsewhere.

use super::*;

#[test]
fn a_packet_crosses_one_hook() {
    let snapshot = snapshot([
        kind(3, "br0", "bridge"),
        port(kind(4, "veth0", "veth"), 3),
        on(kind(5, "br0.10", "vlan"), 3),
        on(kind(6, "veth0.20", "vlan"), 4),
        Interface {
            is_up: false,
            ..interface(7, "eth9")
        },
        on(kind(8, "vxlan0", "vxlan"), 3),
    ]);
    let all = plan(&snapshot, "--engine tc");
    // The port is left to the bridge, so a VLAN on the port is on its own.
    assert_eq!(names(&all), ["br0", "veth0.20", "vxlan0"]);
    assert_eq!(
        skipped(&all),
        [
            ("eth9", "interface is down; attached when it comes up"),
            ("veth0", "port of bridge br0; br0 is used instead"),
            (
                "br0.10",
                "vlan on br0, where its packets are redirected first"
            ),
        ]
    );
    assert_eq!(names(&plan(&snapshot, "--iface veth0")), ["veth0"]);
    assert_eq!(names(&plan(&snapshot, "--iface veth0,br0")), ["br0"]);
    // An exclusion of the bridge excludes its ports, too.
    let without = plan(&snapshot, "--iface !br0");
    assert_eq!(names(&without), ["br0.10", "veth0.20", "vxlan0"]);
    assert!(skipped(&without).contains(&("veth0", "port of bridge br0; br0 is not selected")));
}

#[test]
fn a_socket_look_up_sees_the_device_that_delivers() {
    let snapshot = snapshot([
        interface(1, "lo"),
        kind(3, "br0", "bridge"),
        port(kind(4, "veth0", "veth"), 3),
        on(kind(5, "br0.10", "vlan"), 3),
        kind(6, "red", "vrf"),
        port(interface(7, "eth1"), 6),
    ]);
    let plan = plan(&snapshot, "--engine socket");
    assert_eq!(names(&plan), ["lo", "br0", "br0.10", "red"]);
    assert!(plan.attach.values().all(|p| p.engine == Engine::Lookup));
    assert_eq!(
        skipped(&plan),
        [
            (
                "veth0",
                "port of bridge br0; sockets see its packets as received on br0"
            ),
            (
                "eth1",
                "port of vrf red; sockets see its packets as received on red"
            ),
        ]
    );
}

#[test]
fn a_macvlan_is_hooked_for_replies() {
    let snapshot = snapshot([driver(2, "eth0", "ice"), on(kind(3, "mv0", "macvlan"), 2)]);
    let both = plan(&snapshot, "");
    assert_eq!(
        engines(&both),
        [("eth0", "tc", "tcx"), ("mv0", "tc", "tcx")]
    );
    assert!(both.attach[&3].is_egress_only && !both.attach[&2].is_egress_only);
    let why = &both.attach[&2].why;
    assert!(why.contains("macvlan mv0"), "{why}");
    let alone = plan(&snapshot, "--iface mv0");
    assert!(!alone.attach[&3].is_egress_only);
}

#[test]
fn ports_of_a_tracked_bridge_are_hooked_instead() {
    let bridge = Interface {
        is_tracked_bridge: true,
        ..kind(3, "br0", "bridge")
    };
    let snapshot = snapshot([
        driver(2, "eth0", "ice"),
        bridge,
        port(kind(4, "veth0", "veth"), 3),
        port(kind(5, "veth1", "veth"), 3),
        on(kind(6, "br0.7", "vlan"), 3),
    ]);
    for (iface, hooked) in [
        ("all", vec!["eth0", "veth0", "veth1"]),
        ("br0", vec!["veth0", "veth1"]),
        ("br0,!veth1", vec!["veth0"]),
        // Better there, where it is rewritten late, than nowhere.
        ("br0,!veth*", vec!["br0"]),
        ("veth1", vec!["veth1"]),
        ("!br0", vec!["eth0", "br0.7"]),
    ] {
        let plan = plan(&snapshot, &format!("--iface {iface}"));
        let names: Vec<_> = plan.attach.values().map(|p| &p.interface.name).collect();
        assert_eq!(names, hooked, "{iface}");
    }
}
