mod dead;
mod stacks;

use clap::Parser as _;
use portredir_common::wire::frame::Link;

use super::*;
use crate::cli::Cli;
use crate::sys::netdev::XdpFeatures;

fn interface(index: u32, name: &str) -> Interface {
    Interface {
        index,
        name: name.into(),
        is_up: true,
        link: Link::Ethernet,
        kind: None,
        driver: None,
        master: None,
        is_tracked_bridge: false,
        lower: None,
        xdp: None,
        mtu: 1500,
        xdp_features: None,
    }
}

fn kind(index: u32, name: &str, kind: &str) -> Interface {
    Interface {
        kind: Some(kind.into()),
        ..interface(index, name)
    }
}

fn driver(index: u32, name: &str, driver: &str) -> Interface {
    Interface {
        driver: Some(driver.into()),
        ..interface(index, name)
    }
}

fn port(interface: Interface, master: u32) -> Interface {
    Interface {
        master: Some(master),
        ..interface
    }
}

fn on(interface: Interface, lower: u32) -> Interface {
    Interface {
        lower: Some(lower),
        ..interface
    }
}

fn snapshot(interfaces: impl IntoIterator<Item = Interface>) -> Snapshot {
    Snapshot {
        interfaces: interfaces.into_iter().map(|i| (i.index, i)).collect(),
        ..Snapshot::default()
    }
}

fn features() -> Features {
    Features {
        cgroup: Some("/sys/fs/cgroup".into()),
        tcx: Some(true),
        page_bytes: 4096,
    }
}

struct Others;

impl Programs for Others {
    fn name(&self, id: u32) -> String {
        format!("probe (id {id})")
    }

    fn tcx(&self, interface: &str) -> Vec<String> {
        let has_some = interface == "cilium0";
        has_some
            .then(|| "cil_from_netdev (id 9)".into())
            .into_iter()
            .collect()
    }
}

/// The settings of a command line without the rule.
fn settings(text: &str) -> Settings {
    let words = ["portredir"].into_iter().chain(text.split_whitespace());
    Cli::parse_from(words.chain(["80:8080"]))
        .run
        .options
        .settings()
        .expect("settings")
}

fn plan(snapshot: &Snapshot, text: &str) -> Plan {
    snapshot.plan(&settings(text), &features(), &BTreeMap::new(), &Others)
}

/// The plan when these interfaces are attached already.
fn next_plan(snapshot: &Snapshot, text: &str, attached: &[(u32, SelectedBy)]) -> Plan {
    let attached = attached.iter().copied().collect();
    snapshot.plan(&settings(text), &features(), &attached, &Others)
}

fn engines(plan: &Plan) -> Vec<(&str, &str, &str)> {
    plan.attach
        .values()
        .map(|p| (p.interface.name.as_str(), p.engine.name(), p.hook))
        .collect()
}

fn names(plan: &Plan) -> Vec<&str> {
    engines(plan).into_iter().map(|(name, ..)| name).collect()
}

fn skipped(plan: &Plan) -> Vec<(&str, &str)> {
    plan.skip
        .iter()
        .map(|s| (s.name.as_str(), s.why.as_str()))
        .collect()
}

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
        ("lo", "socket", "cgroup"),
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
    let snapshot = snapshot([driver(2, "cilium0", "ena")]);
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
fn what_is_not_known_is_said_once() {
    let snapshot = snapshot([interface(2, "eth0"), interface(3, "eth1")]);
    let features = Features {
        tcx: None,
        ..features()
    };
    let settings = settings("--iface eth*,wg*");
    let plan = snapshot.plan(&settings, &features, &BTreeMap::new(), &Others);
    assert_eq!(plan.attach[&2].hook, "tcx or clsact");
    assert_eq!(plan.notes.len(), 2);
    assert!(plan.notes[0].starts_with("`wg*` matches no interface yet"));
    assert!(plan.notes[1].contains("tcx or clsact"));
}

