//! Interfaces and addresses that come, go and change, at random and many times:
//! within a second exactly the right ones carry our programs, and in the end
//! nothing has piled up.
//!
//! What is right is worked out here again, from what `ip` shows and the words
//! of the manual, not from what the program believes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::namespace::Namespace;
use crate::lab::process::{DEADLINE, note, slow, wait_for, wait_within};
use crate::lab::program::{Redirector, attached};
use crate::lab::{Family, Lab, add_addrs, link};
use crate::lifecycle::follow::{SOON, redirect_all, wait_for_loss};
use crate::peer::conn::{Conn, PROTOS, Proto, answers};
use crate::peer::echo::Echo;
use crate::{ANYWHERE, Cell, Tests};

/// Seeds the changes; by the clock when it is not set.
const SEED: &str = "PORTREDIR_TEST_SEED";

/// What `--iface` says, and what it means for an interface of this name.
#[derive(Clone, Copy)]
struct Selection {
    name: &'static str,
    arg: &'static str,
    /// All, but for exclusions: no port of a master then, used or not.
    is_all: bool,
    has: fn(&str) -> bool,
}

const ALL: Selection = Selection {
    name: "all",
    arg: "all",
    is_all: true,
    has: |_| true,
};

/// For runs of [`churn`] by TC.
const SELECTIONS: [Selection; 3] = [
    ALL,
    Selection {
        name: "glob",
        arg: "h*,br*,mv*",
        is_all: false,
        has: |name| {
            ["h", "br", "mv"]
                .iter()
                .any(|start| name.starts_with(start))
        },
    },
    Selection {
        name: "all_but",
        arg: "!ren*",
        is_all: true,
        has: |name| !name.starts_with("ren"),
    },
];

pub fn add(tests: &mut Tests) {
    for selection in SELECTIONS {
        let name = format!("tc/churn_{}", selection.name);
        let changes = if selection.name == "all" { 200 } else { 60 };
        tests.add(name, &[], move || churn("tc", selection, changes));
    }
    for engine in ["tc-clsact", "xdp-generic"] {
        let name = format!("{engine}/churn_all");
        tests.add(name, &[], move || churn(engine, ALL, 60));
    }
    for (name, test) in [
        ("port_before_start", port_before_start as fn(&Cell, bool)),
        ("port_comes_and_goes", port_comes_and_goes),
        ("bridge_comes_and_goes", bridge_comes_and_goes),
        ("port_and_bridge_named", port_and_bridge_named),
    ] {
        for (tracked, is_tracked) in [("", false), ("_tracked", true)] {
            for engine in ANYWHERE {
                let name = format!("{engine}/one_hook_{name}{tracked}");
                let cell = Cell {
                    engine,
                    is_offloaded: false,
                    family: Family::V4,
                };
                tests.add(name, &[], move || test(&cell, is_tracked));
            }
        }
    }
    for (name, test) in [
        ("one_hook_macvlan", macvlan as fn(&Cell)),
        ("there_and_back", there_and_back),
        ("same_index", same_index),
        ("messages_lost", messages_lost),
    ] {
        tests.add_for(&ANYWHERE, name, &[], test);
    }
}

