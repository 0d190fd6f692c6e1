//! Devices above other devices: a packet crosses one hook on its way up.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

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
    // The bridge handles the port's packets, so a VLAN on the port is on its own.
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
    // A user who leaves the bridge out does not mean its ports.
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
        // The bridge rewrites late, which is better than not at all.
        ("br0,!veth*", vec!["br0"]),
        ("veth1", vec!["veth1"]),
        ("!br0", vec!["eth0", "br0.7"]),
    ] {
        let plan = plan(&snapshot, &format!("--iface {iface}"));
        assert_eq!(names(&plan), hooked, "{iface}");
    }
}

#[test]
fn a_port_that_goes_down_is_kept_for_its_bridge() {
    let bridge = Interface {
        is_tracked_bridge: true,
        ..kind(3, "br0", "bridge")
    };
    let down = Interface {
        is_up: false,
        ..port(kind(4, "veth0", "veth"), 3)
    };
    let snapshot = snapshot([bridge, down, port(kind(5, "veth1", "veth"), 3)]);
    let attached = [(4, SelectedBy::Pattern), (5, SelectedBy::Pattern)];
    let kept = next_plan(&snapshot, "--iface br0", &attached);
    assert_eq!(names(&kept), ["veth0", "veth1"]);
    assert!(!kept.attach[&4].is_egress_only);
    assert_eq!(names(&plan(&snapshot, "--iface br0")), ["veth1"]);
}

