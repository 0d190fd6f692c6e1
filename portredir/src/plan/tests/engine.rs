//! The choice of an engine for each interface.

use super::*;

#[test]
fn auto_uses_native_xdp_on_real_nics_alone() {
    let snapshot = snapshot([
        interface(1, "lo"),
        driver(2, "eth0", "i40e"),
        driver(3, "eth1", "virtio_net"),
        kind(4, "veth0", "veth"),
        Interface {
            link: Link::Ip,
            ..kind(5, "wg0", "wireguard")
        },
        driver(6, "wlan0", "iwlwifi"),
    ]);
    let plan = plan(&snapshot, "");
    let expected = [
        ("lo", "local", "cgroup"),
        ("eth0", "xdp", "native"),
        ("eth1", "tc", "tcx"),
        ("veth0", "tc", "tcx"),
        ("wg0", "tc", "tcx"),
        ("wlan0", "tc", "tcx"),
    ];
    assert_eq!(engines(&plan), expected);
    assert!(plan.attach.values().all(|p| !p.why.is_empty()));
    let veth = &plan.attach[&4];
    assert_eq!(
        veth.rejected,
        [Rejected {
            engine: "xdp",
            why: "native XDP on veth disables TSO on the peer".into()
        }]
    );
}

#[test]
fn a_link_that_native_xdp_may_reset_is_named_before_it_is_attached() {
    let with = |name| snapshot([driver(2, "eth0", name)]);
    let notes = |name, text| plan(&with(name), text).attach[&2].notes.join("\n");
    for text in ["", "--engine xdp"] {
        let igb = notes("igb", text);
        assert!(igb.starts_with("driver igb resets the link"), "{igb}");
        let ixgbe = notes("ixgbe", text);
        assert!(ixgbe.contains("not tried with driver ixgbe"), "{ixgbe}");
    }
    let vmxnet3 = notes("vmxnet3", "--engine xdp");
    assert!(
        vmxnet3.starts_with("driver vmxnet3 resets the link"),
        "{vmxnet3}"
    );
    assert_eq!(notes("vmxnet3", ""), "");
    assert_eq!(notes("igb", "--engine tc"), "");
    assert_eq!(notes("virtio_net", "--engine xdp"), "");
    let ours = next_plan(&with("igb"), "", &[(2, SelectedBy::Pattern)]);
    assert_eq!(ours.attach[&2].notes, [""; 0]);
}

#[test]
fn what_the_driver_says_of_its_xdp_counts() {
    let with = |features, mtu| {
        snapshot([Interface {
            xdp_features: Some(XdpFeatures(features)),
            mtu,
            ..driver(2, "eth0", "ena")
        }])
    };
    let basic = XdpFeatures::BASIC;
    assert_eq!(engines(&plan(&with(basic, 3498), ""))[0].1, "xdp");
    assert_eq!(
        engines(&plan(&with(basic | XdpFeatures::RX_SG, 9001), ""))[0].1,
        "xdp"
    );
    let jumbo = with(basic, 9001);
    let auto = plan(&jumbo, "");
    assert_eq!(engines(&auto)[0].1, "tc");
    let why = &auto.attach[&2].why;
    assert!(
        why.contains("MTU 9001") && why.contains("maximum 3498"),
        "{why}"
    );
    // The kernel may allow more than the plan knows, and gives a reason if it refuses.
    assert_eq!(engines(&plan(&jumbo, "--engine xdp"))[0].1, "xdp");

    let none = with(0, 1500);
    let auto = plan(&none, "");
    assert_eq!(
        auto.attach[&2].why,
        "driver ena does not support native XDP"
    );
    let forced = plan(&none, "--engine xdp");
    assert_eq!(
        forced.refuse[0].to_string(),
        "eth0: --engine xdp is not available: driver ena does not support native XDP; \
             use --engine tc or auto"
    );
    assert_eq!(
        engines(&plan(&none, "--engine xdp-generic"))[0].2,
        "generic"
    );
}

#[test]
fn packets_are_not_rewritten_on_loopback_unless_they_must() {
    let snapshot = snapshot([interface(1, "lo")]);
    let with = |text: &str, cgroup| {
        let features = Features {
            cgroup,
            ..features()
        };
        let mut plan = snapshot.plan(&settings(text), &features, &BTreeMap::new(), &Others);
        plan.attach.remove(&1).expect("planned")
    };
    for engine in ["auto", "xdp", "xdp-generic"] {
        let text = format!("--engine {engine} --iface lo");
        let planned = with(&text, features().cgroup);
        assert_eq!(planned.engine, Engine::Cgroup, "{engine}");
        assert!(planned.notes.is_empty());
        let planned = with(&text, None);
        assert_eq!(planned.engine, Engine::Tc, "{engine}");
        assert!(planned.notes[0].contains("ct state invalid drop"));
    }
    for (engine, hook) in [("tc", "tcx"), ("tc-clsact", "clsact")] {
        let planned = with(&format!("--engine {engine}"), features().cgroup);
        assert_eq!(planned.hook, hook);
        assert!(planned.notes[0].contains("ct state invalid drop"));
    }
    let none = plan(&snapshot, "--no-local");
    assert!(none.attach.is_empty());
    assert_eq!(none.skip[0].name, "lo");
}