#[test]
fn what_is_typed_wrong_is_refused() {
    let snapshot = snapshot([interface(1, "lo"), interface(2, "eth0")]);
    let check = |text: &str| {
        let words = ["portredir"].into_iter().chain(text.split_whitespace());
        let result = snapshot.check(
            &Cli::parse_from(words)
                .run
                .options
                .settings()
                .expect("settings"),
        );
        result.map_err(|error| error.to_string())
    };
    assert_eq!(check("--iface eth*,wg* 80:8080"), Ok(()));
    assert_eq!(check("--iface eth0,ppp9 80:8080"), Ok(()));
    assert_eq!(
        check("--engine socket --allow-loopback-target 80:8080"),
        Ok(())
    );
    for (text, expected) in [
        (
            "--engine socket 80:8080/both",
            "rule `80:8080/both` includes UDP, but --engine socket redirects only TCP",
        ),
        (
            "--allow-loopback-target 80:8080",
            "--allow-loopback-target requires --engine socket",
        ),
    ] {
        let error = check(text).expect_err(text);
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn the_firewall_has_to_let_in_what_it_sees() {
    let snapshot = snapshot([interface(2, "eth0")]);
    let open = |text| plan(&snapshot, text).firewall.open;
    assert_eq!(
        open("81:8080 53:5353/both"),
        ["5353/tcp", "5353/udp", "8080/tcp"]
    );
    assert_eq!(open("--engine socket 443:8080"), ["80/tcp", "443/tcp"]);
}

#[test]
fn attached_interfaces_are_kept_when_renamed() {
    let renamed = snapshot([interface(2, "lan0")]);
    let by_name = next_plan(&renamed, "--iface eth0", &[(2, SelectedBy::Name)]);
    assert_eq!(names(&by_name), ["lan0"]);
    assert_eq!(by_name.attach[&2].selected, SelectedBy::Name);
    // A pattern means interfaces by their names.
    let by_glob = next_plan(&renamed, "--iface eth*", &[(2, SelectedBy::Pattern)]);
    assert!(by_glob.attach.is_empty());
    let excluded = next_plan(&renamed, "--iface !lan0", &[(2, SelectedBy::Pattern)]);
    assert!(excluded.attach.is_empty());
    assert_eq!(names(&plan(&renamed, "--iface lan?")), ["lan0"]);
    // An interface that is down stays as well if it was selected by its exact name.
    let down = snapshot([Interface {
        is_up: false,
        ..interface(2, "eth0")
    }]);
    assert_eq!(names(&plan(&down, "--iface eth0")), ["eth0"]);
}

#[test]
fn a_table_for_people_and_an_object_for_programs() {
    let snapshot = snapshot([
        kind(3, "br0", "bridge"),
        port(kind(4, "veth0", "veth"), 3),
        Interface {
            link: Link::Ip,
            ..kind(5, "tun0", "tun")
        },
    ]);
    let plan = plan(&snapshot, "--engine xdp");
    assert_eq!(
        plan.to_string(),
        "\
INTERFACE  ENGINE  HOOK         WHY
br0        xdp     native       requested with --engine
veth0      -       -            port of bridge br0; br0 is used instead
tun0       xdp     unavailable  tun has no Ethernet header
firewall: allow 8080/tcp (INPUT sees the port after redirection)
"
    );
    let json = serde_json::to_value(plan.report()).expect("JSON");
    assert_eq!(json["schema"], 1);
    assert_eq!(json["engine"], "xdp");
    assert_eq!(json["rules"][0], "80:8080");
    let actions = [0, 1, 2].map(|i| json["interfaces"][i]["action"].as_str());
    assert_eq!(actions, [Some("attach"), Some("skip"), Some("refuse")]);
    assert_eq!(json["interfaces"][0]["hook"], "native");
    assert!(json["interfaces"][1]["engine"].is_null());
    assert_eq!(json["firewall"]["open"][0], "8080/tcp");
}
