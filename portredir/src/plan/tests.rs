mod dead;
mod engine;
mod ipsec;
mod replies;
mod stacks;

use clap::Parser as _;
use portredir_common::wire::frame::Link;

use super::*;
use crate::cli::Cli;
use crate::sys::netdev::XdpFeatures;

fn interface(index: u32, name: &str) -> Interface {
    Interface {
        name: name.into(),
        is_up: true,
        mtu: 1500,
        ..Interface::new(index, Link::Ethernet)
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

/// The plan when these interfaces are attached already, in both directions.
fn next_plan(snapshot: &Snapshot, text: &str, attached: &[(u32, SelectedBy)]) -> Plan {
    let attached = attached.iter().map(|&(index, selected)| {
        let attached = Attached {
            selected,
            is_egress_only: false,
        };
        (index, attached)
    });
    snapshot.plan(&settings(text), &features(), &attached.collect(), &Others)
}

fn engines(plan: &Plan) -> Vec<(&str, &str, &str)> {
    plan.attach
        .values()
        .map(|p| (p.interface.name.as_str(), p.engine.name(), p.hook))
        .collect()
}

/// The selected interfaces that get programs.
fn names(plan: &Plan) -> Vec<&str> {
    let planned = plan.attach.values();
    let selected = planned.filter(|planned| planned.selected.is_some());
    let names = selected.map(|planned| planned.interface.name.as_str());
    names.collect()
}

/// The interfaces that get programs for replies though nobody selected them.
fn exits(plan: &Plan) -> Vec<&str> {
    let planned = plan.attach.values();
    let unselected = planned.filter(|planned| planned.selected.is_none());
    let names = unselected.map(|planned| {
        assert!(planned.is_egress_only, "{planned}");
        planned.interface.name.as_str()
    });
    names.collect()
}

fn skipped(plan: &Plan) -> Vec<(&str, &str)> {
    plan.skip
        .iter()
        .map(|s| (s.name.as_str(), s.why.as_str()))
        .collect()
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
    assert_eq!(by_name.attach[&2].selected, Some(SelectedBy::Name));
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