#[test]
fn foreign_xdp_is_named_and_left_alone() {
    let snapshot = snapshot([Interface {
        xdp: Some(7),
        ..driver(2, "eth0", "ice")
    }]);
    let auto = plan(&snapshot, "");
    assert_eq!(engines(&auto), [("eth0", "tc", "tcx")]);
    assert!(auto.attach[&2].why.contains("probe (id 7)"));
    for engine in ["xdp", "xdp-generic"] {
        let forced = plan(&snapshot, &format!("--engine {engine}"));
        assert!(forced.attach.is_empty());
        let error = forced.refuse[0].to_string();
        assert!(
            error.contains("XDP program probe (id 7) is already attached"),
            "{error}"
        );
    }
    let ours = next_plan(&snapshot, "--engine xdp", &[(2, SelectedBy::Pattern)]);
    assert_eq!(engines(&ours), [("eth0", "xdp", "native")]);
}

#[test]
fn xdp_on_a_device_above_allows_none_below() {
    let with_xdp = |interface| Interface {
        xdp: Some(7),
        ..interface
    };
    for upper in [on(kind(3, "eth0.10", "vlan"), 2), kind(3, "bond0", "bond")] {
        let is_master = upper.lower.is_none();
        let lower = driver(2, "eth0", "ice");
        let lower = if is_master { port(lower, 3) } else { lower };
        let snapshot = snapshot([lower, with_xdp(upper)]);
        let auto = plan(&snapshot, "--iface eth0");
        let why = &auto.attach[&2].why;
        assert_eq!(auto.attach[&2].engine, Engine::Tc);
        assert!(
            why.starts_with("upper device ") && why.contains("has XDP program probe (id 7)"),
            "{why}"
        );
        assert_eq!(plan(&snapshot, "--iface eth0 --engine xdp").refuse.len(), 1);
    }
    // A program of ours gives way to the lower device when that comes up.
    let macvlan = with_xdp(on(kind(3, "mv0", "macvlan"), 2));
    let below = snapshot([driver(2, "eth0", "ice"), macvlan]);
    let ours = next_plan(&below, "--engine xdp", &[(3, SelectedBy::Pattern)]);
    assert_eq!(
        engines(&ours),
        [("eth0", "xdp", "native"), ("mv0", "tc", "tcx")]
    );
    assert!(ours.attach[&3].is_egress_only);
    // A tunnel is an upper device by name alone.
    let tunnel = with_xdp(on(kind(3, "gre0", "gre"), 2));
    let snapshot = snapshot([driver(2, "eth0", "ice"), tunnel]);
    assert_eq!(engines(&plan(&snapshot, "--iface eth0"))[0].1, "xdp");
}

#[test]
fn foreign_tcx_is_named() {
    let snapshot = snapshot([driver(2, "cilium0", "virtio_net")]);
    let notes = &plan(&snapshot, "").attach[&2].notes;
    assert!(notes[0].contains("cil_from_netdev (id 9)"), "{notes:?}");
    assert!(
        plan(&snapshot, "--engine socket").attach[&2]
            .notes
            .is_empty()
    );
    let ours = next_plan(&snapshot, "", &[(2, SelectedBy::Pattern)]);
    assert!(ours.attach[&2].notes.is_empty());
}

#[test]
fn a_tunnel_that_shows_its_outer_header_is_for_tc() {
    let ip = |index, name, of| Interface {
        link: Link::Ip,
        ..kind(index, name, of)
    };
    let snapshot = snapshot([
        ip(2, "ipsec0", "xfrm"),
        ip(3, "vti0", "vti6"),
        ip(4, "gre1", "gre"),
        ip(5, "wg0", "wireguard"),
    ]);
    let plan = plan(&snapshot, "--engine xdp-generic");
    let expected = [
        ("ipsec0", "tc", "tcx"),
        ("vti0", "tc", "tcx"),
        ("gre1", "tc", "tcx"),
        ("wg0", "xdp-generic", "generic"),
    ];
    assert_eq!(engines(&plan), expected);
    assert_eq!(
        plan.attach[&2].why,
        "xfrm may deliver an outer header, which XDP cannot skip"
    );
}
