//! The interfaces and addresses of a host, and random changes of them.

use std::net::IpAddr;

use crate::lab::process::note;
use crate::lab::{Family, Lab, add_addrs, link};
use crate::lifecycle::oracle::{Selection, are_bridges_tracked, links, name};
use crate::peer::conn::Proto;

/// A generator of numbers (splitmix64).
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("a small number")
    }
}

/// A veth pair: one end here, `cN` at the client.
#[derive(Default)]
struct Wire {
    /// The name of the end at the host, in whatever namespace it is; `None` if
    /// there is no wire.
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

/// The interfaces and addresses that can change, and their state at the moment.
pub struct World<'a> {
    pub lab: &'a Lab,
    pub random: Random,
    wires: [Wire; 5],
    bridges: [Bridge; 2],
    has_tun: [bool; 2],
    /// A second address that was taken away from a wire.
    pub lost: Option<(usize, IpAddr)>,
}

fn net_of_wire(wire: usize) -> u8 {
    10 + u8::try_from(wire).expect("few wires")
}

fn net_of_bridge(bridge: usize) -> u8 {
    20 + u8::try_from(bridge).expect("few bridges")
}

impl<'a> World<'a> {
    pub fn new(lab: &'a Lab, seed: u64) -> Self {
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
    pub fn change(&mut self) {
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
                (&self.lab.host, &name, (net, 1)),
                (&self.lab.client, &peer, (net, 2)),
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

    /// Adds neighbour entries for the second addresses at the client, which then
    /// keeps on sending to them when no host has them any more.
    fn know(&self, wire: usize) {
        let name = self.wires[wire].name.as_deref().expect("a wire");
        let links = links(&self.lab.host);
        let link = links.iter().find(|link| self::name(link) == name);
        let mac = link.expect(name)["address"].as_str().expect("a MAC");
        for family in Family::BOTH {
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
            // IPv6 addresses go when the link goes down.
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
            for (family, bits) in Family::BOTH.into_iter().zip([24, 64]) {
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
            // Without a fixed address it would change with the ports.
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

    pub fn tun_comes_or_goes(&mut self, number: usize) -> bool {
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
        let addr = Family::BOTH[family].addr(net_of_wire(wire), 9);
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
    pub fn is_used(&self, wire: usize, selection: Selection) -> bool {
        let has = self.here(wire).is_some_and(|name| (selection.has)(&name));
        has && self.wires[wire].is_up && self.wires[wire].bridge.is_none()
    }

    /// All addresses that the client reaches, and by which protocol to ask: the
    /// echo answers UDP from the first address of an interface.
    pub fn reachable(&self, selection: Selection) -> Vec<(IpAddr, Proto)> {
        let mut all = vec![(Family::V4.addr(1, 1), Proto::Udp)];
        let is_up = |wire: usize| self.here(wire).is_some() && self.wires[wire].is_up;
        for wire in (0..self.wires.len()).filter(|wire| is_up(*wire)) {
            let net = net_of_wire(wire);
            if !self.is_used(wire, selection) {
                continue;
            }
            for (family, has_extra) in Family::BOTH.into_iter().zip(self.wires[wire].extra) {
                // With two IPv6 addresses, the first may be either.
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
                all.extend(Family::BOTH.map(|family| (family.addr(net, 1), Proto::Udp)));
            }
        }
        all
    }

    /// Removes all that was added.
    pub fn clear(&mut self) {
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