/// A step that adds a device, or makes one a port; the numbers choose the devices.
#[derive(Clone, Copy, Debug)]
enum Step {
    Nic,
    Upper(&'static str, usize),
    Master(&'static str, [usize; 3]),
    Vrf(usize),
}

fn step() -> impl Strategy<Value = Step> {
    (0..12_u8, any::<[u8; 3]>()).prop_map(|(kind, numbers)| {
        let [a, b, c] = numbers.map(usize::from);
        match kind {
            0 | 1 => Step::Nic,
            2..=4 => Step::Upper("vlan", a),
            5 => Step::Upper("macvlan", a),
            6 => Step::Upper("ipvlan", a),
            7..=9 => Step::Master("bridge", [a, b, c]),
            10 => Step::Master("bond", [a, b, c]),
            _ => Step::Vrf(a),
        }
    })
}

/// Devices as Linux lets them be stacked.
#[derive(Clone, Debug, Default)]
struct Stack(Snapshot);

impl Stack {
    fn of(steps: &[Step]) -> Self {
        let mut stack = Self::default();
        stack.add("eth", None, None);
        for step in steps {
            stack.step(*step);
        }
        stack
    }

    fn add(&mut self, name: &str, kind: Option<&str>, lower: Option<u32>) -> u32 {
        let index = u32::try_from(self.0.interfaces.len()).expect("few") + 2;
        let device = Interface {
            kind: kind.map(str::to_owned),
            lower,
            ..interface(index, &format!("{name}{index}"))
        };
        self.0.interfaces.insert(index, device);
        index
    }

    fn pick(&self, number: usize) -> &Interface {
        let all: Vec<_> = self.0.interfaces.values().collect();
        all[number % all.len()]
    }

    fn is_kind(device: &Interface, kinds: &[&str]) -> bool {
        kinds.contains(&device.kind.as_deref().unwrap_or_default())
    }

    fn uppers(&self, index: u32) -> impl Iterator<Item = &Interface> {
        let devices = self.0.interfaces.values();
        devices.filter(move |device| device.lower == Some(index))
    }

    /// Whether nothing has taken the packets of a device yet: its `rx_handler`.
    fn is_free(&self, device: &Interface) -> bool {
        let has_macvlan = |index| {
            self.uppers(index)
                .any(|upper| Self::is_kind(upper, &["macvlan", "ipvlan"]))
        };
        device.master.is_none() && !has_macvlan(device.index)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Nic => {
                self.add("eth", None, None);
            }
            Step::Upper(kind, number) => {
                let lower = self.pick(number).clone();
                let is_above_ip = Self::is_kind(&lower, &["vrf", "ipvlan"]);
                // The kernel puts a macvlan beside the one that it is told to put it on.
                let is_beside = kind != "vlan" && Self::is_kind(&lower, &["macvlan", "bridge"]);
                let others: Vec<_> = self.uppers(lower.index).collect();
                let is_other = |upper: &&Interface| {
                    kind != "vlan"
                        && Self::is_kind(upper, &["macvlan", "ipvlan"])
                        && upper.kind.as_deref() != Some(kind)
                };
                let is_port = kind != "vlan" && lower.master.is_some();
                if !(is_above_ip || is_beside || is_port || others.iter().any(is_other)) {
                    self.add(kind, Some(kind), Some(lower.index));
                }
            }
            Step::Master(kind, numbers) => {
                let not_in = ["vrf", "ipvlan", "bridge", kind];
                let ports = numbers.map(|number| self.pick(number).clone());
                let is_port =
                    |port: &Interface| self.is_free(port) && !Self::is_kind(port, &not_in);
                let ports: Vec<_> = ports.into_iter().filter(is_port).collect();
                let master = self.add(kind, Some(kind), None);
                for mut port in ports {
                    port.master = Some(master);
                    self.0.interfaces.insert(port.index, port);
                }
            }
            Step::Vrf(number) => {
                let mut port = self.pick(number).clone();
                if port.master.is_none() && !Self::is_kind(&port, &["vrf"]) {
                    port.master = Some(self.add("vrf", Some("vrf"), None));
                    self.0.interfaces.insert(port.index, port);
                }
            }
        }
    }

    /// Every way of a packet, from the device that receives it to the one that delivers.
    fn ways(&self) -> Vec<Vec<u32>> {
        self.ways_from(|device| !Self::is_kind(device, &["bridge", "bond", "vrf"]))
    }

    fn ways_from(&self, is_bottom: impl Fn(&Interface) -> bool) -> Vec<Vec<u32>> {
        let devices = self.0.interfaces.values();
        let bottoms = devices.filter(|device| device.lower.is_none() && is_bottom(device));
        let mut open: Vec<_> = bottoms.map(|device| vec![device.index]).collect();
        let mut ways = Vec::new();
        while let Some(way) = open.pop() {
            let last = &self.0.interfaces[way.last().expect("not empty")];
            let master = last
                .master
                .filter(|index| !Self::is_kind(&self.0.interfaces[index], &["vrf"]));
            let uppers = self.uppers(last.index).map(|upper| upper.index);
            open.extend(
                uppers
                    .chain(master)
                    .map(|next| [&way[..], &[next]].concat()),
            );
            if master.is_none() {
                ways.push(way);
            }
        }
        ways
    }

    fn tags(&self, way: &[u32]) -> usize {
        let is_vlan = |index: &&u32| Self::is_kind(&self.0.interfaces[*index], &["vlan"]);
        way.iter().filter(is_vlan).count()
    }

    /// The number of hooks of a plan that handle the packet of a way.
    fn hooks(&self, plan: &Plan, way: &[u32]) -> usize {
        let handles = |(place, index): &(usize, &u32)| {
            let planned = plan.attach.get(*index);
            // Frames with more tags pass as they are.
            planned.is_some_and(|planned| !planned.is_egress_only)
                && self.tags(&way[place + 1..]) <= 3
        };
        way.iter().enumerate().filter(handles).count()
    }

    /// Every way of a packet that leaves, from the last device to the first: out of the
    /// stack, also by a master whose ports are about to come, or to a sibling of a macvlan.
    fn exit_ways(&self) -> Vec<Vec<u32>> {
        let has_ports = |index| {
            let mut devices = self.0.interfaces.values();
            devices.any(|device| device.master == Some(index))
        };
        let ways = self.ways_from(|device| {
            let is_master = Self::is_kind(device, &["bridge", "bond"]);
            let hands_down = is_master && has_ports(device.index);
            !(hands_down || Self::is_kind(device, &["vrf"]))
        });
        let mut exits = ways.clone();
        for way in ways {
            let has_siblings =
                |index: &u32| Self::is_kind(&self.0.interfaces[index], &["macvlan", "ipvlan"]);
            let places = (0..way.len()).filter(|place| has_siblings(&way[*place]));
            exits.extend(places.map(|place| way[place..].to_vec()));
        }
        exits
    }

    /// The devices on a way out whose programs restore a reply.
    fn restoring(&self, plan: &Plan, way: &[u32]) -> Vec<u32> {
        let restores = |(place, index): &(usize, &u32)| {
            plan.attach.contains_key(*index) && self.tags(&way[place + 1..]) <= 3
        };
        let crossed = way.iter().enumerate().filter(restores);
        crossed.map(|(_, index)| *index).collect()
    }

    fn is_excluded(&self, names: &[String], index: u32) -> bool {
        names.contains(&format!("!{}", self.0.interfaces[&index].name))
    }
}

proptest! {
    #[test]
    fn every_packet_is_handled_once(steps in vec(step(), 0..16)) {
        let stack = Stack::of(&steps);
        let all = plan(&stack.0, "");
        for way in stack.ways() {
            let hooks = stack.hooks(&all, &way);
            prop_assert!(hooks <= 1, "{:?}: {}\n{}{:?}", way, hooks, all, stack);
            // Ports of one bridge may take off one tag or two, and what is above knows only
            // the bridge.
            if stack.tags(&way) <= 3 {
                prop_assert_eq!(hooks, 1, "{:?}\n{}{:?}", way, all, stack);
            }
        }
    }

    #[test]
    fn every_reply_is_restored_whatever_is_selected(
        steps in vec(step(), 0..14),
        chosen in vec(any::<u8>(), 1..4),
        excluded in vec(any::<u8>(), 0..3),
    ) {
        let stack = Stack::of(&steps);
        let name = |number: &u8| &stack.pick(usize::from(*number)).name;
        let chosen = chosen.iter().map(|number| name(number).clone());
        let excluded = excluded.iter().map(|number| format!("!{}", name(number)));
        let names: Vec<_> = chosen.chain(excluded).collect();
        let exits = stack.exit_ways();
        for text in ["all", &names.join(",")] {
            let some = plan(&stack.0, &format!("--iface {text}"));
            let is_redirecting = some.attach.values().any(|planned| !planned.is_egress_only);
            let mut crossed = Vec::new();
            for way in &exits {
                let is_left_alone = text != "all"
                    && way.iter().any(|index| stack.is_excluded(&names, *index));
                let restoring = stack.restoring(&some, way);
                if is_redirecting && !is_left_alone && stack.tags(way) <= 3 {
                    prop_assert!(!restoring.is_empty(), "{:?}\n{}{:?}", way, some, stack);
                }
                crossed.push(restoring);
            }
            // No program is there that no reply needs.
            for planned in some.attach.values().filter(|planned| planned.selected.is_none()) {
                let index = planned.interface.index;
                prop_assert!(text != "all" && is_redirecting && planned.is_egress_only);
                prop_assert!(!stack.is_excluded(&names, index));
                // One for siblings may be there for what is above, which leaves by a master;
                // and nobody counts on it where too many tags hide the ports from one below.
                let is_for_siblings =
                    planned.interface.has_own_egress() && planned.interface.master.is_some();
                let is_deep = |way: &Vec<u32>| way.contains(&index) && stack.tags(way) > 3;
                let is_needed = crossed.contains(&vec![index])
                    || is_for_siblings
                    || exits.iter().any(is_deep);
                prop_assert!(is_needed, "{}\n{}{:?}", index, some, stack);
            }
        }
    }

    #[test]
    fn no_packet_is_handled_twice_whatever_is_selected(
        steps in vec(step(), 0..12),
        chosen in vec(any::<u8>(), 1..5),
        is_exclusion in any::<bool>(),
    ) {
        let stack = Stack::of(&steps);
        let names: Vec<_> = chosen
            .iter()
            .map(|number| {
                let name = &stack.pick(usize::from(*number)).name;
                if is_exclusion { format!("!{name}") } else { name.clone() }
            })
            .collect();
        let some = plan(&stack.0, &format!("--iface {}", names.join(",")));
        for way in stack.ways() {
            let hooks = stack.hooks(&some, &way);
            prop_assert!(hooks <= 1, "{:?}: {}\n{}{:?}", way, hooks, some, stack);
            // A port that is named beside its master, or the master of that, gives way to it.
            let is_named = |index: &u32| {
                let device = &stack.0.interfaces[index];
                let mut masters =
                    std::iter::successors(device.master, |i| stack.0.interfaces[i].master);
                names.contains(&device.name) && masters.all(|i| way.contains(&i))
            };
            if stack.tags(&way) <= 3 && way.iter().any(is_named) {
                prop_assert_eq!(hooks, 1, "{:?}\n{}{:?}", way, some, stack);
            }
        }
    }
}

#[test]
fn a_second_storey_is_covered_by_the_first() {
    let bridged = |lower| {
        snapshot([
            driver(2, "eth0", "ice"),
            lower,
            kind(4, "br0", "bridge"),
            port(kind(5, "tap0", "tun"), 4),
        ])
    };
    let vlan = bridged(port(on(kind(3, "eth0.7", "vlan"), 2), 4));
    assert_eq!(names(&plan(&vlan, "")), ["eth0", "tap0"]);
    assert_eq!(names(&plan(&vlan, "--iface br0")), ["br0"]);
    assert_eq!(names(&plan(&vlan, "--iface eth0,br0")), ["eth0", "tap0"]);
    let reasons = [
        (
            "eth0.7",
            "vlan on eth0, where its packets are redirected first",
        ),
        (
            "br0",
            "bridge ports are used: packets of eth0.7 are redirected before br0 receives them",
        ),
    ];
    assert_eq!(skipped(&plan(&vlan, "")), reasons);

    let macvlan = plan(&bridged(port(on(kind(3, "mv0", "macvlan"), 2), 4)), "");
    assert_eq!(names(&macvlan), ["eth0", "mv0", "tap0"]);
    assert!(macvlan.attach[&3].is_egress_only);

    let deep = plan(
        &snapshot([
            interface(2, "eth0"),
            on(kind(3, "outer", "vlan"), 2),
            on(kind(4, "inner", "vlan"), 3),
            on(kind(5, "third", "vlan"), 4),
            on(kind(6, "fourth", "vlan"), 5),
        ]),
        "",
    );
    // Nobody reads the ports of a frame with four tags.
    assert_eq!(names(&deep), ["eth0", "fourth"]);
    let inner = skipped(&deep)[1];
    assert_eq!(
        inner,
        (
            "inner",
            "vlan on outer; its packets are redirected first on eth0"
        )
    );
}