/// The interfaces of a namespace, as `ip` shows them.
fn links(namespace: &Namespace) -> Vec<Value> {
    let shown = namespace.run(&["ip", "-json", "-details", "link", "show"]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    shown.as_array().expect("a list").clone()
}

/// The interfaces that have to carry our programs: those that are up, but no
/// port of a bridge that is used itself; a macvlan on one that is only for what
/// goes out. Where connection tracking sees packets at the ports, those are used,
/// also when only the bridge was asked for; the bridge itself when all are excluded.
fn expected(namespace: &Namespace, selection: Selection) -> BTreeSet<String> {
    let links = links(namespace);
    let by_name = |name: &Value| links.iter().find(|link| link["ifname"] == *name);
    let is_up = |link: &Value| {
        let flags = link["flags"].as_array().expect("flags");
        flags.iter().any(|flag| flag == "UP")
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
    used.map(|link| match is_above(link) {
        true => format!("{} egress", name(link)),
        false => name(link).to_owned(),
    })
    .collect()
}

/// The switches of `br_netfilter`.
const BRIDGE_NF: [&str; 2] = [
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
];

fn are_bridges_tracked(namespace: &Namespace) -> bool {
    let is_on = |path| fs::read_to_string(path).is_ok_and(|value| value.trim() == "1");
    namespace.enter(|| BRIDGE_NF.into_iter().any(is_on))
}

/// Switches `br_netfilter`, where there is one; new
/// namespaces have it on.
fn set_tracked(namespace: &Namespace, is_tracked: bool) {
    let value = u8::from(is_tracked).to_string();
    namespace.enter(|| {
        for path in BRIDGE_NF {
            let _ = fs::write(path, &value);
        }
    });
}

fn name(link: &Value) -> &str {
    link["ifname"].as_str().expect("a name")
}

/// The interfaces that carry our programs, one for each direction.
fn carriers(namespace: &Namespace, engine: &str) -> BTreeSet<String> {
    let all = if engine == "tc" && namespace.enter(has_tcx) {
        namespace.enter(tcx)
    } else {
        let all = attached(namespace);
        let is_ours = |line: &&String| line.contains(" portredir_");
        all.into_iter().filter(|line| is_ours(&line)).collect()
    };
    let mut hooks = BTreeMap::<String, Vec<&str>>::new();
    for line in &all {
        let mut words = line.split(' ');
        let name = words.next().expect("a name").to_owned();
        hooks.entry(name).or_default().extend(words.next());
    }
    // In between there may be one alone.
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

fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// As [`attached`], of TCX alone, but without starting programs.
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
fn wait_for_carriers(lab: &Lab, engine: &str, selection: Selection) {
    let mut expected = expected(&lab.host, selection);
    if engine.starts_with("xdp") {
        // Its connections are handed over, not rewritten.
        expected.remove("lo");
    }
    let mut last = BTreeSet::new();
    let start = Instant::now();
    loop {
        let is_over = start.elapsed() > SOON;
        last.clone_from(&carriers(&lab.host, engine));
        if last == expected {
            return;
        }
        assert!(!is_over, "programs on {last:?}, not on {expected:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A generator of numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("a small number")
    }
}

/// A veth pair: one end here, `cN` at the client.
#[derive(Default)]
struct Wire {
    /// As its end here is called, wherever it is; without a name there is none.
    name: Option<String>,
    /// In another namespace.
    is_away: bool,
    is_up: bool,
    bridge: Option<usize>,
    has_macvlan: bool,
    /// A second address, of IPv4 and of IPv6.
    extra: [bool; 2],
}

#[derive(Default)]
struct Bridge {
    exists: bool,
    is_up: bool,
    /// The wire whose other end has an address in the net of the bridge.
    member: Option<usize>,
}

/// What there is to change, and how it is at the moment.
struct World<'a> {
    lab: &'a Lab,
    random: Random,
    wires: [Wire; 5],
    bridges: [Bridge; 2],
    has_tun: [bool; 2],
    /// A second address that was taken away from a wire.
    lost: Option<(usize, IpAddr)>,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn net_of_wire(wire: usize) -> u8 {
    10 + u8::try_from(wire).expect("few wires")
}

fn net_of_bridge(bridge: usize) -> u8 {
    20 + u8::try_from(bridge).expect("few bridges")
}

impl<'a> World<'a> {
    fn new(lab: &'a Lab, seed: u64) -> Self {
        Self {
            lab,
            random: Random(seed),
            wires: Default::default(),
            bridges: Default::default(),
            has_tun: [false; 2],
            lost: None,
        }
    }

    fn host(&self, batch: &str) {
        note(&format!("  host: {}", batch.replace('\n', "; ")));
        self.lab.host.ip(batch);
    }

    fn client(&self, batch: &str) {
        self.lab.client.ip(batch);
    }

    /// Changes something.
    fn change(&mut self) {
        loop {
            let wire = self.random.below(self.wires.len());
            let bridge = self.random.below(self.bridges.len());
            let is_done = match self.random.below(16) {
                0..=2 => self.add_or_remove(wire),
                3 | 4 => self.rename(wire),
                5 | 6 => self.up_or_down(wire),
                7 | 8 => self.enslave_or_release(wire, bridge),
                9 => self.bridge_comes_or_goes(bridge),
                10 => self.bridge_up_or_down(bridge),
                11 => self.macvlan_comes_or_goes(wire),
                12 => self.tun_comes_or_goes(bridge),
                13 => self.leave_or_return(wire),
                _ => self.addr_comes_or_goes(wire),
            };
            if is_done {
                return;
            }
        }
    }

    fn add_or_remove(&mut self, wire: usize) -> bool {
        let net = net_of_wire(wire);
        let Some(name) = self.wires[wire].name.clone() else {
            let (name, peer) = (format!("h{}", wire + 1), format!("c{}", wire + 1));
            if self.is_taken(&name) {
                return false;
            }
            note(&format!("  host: a new {name}"));
            link(
                &self.lab.host,
                &name,
                (net, 1),
                &self.lab.client,
                &peer,
                (net, 2),
            );
            self.wires[wire] = Wire {
                name: Some(name),
                is_up: true,
                ..Wire::default()
            };
            self.know(wire);
            return true;
        };
        if self.wires[wire].is_away {
            return false;
        }
        self.leave_bridge(wire);
        self.host(&format!("link del {name}"));
        self.wires[wire] = Wire::default();
        true
    }

    /// The client need not ask for the second addresses, and keeps on sending
    /// there when nobody has them any more.
    fn know(&self, wire: usize) {
        let name = self.wires[wire].name.as_deref().expect("a wire");
        let links = links(&self.lab.host);
        let link = links.iter().find(|link| self::name(link) == name);
        let mac = link.expect(name)["address"].as_str().expect("a MAC");
        for family in FAMILIES {
            let addr = family.addr(net_of_wire(wire), 9);
            let peer = wire + 1;
            self.client(&format!("neigh replace {addr} lladdr {mac} dev c{peer}"));
        }
    }

    fn is_taken(&self, name: &str) -> bool {
        let mut names = self.wires.iter().filter_map(|wire| wire.name.as_deref());
        names.any(|other| other == name)
    }

    /// To a name that another one may have had before.
    fn rename(&mut self, wire: usize) -> bool {
        let new = match self.random.below(4) {
            0 => format!("h{}", wire + 1),
            number => format!("ren{number}"),
        };
        let old = match &self.wires[wire] {
            Wire {
                name: Some(name),
                is_away: false,
                ..
            } if !self.is_taken(&new) => name.clone(),
            _ => return false,
        };
        note(&format!("  host: {old} is now {new}"));
        let rename = ["ip", "link", "set", &old, "name", &new];
        if !self.lab.host.succeeds(&rename) {
            // Kernels before 6.2 do not rename what is up.
            return false;
        }
        self.wires[wire].name = Some(new);
        true
    }

    /// A wire that is here.
    fn here(&self, wire: usize) -> Option<String> {
        let Wire { name, is_away, .. } = &self.wires[wire];
        name.clone().filter(|_| !is_away)
    }

    fn up_or_down(&mut self, wire: usize) -> bool {
        let Some(name) = self.here(wire) else {
            return false;
        };
        if self.wires[wire].is_up {
            self.host(&format!("link set {name} down"));
            self.wires[wire].is_up = false;
            // They go with the link.
            self.wires[wire].extra[1] = false;
        } else {
            self.host(&format!("link set {name} up"));
            self.wires[wire].is_up = true;
            self.put_addrs(wire);
        }
        true
    }

    fn put_addrs(&self, wire: usize) {
        let (Some(name), None) = (self.here(wire), self.wires[wire].bridge) else {
            return;
        };
        let net = net_of_wire(wire);
        let (v4, v6) = (Family::V4.addr(net, 1), Family::V6.addr(net, 1));
        self.host(&format!(
            "addr replace {v4}/24 brd + dev {name}\naddr replace {v6}/64 dev {name} nodad"
        ));
    }

    fn enslave_or_release(&mut self, wire: usize, bridge: usize) -> bool {
        let Some(name) = self.here(wire) else {
            return false;
        };
        if self.wires[wire].bridge.is_some() {
            self.host(&format!("link set {name} nomaster"));
            self.leave_bridge(wire);
            if self.wires[wire].is_up {
                self.put_addrs(wire);
            }
            return true;
        }
        if !self.bridges[bridge].exists || self.wires[wire].has_macvlan {
            return false;
        }
        self.host(&format!(
            "addr flush dev {name}\nlink set {name} master br{bridge}"
        ));
        self.wires[wire].bridge = Some(bridge);
        self.wires[wire].extra = [false; 2];
        if self.bridges[bridge].member.is_none() {
            let net = net_of_bridge(bridge);
            add_addrs(&self.lab.client, &format!("c{}", wire + 1), (net, 2));
            self.bridges[bridge].member = Some(wire);
        }
        true
    }

    /// At the client; here it is done already, or about to be.
    fn leave_bridge(&mut self, wire: usize) {
        let Some(bridge) = self.wires[wire].bridge.take() else {
            return;
        };
        if self.bridges[bridge].member == Some(wire) {
            self.bridges[bridge].member = None;
            let peer = wire + 1;
            for (family, bits) in FAMILIES.into_iter().zip([24, 64]) {
                let addr = family.addr(net_of_bridge(bridge), 2);
                self.client(&format!("addr del {addr}/{bits} dev c{peer}"));
            }
        }
    }

    fn bridge_comes_or_goes(&mut self, bridge: usize) -> bool {
        if self.bridges[bridge].exists {
            self.host(&format!("link del br{bridge}"));
            for wire in 0..self.wires.len() {
                if self.wires[wire].bridge == Some(bridge) {
                    self.leave_bridge(wire);
                    if self.wires[wire].is_up {
                        self.put_addrs(wire);
                    }
                }
            }
            self.bridges[bridge] = Bridge::default();
        } else {
            // Else it would change with its ports.
            let mac = format!("02:00:00:00:02:0{bridge}");
            self.host(&format!("link add br{bridge} address {mac} type bridge"));
            self.bridges[bridge].exists = true;
            self.bridge_up_or_down(bridge);
        }
        true
    }

    fn bridge_up_or_down(&mut self, bridge: usize) -> bool {
        if !self.bridges[bridge].exists {
            return false;
        }
        let is_up = !self.bridges[bridge].is_up;
        self.bridges[bridge].is_up = is_up;
        if is_up {
            let net = net_of_bridge(bridge);
            let (v4, v6) = (Family::V4.addr(net, 1), Family::V6.addr(net, 1));
            self.host(&format!(
                "link set br{bridge} up\n\
                 addr replace {v4}/24 brd + dev br{bridge}\n\
                 addr replace {v6}/64 dev br{bridge} nodad"
            ));
        } else {
            self.host(&format!("link set br{bridge} down"));
        }
        true
    }

    fn macvlan_comes_or_goes(&mut self, wire: usize) -> bool {
        let Some(name) = self.here(wire) else {
            return false;
        };
        if self.wires[wire].bridge.is_some() || !self.wires[wire].is_up {
            return false;
        }
        if self.wires[wire].has_macvlan {
            self.host(&format!("link del mv{wire}"));
            self.wires[wire].has_macvlan = false;
            return true;
        }
        let addr = Family::V4.addr(net_of_wire(wire), 3);
        let mac = format!("02:00:00:00:01:0{wire}");
        self.host(&format!(
            "link add link {name} name mv{wire} address {mac} type macvlan mode bridge\n\
             link set mv{wire} up\n\
             addr add {addr}/32 dev mv{wire}"
        ));
        self.wires[wire].has_macvlan = true;
        true
    }

    fn tun_comes_or_goes(&mut self, number: usize) -> bool {
        if !std::path::Path::new("/dev/net/tun").exists() {
            return false;
        }
        if self.has_tun[number] {
            self.host(&format!("tuntap del mode tun name tun{number}"));
        } else {
            self.host(&format!(
                "tuntap add mode tun name tun{number}\nlink set tun{number} up"
            ));
        }
        self.has_tun[number] = !self.has_tun[number];
        true
    }

    fn leave_or_return(&mut self, wire: usize) -> bool {
        let Some(name) = self.wires[wire].name.clone() else {
            return false;
        };
        if self.wires[wire].has_macvlan {
            return false;
        }
        let [here, there] = [&self.lab.host, self.lab.far()].map(|at| at.name.clone());
        if self.wires[wire].is_away {
            note(&format!("  host: {name} is back"));
            let back = format!("link set {name} netns {here}");
            self.lab.far().ip(&back);
            self.wires[wire].is_away = false;
            self.wires[wire].is_up = true;
            self.host(&format!("link set {name} up"));
            self.put_addrs(wire);
        } else {
            self.leave_bridge(wire);
            self.host(&format!("link set {name} netns {there}"));
            self.wires[wire].is_away = true;
            self.wires[wire].is_up = false;
            self.wires[wire].extra = [false; 2];
        }
        true
    }

    fn addr_comes_or_goes(&mut self, wire: usize) -> bool {
        let Some(name) = self.here(wire) else {
            return false;
        };
        let at = &self.wires[wire];
        if at.bridge.is_some() || !at.is_up {
            return false;
        }
        let family = self.random.below(2);
        let bits = [24, 64][family];
        let addr = FAMILIES[family].addr(net_of_wire(wire), 9);
        if at.extra[family] {
            self.host(&format!("addr del {addr}/{bits} dev {name}"));
            self.lost = Some((wire, addr));
        } else {
            self.host(&format!("addr add {addr}/{bits} dev {name} nodad"));
            self.lost.take_if(|lost| *lost == (wire, addr));
        }
        self.wires[wire].extra[family] ^= true;
        true
    }

    /// Whether what comes by a wire is redirected there.
    fn is_used(&self, wire: usize, selection: Selection) -> bool {
        let has = self.here(wire).is_some_and(|name| (selection.has)(&name));
        has && self.wires[wire].is_up && self.wires[wire].bridge.is_none()
    }

    /// All addresses that the client reaches, and by which protocol to ask: the
    /// echo answers UDP from the first address of an interface.
    fn reachable(&self, selection: Selection) -> Vec<(IpAddr, Proto)> {
        let mut all = vec![(Family::V4.addr(1, 1), Proto::Udp)];
        let is_up = |wire: usize| self.here(wire).is_some() && self.wires[wire].is_up;
        for wire in (0..self.wires.len()).filter(|wire| is_up(*wire)) {
            let net = net_of_wire(wire);
            if !self.is_used(wire, selection) {
                continue;
            }
            for (family, has_extra) in FAMILIES.into_iter().zip(self.wires[wire].extra) {
                // Of two IPv6 addresses, that may be either.
                let is_first = family == Family::V4 || !has_extra;
                let proto = if is_first { Proto::Udp } else { Proto::Tcp };
                all.push((family.addr(net, 1), proto));
                all.extend(has_extra.then(|| (family.addr(net, 9), Proto::Tcp)));
            }
            if self.wires[wire].has_macvlan {
                all.push((Family::V4.addr(net, 3), Proto::Tcp));
            }
        }
        for (number, bridge) in self.bridges.iter().enumerate() {
            let has = |wire| self.here(wire).is_some_and(|name| (selection.has)(&name));
            let has = |wire| !are_bridges_tracked(&self.lab.host) || has(wire);
            if bridge.is_up && bridge.member.is_some_and(|wire| is_up(wire) && has(wire)) {
                let net = net_of_bridge(number);
                all.extend(FAMILIES.map(|family| (family.addr(net, 1), Proto::Udp)));
            }
        }
        all
    }

    /// Removes all that was added.
    fn clear(&mut self) {
        for wire in 0..self.wires.len() {
            if self.wires[wire].is_away {
                self.leave_or_return(wire);
            }
            if self.wires[wire].name.is_some() {
                self.add_or_remove(wire);
            }
        }
        for bridge in 0..self.bridges.len() {
            if self.bridges[bridge].exists {
                self.bridge_comes_or_goes(bridge);
            }
            if self.has_tun[bridge] {
                self.tun_comes_or_goes(bridge);
            }
        }
    }
}

fn churn(engine: &'static str, selection: Selection, changes: usize) {
    // As long as this many changes may take.
    DEADLINE.set(Some(Instant::now() + slow(Duration::from_secs(180))));
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).expect("a clock");
        u64::from(since.subsec_nanos())
    });
    note(&format!("the same again: {SEED}={seed}"));
    let cell = Cell {
        engine,
        is_offloaded: true,
        family: Family::V4,
    };
    let mut lab = Lab::new(&cell);
    lab.far = Some(lab.third());
    set_tracked(&lab.host, seed % 2 == 1);
    let _server = Echo::start(&lab.host, 7778);
    let args = ["--iface", selection.arg, "--engine", engine];
    let args = [&args[..], &["7777:7778/both"]].concat();
    let redirector = Redirector::start(&lab.host, &args);
    wait_for_carriers(&lab, engine, selection);
    let before = attached(&lab.host);
    let mut world = World::new(&lab, seed);
    // Programs for interfaces without an Ethernet header are loaded when needed.
    if world.tun_comes_or_goes(0) {
        wait_for_carriers(&lab, engine, selection);
        world.tun_comes_or_goes(0);
        wait_for_carriers(&lab, engine, selection);
    }
    // Not while it looks at what has changed.
    redirector.fresh_report();
    let open_files = redirector.open_files();
    let mut memory = 0;
    for number in 0..changes {
        if number == changes / 5 {
            memory = redirector.memory_kib();
        }
        note(&format!("change {number}"));
        for _ in 0..=world.random.below(6) / 4 {
            world.change();
        }
        let start = Instant::now();
        wait_for_carriers(&lab, engine, selection);
        if let Some((wire, lost)) = world.lost.take()
            && world.is_used(wire, selection)
        {
            wait_for_loss(&lab, &redirector, lost);
            continue;
        }
        let reachable = world.reachable(selection);
        let (addr, proto) = reachable[world.random.below(reachable.len())];
        let to = SocketAddr::new(addr, 7777);
        let rest = SOON.saturating_sub(start.elapsed());
        wait_within(rest, &format!("a redirect of {to} by {proto:?}"), || {
            answers(&lab.client, proto, to).then_some(())
        });
    }
    world.clear();
    wait_for_carriers(&lab, engine, selection);
    assert_eq!(attached(&lab.host), before);
    let start = Instant::now();
    while start.elapsed() < SOON && redirector.open_files() != open_files {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(redirector.open_files(), open_files);
    let grown = redirector.memory_kib().saturating_sub(memory);
    assert!(
        grown < 4096,
        "memory grew by {grown} KiB since {memory} KiB"
    );
    let report = redirector.fresh_report();
    let shown = report["interfaces"].as_array().expect("interfaces");
    let mut shown: BTreeSet<_> = shown
        .iter()
        .map(|one| one["name"].as_str().expect("a name").to_owned())
        .collect();
    let carriers = carriers(&lab.host, engine);
    shown.retain(|name| name != "lo" || carriers.contains("lo"));
    assert_eq!(shown, carriers);
    let objects = redirector.kernel_objects();
    assert!(!objects.is_empty());
    redirector.finish(&lab);
    assert_eq!(attached(&lab.host), [""; 0]);
    wait_for("the kernel to free programs, maps and links", || {
        objects.iter().all(|object| !object.exists()).then_some(())
    });
}

/// A packet for port 80 reaches 8080, one for 8080 reaches 9090, and none goes
/// both ways, however many hooks it might cross.
const CHAINED: [&str; 2] = ["80:8080/both", "8080:9090/both"];

/// The servers of [`CHAINED`].
struct Chain([Echo; 2]);

impl Chain {
    fn new(lab: &Lab) -> Self {
        Self([8080, 9090].map(|port| Echo::start(&lab.host, port)))
    }

    /// Waits until all is attached, and looks where packets for an address go.
    fn check(&self, lab: &Lab, engine: &str, selection: Selection, addr: (u8, u8)) {
        wait_for_carriers(lab, engine, selection);
        for family in FAMILIES {
            let addr = family.addr(addr.0, addr.1);
            // The address may be new as well.
            for port in [80, 8080] {
                let to = SocketAddr::new(addr, port);
                wait_within(SOON, &format!("a way to {to}"), || {
                    answers(&lab.client, Proto::Udp, to).then_some(())
                });
            }
            for proto in PROTOS {
                for (port, server) in [80, 8080].into_iter().zip(&self.0) {
                    let to = SocketAddr::new(addr, port);
                    let message = format!("{proto:?} {to} {:?}", Instant::now());
                    Conn::to(&lab.client, proto, 0, to).echo(message.as_bytes());
                    server.peer(proto, message.as_bytes());
                }
            }
        }
    }
}

/// With `--iface all` or some names.
fn chained(cell: &Cell, lab: &Lab, selection: Selection) -> Redirector {
    let mut args = vec!["--iface", selection.arg, "--engine", cell.engine];
    args.extend(CHAINED);
    Redirector::start(&lab.host, &args)
}

/// Makes the wire a port of a bridge, which takes its addresses.
const ENSLAVE: &str = "link add br0 address 02:00:00:00:02:00 type bridge\n\
    addr flush dev h0\n\
    link set h0 master br0";

fn enslave(lab: &Lab) {
    lab.host.ip(ENSLAVE);
    add_addrs(&lab.host, "br0", (1, 1));
    forget_neighbours(lab);
}

/// The address has moved to another MAC.
fn forget_neighbours(lab: &Lab) {
    lab.client.run(&["ip", "neigh", "flush", "dev", "c0"]);
}

fn port_before_start(cell: &Cell, is_tracked: bool) {
    let lab = Lab::new(cell);
    set_tracked(&lab.host, is_tracked);
    let chain = Chain::new(&lab);
    enslave(&lab);
    let redirector = chained(cell, &lab, ALL);
    chain.check(&lab, cell.engine, ALL, (1, 1));
    redirector.finish(&lab);
}

fn port_comes_and_goes(cell: &Cell, is_tracked: bool) {
    let lab = Lab::new(cell);
    set_tracked(&lab.host, is_tracked);
    let chain = Chain::new(&lab);
    let redirector = chained(cell, &lab, ALL);
    chain.check(&lab, cell.engine, ALL, (1, 1));
    for _ in 0..2 {
        enslave(&lab);
        chain.check(&lab, cell.engine, ALL, (1, 1));
        lab.host.ip("link set h0 nomaster\nlink del br0");
        add_addrs(&lab.host, "h0", (1, 1));
        forget_neighbours(&lab);
        chain.check(&lab, cell.engine, ALL, (1, 1));
    }
    redirector.finish(&lab);
}

/// The port is there first, with programs, when its bridge comes up.
fn bridge_comes_and_goes(cell: &Cell, is_tracked: bool) {
    let lab = Lab::new(cell);
    set_tracked(&lab.host, is_tracked);
    let chain = Chain::new(&lab);
    enslave(&lab);
    lab.host.ip("link set br0 down");
    let redirector = chained(cell, &lab, ALL);
    for _ in 0..2 {
        add_addrs_again(&lab);
        chain.check(&lab, cell.engine, ALL, (1, 1));
        lab.host.ip("link set br0 down");
        wait_for_carriers(&lab, cell.engine, ALL);
    }
    redirector.finish(&lab);
}

/// IPv6 addresses go when the interface goes down.
fn add_addrs_again(lab: &Lab) {
    let addr = Family::V6.addr(1, 1);
    lab.host.ip(&format!(
        "link set br0 up\naddr replace {addr}/64 dev br0 nodad"
    ));
}

fn port_and_bridge_named(cell: &Cell, is_tracked: bool) {
    let lab = Lab::new(cell);
    set_tracked(&lab.host, is_tracked);
    let chain = Chain::new(&lab);
    enslave(&lab);
    let named = Selection {
        name: "named",
        arg: "h0,br0",
        is_all: false,
        has: |name| ["h0", "br0"].contains(&name),
    };
    let redirector = chained(cell, &lab, named);
    chain.check(&lab, cell.engine, named, (1, 1));
    redirector.finish(&lab);
}

/// A macvlan and the interface below it, in every order.
fn macvlan(cell: &Cell) {
    let lab = Lab::new(cell);
    let chain = Chain::new(&lab);
    let add = "link add link h0 name mv0 address 02:00:00:00:01:00 type macvlan mode bridge";
    let is_there = |is_there: bool| {
        if is_there {
            lab.host.ip(add);
            lab.host.sysctl("ipv4/conf/all/rp_filter", "0");
            // No second route to the net of the client.
            let (v4, v6) = (Family::V4.addr(1, 3), Family::V6.addr(1, 3));
            lab.host.ip(&format!(
                "link set mv0 up\naddr add {v4}/32 dev mv0\naddr add {v6}/128 dev mv0 nodad"
            ));
        } else {
            lab.host.ip("link del mv0");
        }
    };
    let check = || {
        chain.check(&lab, cell.engine, ALL, (1, 1));
        check_tcp(&lab, &chain, (1, 3));
    };
    is_there(true);
    let redirector = chained(cell, &lab, ALL);
    check();
    is_there(false);
    wait_for_carriers(&lab, cell.engine, ALL);
    is_there(true);
    check();
    redirector.finish(&lab);
}

/// By TCP alone: the echo answers UDP from the first address.
fn check_tcp(lab: &Lab, chain: &Chain, (net, host): (u8, u8)) {
    for family in FAMILIES {
        for (port, server) in [80, 8080].into_iter().zip(&chain.0) {
            let to = SocketAddr::new(family.addr(net, host), port);
            wait_within(SOON, &format!("a way to {to}"), || {
                answers(&lab.client, Proto::Tcp, to).then_some(())
            });
            let message = format!("{to} {:?}", Instant::now());
            Conn::to(&lab.client, Proto::Tcp, 0, to).echo(message.as_bytes());
            server.peer(Proto::Tcp, message.as_bytes());
        }
    }
}

/// Away and back before anybody can have looked: the same interface, of the
/// same index, but what was attached to it may be gone.
fn there_and_back(cell: &Cell) {
    let mut lab = Lab::new(cell);
    lab.far = Some(lab.third());
    let _server = Echo::start(&lab.host, 7778);
    let redirector = redirect_all(cell, &lab);
    wait_for_carriers(&lab, cell.engine, ALL);
    for _ in 0..3 {
        let [here, there] = [&lab.host, lab.far()].map(|at| at.name.clone());
        lab.host.ip(&format!("link set h0 netns {there}"));
        lab.far().ip(&format!("link set h0 netns {here}"));
        add_addrs(&lab.host, "h0", (1, 1));
        wait_for_carriers(&lab, cell.engine, ALL);
        let to = Family::V4.host(7777);
        wait_within(SOON, "a redirect", || {
            answers(&lab.client, Proto::Udp, to).then_some(())
        });
    }
    redirector.finish(&lab);
}

/// Gone, and another one there with its index, before anybody can have looked.
fn same_index(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = Echo::start(&lab.host, 7778);
    let redirector = redirect_all(cell, &lab);
    wait_for_carriers(&lab, cell.engine, ALL);
    for name in ["h0", "h0", "other0"] {
        let old = if name == "other0" { "h0" } else { name };
        lab.host.ip(&format!("link del {old}"));
        link(&lab.host, name, (1, 1), &lab.client, "c0", (1, 2));
        wait_for_carriers(&lab, cell.engine, ALL);
        let to = Family::V4.host(7777);
        wait_within(SOON, "a redirect", || {
            answers(&lab.client, Proto::Udp, to).then_some(())
        });
    }
    redirector.finish(&lab);
}

/// More news than the kernel keeps for us.
fn messages_lost(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = Echo::start(&lab.host, 7778);
    let redirector = redirect_all(cell, &lab);
    wait_for_carriers(&lab, cell.engine, ALL);
    redirector.process.signal(Signal::SIGSTOP);
    let addrs = (0..2000).map(|number| format!("10.200.{}.{}/32", number / 250, number % 250));
    let (mut add, mut del) = (String::new(), String::new());
    for addr in addrs {
        add += &format!("addr add {addr} dev lo\n");
        del += &format!("addr del {addr} dev lo\n");
    }
    lab.host.ip(&add);
    lab.host.ip(&del);
    link(&lab.host, "h2", (3, 1), &lab.client, "c2", (3, 2));
    redirector.process.signal(Signal::SIGCONT);
    wait_for_carriers(&lab, cell.engine, ALL);
    for family in FAMILIES {
        let to = SocketAddr::new(family.addr(3, 1), 7777);
        wait_within(SOON, &format!("a redirect of {to}"), || {
            answers(&lab.client, Proto::Udp, to).then_some(())
        });
    }
    // It goes on to follow.
    lab.host.ip("link del h2");
    wait_for_carriers(&lab, cell.engine, ALL);
    redirector.finish(&lab);
}

/// A program, map or link of the kernel, by its ID.
enum KernelObject {
    Program(u32),
    Map(u32),
    Link(u32),
}

impl KernelObject {
    fn exists(&self) -> bool {
        match *self {
            Self::Program(id) => aya::programs::loaded_programs()
                .flatten()
                .any(|program| program.id() == id),
            Self::Map(id) => aya::maps::loaded_maps().flatten().any(|map| map.id() == id),
            Self::Link(id) => aya::programs::loaded_links()
                .flatten()
                .any(|link| link.id() == id),
        }
    }
}

impl Redirector {
    /// The files it has open but for programs, without the numbers that tell sockets apart.
    fn open_files(&self) -> BTreeMap<String, usize> {
        let dir = fs::read_dir(format!("/proc/{}/fd", self.process.id()));
        let names = dir.expect("its files").flatten();
        let targets = names.filter_map(|file| fs::read_link(file.path()).ok());
        let mut files = BTreeMap::new();
        for target in targets {
            let target = target.to_string_lossy().into_owned();
            let kind = target.split(":[").next().unwrap_or_default().to_owned();
            // Programs are loaded once, when first needed: that without frags
            // when an interface goes just as it is attached to.
            if kind != "anon_inode:bpf-prog" {
                *files.entry(kind).or_default() += 1;
            }
        }
        files
    }

    /// Memory that it takes.
    fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let line = line.and_then(|line| line.trim().strip_suffix(" kB"));
        line.and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// The kernel's objects that it holds.
    fn kernel_objects(&self) -> Vec<KernelObject> {
        let dir = fs::read_dir(format!("/proc/{}/fdinfo", self.process.id()));
        let mut objects = Vec::new();
        for file in dir.expect("its files").flatten() {
            let info = fs::read_to_string(file.path()).unwrap_or_default();
            let id = |key: &str| {
                let line = info.lines().find_map(|line| line.strip_prefix(key))?;
                line.trim().parse().ok()
            };
            // What a link is about is told as well, below it.
            let object = id("link_id:")
                .map(KernelObject::Link)
                .or_else(|| id("prog_id:").map(KernelObject::Program))
                .or_else(|| id("map_id:").map(KernelObject::Map));
            objects.extend(object);
        }
        objects
    }
}
