//! The interfaces that have to carry our programs, worked out from what `ip`
//! shows and from the manual, not from what the program believes; and those that
//! do carry them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType};
use serde_json::Value;

use crate::lab::Lab;
use crate::lab::namespace::Namespace;
use crate::lab::program::{attached, has_tcx};
use crate::lifecycle::follow::SOON;

/// An argument of `--iface`, and its meaning for the name of an interface.
#[derive(Clone, Copy)]
pub struct Selection {
    pub name: &'static str,
    pub arg: &'static str,
    /// All, but for exclusions: no port of a master then, used or not.
    pub is_all: bool,
    pub has: fn(&str) -> bool,
}

pub const ALL: Selection = Selection {
    name: "all",
    arg: "all",
    is_all: true,
    has: |_| true,
};

/// The interfaces of a namespace, as `ip` shows them.
pub fn links(namespace: &Namespace) -> Vec<Value> {
    let shown = namespace.run(&["ip", "-json", "-details", "link", "show"]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    shown.as_array().expect("a list").clone()
}

/// The interfaces that have to carry our programs: those that are up, but no
/// port of a bridge that is used itself; what went down keeps them; a macvlan on one that is only for what
/// goes out. Where connection tracking sees packets at the ports, those are used,
/// also when only the bridge was asked for; the bridge itself when all are excluded.
/// The interfaces that were not asked for carry them for replies, which may leave there.
fn expected(
    namespace: &Namespace,
    selection: Selection,
    carriers: &BTreeSet<String>,
) -> BTreeSet<String> {
    let links = links(namespace);
    let by_name = |name: &Value| links.iter().find(|link| link["ifname"] == *name);
    let is_up = |link: &Value| {
        let flags = link["flags"].as_array().expect("flags");
        let mut carriers = carriers
            .iter()
            .filter_map(|carrier| carrier.split(' ').next());
        flags.iter().any(|flag| flag == "UP") || carriers.any(|carrier| carrier == name(link))
    };
    let are_all_tracked = are_bridges_tracked(namespace);
    let is_tracked = |link: &Value| {
        let info = &link["linkinfo"];
        let flags = ["nf_call_iptables", "nf_call_ip6tables"];
        let is_set = flags.iter().any(|flag| info["info_data"][flag] == 1);
        info["info_kind"] == "bridge" && (are_all_tracked || is_set)
    };
    let is_meant = |link: &Value| is_up(link) && (selection.has)(name(link));
    let is_selected = |link: &Value| {
        let bridge = by_name(&link["master"]);
        let is_by_bridge = bridge.is_some_and(|bridge| is_meant(bridge) && is_tracked(bridge));
        is_meant(link) || (is_by_bridge && is_up(link) && !selection.is_all)
    };
    let is_by_ports = |link: &Value| {
        let is_port = |port: &&Value| port["master"] == link["ifname"] && is_up(port);
        let mut ports = links.iter().filter(is_port).peekable();
        is_tracked(link) && (ports.peek().is_none() || ports.any(is_selected))
    };
    let is_port = |link: &Value| match by_name(&link["master"]) {
        Some(master) if is_selected(master) => !is_tracked(master),
        Some(_) => selection.is_all,
        None => false,
    };
    let is_above = |link: &Value| {
        let is_macvlan = link["linkinfo"]["info_kind"] == "macvlan";
        let lower = by_name(&link["link"]).filter(|_| is_macvlan);
        lower.is_some_and(|lower| is_selected(lower) && !is_port(lower))
    };
    let used = links
        .iter()
        .filter(|link| is_selected(link) && !is_port(link))
        .filter(|link| !is_by_ports(link));
    let used = used.map(|link| match is_above(link) {
        true => format!("{} egress", name(link)),
        false => name(link).to_owned(),
    });
    let is_exit = |link: &&Value| {
        let is_elsewhere = name(link) == "lo" || by_name(&link["master"]).is_some();
        is_up(link) && !is_selected(link) && !is_elsewhere && !selection.is_all
    };
    let exits = links.iter().filter(is_exit);
    let exits = exits.map(|link| format!("{} egress", name(link)));
    used.chain(exits).collect()
}

/// The switches of `br_netfilter`.
const BRIDGE_NF: [&str; 2] = [
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
];

pub fn are_bridges_tracked(namespace: &Namespace) -> bool {
    let is_on = |path| fs::read_to_string(path).is_ok_and(|value| value.trim() == "1");
    namespace.enter(|| BRIDGE_NF.into_iter().any(is_on))
}

/// Whether netfilter's hooks for IP run for what crosses a bridge (`br_netfilter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeTracking {
    Off,
    On,
}

/// Switches `br_netfilter`, where there is one; new namespaces have it on.
pub fn set_bridge_tracking(namespace: &Namespace, tracking: BridgeTracking) {
    let value = u8::from(tracking == BridgeTracking::On).to_string();
    namespace.enter(|| {
        for path in BRIDGE_NF {
            let _ = fs::write(path, &value);
        }
    });
}

pub fn name(link: &Value) -> &str {
    link["ifname"].as_str().expect("a name")
}

/// The interfaces that carry our programs, one for each direction.
pub fn carriers(namespace: &Namespace, engine: &str) -> BTreeSet<String> {
    let all = if engine == "tc" && namespace.enter(has_tcx) {
        namespace.enter(tcx)
    } else {
        let all = attached(namespace);
        // The program on `lo` is one of the hooks for local clients.
        let is_ours =
            |line: &&String| line.contains(" portredir_") && !line.ends_with(" portredir_lo");
        all.into_iter().filter(|line| is_ours(&line)).collect()
    };
    let mut hooks = BTreeMap::<String, Vec<&str>>::new();
    for line in &all {
        let mut words = line.split(' ');
        let name = words.next().expect("a name").to_owned();
        hooks.entry(name).or_default().extend(words.next());
    }
    // Between two steps one hook may be attached alone.
    let is_whole = |hooks: &[&str]| hooks.len() == 2 && hooks[1].ends_with("egress");
    hooks
        .into_iter()
        .map(|(name, hooks)| match is_whole(&hooks) {
            true => name,
            false if hooks.len() == 1 && hooks[0].ends_with("egress") => format!("{name} egress"),
            false => format!("{name} {hooks:?}"),
        })
        .collect()
}

/// The TCX programs among [`attached`], read without starting other programs.
fn tcx() -> Vec<String> {
    let mut all = Vec::new();
    for interface in &nix::net::if_::if_nameindex().expect("interfaces") {
        let name = interface.name().to_str().expect("a name");
        for (hook, direction) in [
            ("ingress", TcAttachType::Ingress),
            ("egress", TcAttachType::Egress),
        ] {
            let (_, programs) = SchedClassifier::query_tcx(name, direction).expect("TCX");
            all.extend(programs.iter().map(|program| {
                let program = program.name_as_str().unwrap_or("?");
                format!("{name} {hook} {program}")
            }));
        }
    }
    all
}

/// Waits until exactly the right interfaces carry our programs.
pub fn wait_for_carriers(lab: &Lab, engine: &str, selection: Selection) {
    let mut last = BTreeSet::new();
    let start = Instant::now();
    loop {
        let is_over = start.elapsed() > SOON;
        last.clone_from(&carriers(&lab.host, engine));
        let mut expected = expected(&lab.host, selection, &last);
        if engine.starts_with("xdp") {
            // Local connections are redirected by the cgroup hooks, not on `lo`.
            expected.remove("lo");
        }
        if last == expected {
            return;
        }
        assert!(!is_over, "programs on {last:?}, not on {expected:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
