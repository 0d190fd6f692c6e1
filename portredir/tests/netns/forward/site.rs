//! The hosts of a forwarded flow, and what redirects on the one in the middle.
//!
//! ```text
//!   client c0 ---- switch ---- h0 host        Layout::Bridge: br0, with F and G on its ports
//!   O      o0 ------'                         Layout::Interfaces: h2 ---- F, h4 ---- G
//!                                 host h3 ---- r0 R r1 ---- z0 Z
//! ```
//!
//! Packets from R to Z have an MTU of 1300. O is in the client's segment.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::Signal;

use super::rules::{self, Rule};
use super::subject::{Layout, Place, Subject, Variant};
use crate::conformance::server::{Manner, Server};
use crate::conformance::site::Offload;
use crate::conformance::wire::{Wire, mac};
use crate::lab::namespace::Namespace;
use crate::lab::program::{PROGRAM, Redirector};
use crate::lab::{Family, Lab, add_addrs, link, wait_for_route};
use crate::path::paths::has_br_netfilter;

/// The number of an address in the client's segment that no host has.
pub const GHOST: u8 = 200;

/// Another one, of a router that reports errors.
pub const ROUTER: u8 = 230;

/// The first of the ports that are given to clients.
const FIRST_PORT: u16 = 20_000;

/// A server on the host itself, which answers when the host has dealt with all
/// packets before.
pub const SENTINEL: u16 = 7070;

/// The MTU of the way from R to Z.
pub const NARROW: u16 = 1300;

/// The hosts, their servers and what redirects.
pub struct Site {
    pub subject: Subject,
    pub variant: Variant,
    pub lab: Lab,
    switch: Namespace,
    pub f: Namespace,
    pub g: Namespace,
    pub o: Namespace,
    r: Namespace,
    z: Namespace,
    pub servers: Vec<Server>,
    redirector: Option<Redirector>,
    is_up: bool,
    next_port: AtomicU16,
    wires: Vec<(Place, Wire)>,
}

impl Site {
    /// The hosts and their servers; nothing redirects.
    pub fn idle(subject: Subject, variant: Variant) -> Self {
        let lab = Lab::unlinked();
        let [switch, f, g, o, r, z] = ["x", "f", "g", "o", "r", "z"].map(|name| lab.another(name));
        let mut site = Self {
            subject,
            variant,
            lab,
            switch,
            f,
            g,
            o,
            r,
            z,
            servers: Vec::new(),
            redirector: None,
            is_up: false,
            next_port: AtomicU16::new(FIRST_PORT),
            wires: Vec::new(),
        };
        site.set_forwarding();
        site.add_segment();
        site.add_inside();
        site.add_narrow();
        site.set_offload();
        site.add_ghosts();
        site.wait_for_ways();
        site.serve();
        let places = [Place::Client, Place::F, Place::G, Place::O, Place::Z];
        let open = |place| (place, Wire::open(site.at(place), Site::port_of(place)));
        site.wires = places.map(open).into();
        site
    }

    /// The client's segment.
    fn add_segment(&self) {
        let (host, switch) = (&self.lab.host, &self.switch);
        switch.ip("link add brx type bridge\nlink set brx up");
        for (port, at, name, number) in [
            ("xh", host, "h0", 1),
            ("xc", &self.lab.client, "c0", 2),
            ("xo", &self.o, "o0", 3),
        ] {
            link((switch, port, (9, number)), (at, name, (1, number)));
            switch.ip(&format!(
                "addr flush dev {port}\nlink set {port} master brx"
            ));
        }
        host.ip("addr add 10.9.1.11/24 dev h0\naddr add fd09:0:0:1::b/64 dev h0 nodad");
        for at in [&self.lab.client, &self.o] {
            default_route(at, 1);
        }
    }

    /// Forwarding, and no check of source addresses, before there are interfaces.
    fn set_forwarding(&self) {
        for at in [&self.lab.host, &self.r] {
            at.sysctl("ipv4/ip_forward", "1");
            at.sysctl("ipv6/conf/all/forwarding", "1");
            at.sysctl("ipv4/conf/all/rp_filter", "0");
            at.sysctl("ipv4/conf/default/rp_filter", "0");
        }
    }

    /// F and G.
    fn add_inside(&self) {
        let host = &self.lab.host;
        match self.variant.layout {
            Layout::Bridge(_) => {
                host.ip("link add br0 type bridge");
                for (port, number, at, name) in
                    [("port-f", 2, &self.f, "f0"), ("port-g", 3, &self.g, "g0")]
                {
                    link((host, port, (8, number)), (at, name, (2, number)));
                    host.ip(&format!(
                        "addr flush dev {port}\nlink set {port} master br0"
                    ));
                    default_route(at, 2);
                }
                add_addrs(host, "br0", (2, 1));
            }
            Layout::Interfaces => {
                link((host, "h2", (2, 1)), (&self.f, "f0", (2, 2)));
                link((host, "h4", (6, 1)), (&self.g, "g0", (6, 2)));
                default_route(&self.f, 2);
                default_route(&self.g, 6);
            }
        }
        if has_br_netfilter() {
            let is_on = matches!(self.variant.layout, Layout::Bridge(true));
            for file in ["iptables", "ip6tables"] {
                let key = format!("bridge/bridge-nf-call-{file}");
                host.sysctl(&key, if is_on { "1" } else { "0" });
            }
        }
    }

    /// R, and Z behind it. Net 5 is behind R as well, with nobody in it.
    fn add_narrow(&self) {
        let (host, r) = (&self.lab.host, &self.r);
        link((host, "h3", (3, 1)), (r, "r0", (3, 2)));
        link((r, "r1", (4, 1)), (&self.z, "z0", (4, 2)));
        default_route(r, 3);
        default_route(&self.z, 4);
        for family in Family::BOTH {
            let (router, z) = (family.addr(3, 2), family.addr(4, 2));
            for net in [4, 5] {
                let net = network(family, net);
                host.ip(&format!("route add {net} via {router}"));
            }
            r.ip(&format!("route add {z} dev r1 mtu {NARROW}"));
        }
    }

    fn set_offload(&self) {
        if self.variant.offload == Offload::On {
            return;
        }
        let [to_f, to_g] = match self.variant.layout {
            Layout::Bridge(_) => ["port-f", "port-g"],
            Layout::Interfaces => ["h2", "h4"],
        };
        for (at, name) in [
            (&self.lab.client, "c0"),
            (&self.lab.host, "h0"),
            (&self.lab.host, "h3"),
            (&self.lab.host, to_f),
            (&self.lab.host, to_g),
            (&self.f, "f0"),
            (&self.g, "g0"),
            (&self.o, "o0"),
            (&self.r, "r0"),
            (&self.r, "r1"),
            (&self.z, "z0"),
        ] {
            at.run(&["ethtool", "-K", name, "tx", "off"]);
        }
    }

    /// The host believes that these addresses are at the client, which does not answer
    /// for them.
    fn add_ghosts(&self) {
        let mac = mac(&self.lab.client, "c0").map(|byte| format!("{byte:02x}"));
        let mac = mac.join(":");
        for number in [GHOST, ROUTER] {
            for family in Family::BOTH {
                let addr = family.addr(1, number);
                let words = format!("neigh add {addr} lladdr {mac} dev h0 nud permanent");
                self.lab.host.ip(&words);
            }
        }
    }

    fn wait_for_ways(&self) {
        for family in Family::BOTH {
            for place in [Place::Host, Place::F, Place::G, Place::O, Place::Z] {
                let to = SocketAddr::new(self.addr(place, family), 1);
                wait_for_route(&self.lab.client, to);
            }
            let g = SocketAddr::new(self.addr(Place::G, family), 1);
            wait_for_route(&self.f, g);
        }
    }

    fn serve(&mut self) {
        let echo = |at, name: &str, port| Server::start(at, name, port, Manner::Echo);
        let mut servers = vec![echo(&self.lab.host, "host", SENTINEL)];
        for (at, name) in [
            (&self.f, "F"),
            (&self.g, "G"),
            (&self.o, "O"),
            (&self.z, "Z"),
        ] {
            servers.push(echo(at, name, 8080));
        }
        for port in [9000, 9001, 9005] {
            servers.push(echo(&self.f, &format!("F {port}"), port));
        }
        self.servers = servers;
    }

    /// The namespace of a place.
    pub fn at(&self, place: Place) -> &Namespace {
        match place {
            Place::Client => &self.lab.client,
            Place::Host => &self.lab.host,
            Place::F => &self.f,
            Place::G => &self.g,
            Place::O => &self.o,
            Place::Z => &self.z,
        }
    }

    /// The interface of a place that has one.
    const fn port_of(place: Place) -> &'static str {
        match place {
            Place::Client => "c0",
            Place::Host => "h0",
            Place::F => "f0",
            Place::G => "g0",
            Place::O => "o0",
            Place::Z => "z0",
        }
    }

    /// The address of a place.
    pub fn addr(&self, place: Place, family: Family) -> IpAddr {
        let (net, number) = match (place, self.variant.layout) {
            (Place::Host, _) => (1, 1),
            (Place::Client, _) => (1, 2),
            (Place::O, _) => (1, 3),
            (Place::F, _) => (2, 2),
            (Place::G, Layout::Bridge(_)) => (2, 3),
            (Place::G, Layout::Interfaces) => (6, 2),
            (Place::Z, _) => (4, 2),
        };
        family.addr(net, number)
    }

    /// A port of the address that clients connect to.
    pub fn own(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.addr(Place::Host, family), port)
    }

    /// The host's interface towards F.
    pub const fn inside(&self) -> &'static str {
        match self.variant.layout {
            Layout::Bridge(_) => "br0",
            Layout::Interfaces => "h2",
        }
    }

    /// An address in words that are alike on all sites.
    pub fn name(&self, addr: IpAddr) -> String {
        for family in Family::BOTH {
            for place in Place::ALL {
                if self.addr(place, family) == addr {
                    return place.name().to_owned();
                }
            }
            let others = [
                ((1, GHOST), "client"),
                ((1, ROUTER), "router"),
                ((1, 11), "host-2"),
                ((2, 1), "host-inside"),
                ((3, 1), "host-inside"),
                ((6, 1), "host-inside"),
                ((3, 2), "R"),
                ((4, 1), "R"),
            ];
            for ((net, number), name) in others {
                if family.addr(net, number) == addr {
                    return name.to_owned();
                }
            }
        }
        match addr {
            _ if addr.is_loopback() => "loopback".to_owned(),
            // Another one in each run.
            IpAddr::V6(addr) if addr.is_unicast_link_local() => "link-local".to_owned(),
            _ => addr.to_string(),
        }
    }

    /// The raw socket of a place.
    pub fn wire(&self, place: Place) -> &Wire {
        let mut wires = self.wires.iter();
        let found = wires.find(|(other, _)| *other == place);
        &found.expect("a wire").1
    }

    /// Throws away all that arrived so far.
    pub fn forget(&self) {
        for (_, wire) in &self.wires {
            wire.forget();
        }
    }

    /// A client port that no other case uses here.
    pub fn port(&self) -> u16 {
        self.next_port.fetch_add(1, Ordering::Relaxed)
    }

    /// Begins to redirect with the rules of all cases that share the hosts.
    pub fn start(&mut self) {
        let rules = rules::shared(self);
        match self.subject {
            Subject::Nft => self.set_nft(&rules),
            Subject::Engine(engine) => {
                let options = ["--iface", "all", "--engine", engine, "--drain-timeout", "0"];
                let rules: Vec<_> = rules.iter().map(Rule::words).collect();
                let mut args = options.to_vec();
                args.extend(rules.iter().map(String::as_str));
                let _guard = one_at_a_time();
                self.redirector = Some(Redirector::start(&self.lab.host, &args));
            }
        }
    }

    /// Begins to redirect with a case's own rules, which may change later.
    pub fn up(&mut self, rules: &[Rule]) {
        match self.subject {
            Subject::Nft => self.set_nft(rules),
            Subject::Engine(engine) => {
                let rules: Vec<_> = rules.iter().map(Rule::words).collect();
                let mut args = vec![PROGRAM, "up", "--iface", "all", "--engine", engine];
                args.extend(rules.iter().map(String::as_str));
                let _guard = one_at_a_time();
                self.is_up = true;
                self.lab.host.run(&args);
            }
        }
    }

    /// Puts one rule in the place of another.
    pub fn replace(&self, old: &Rule, new: &Rule) {
        match self.subject {
            Subject::Nft => self.set_nft(std::slice::from_ref(new)),
            Subject::Engine(_) => {
                let (old, new) = (old.words(), new.words());
                self.lab.host.run(&[PROGRAM, "replace", &old, &new]);
            }
        }
    }

    /// Removes a rule beside which there is one more. Without any, the kernel would also
    /// end conntrack.
    pub fn remove(&self, rule: &Rule, rest: &Rule) {
        match self.subject {
            Subject::Nft => self.set_nft(std::slice::from_ref(rest)),
            Subject::Engine(_) => {
                self.lab.host.run(&[PROGRAM, "rm", &rule.words()]);
            }
        }
    }

    /// Flows that began stay: conntrack has them.
    fn set_nft(&self, rules: &[Rule]) {
        self.lab.host.run(&["nft", &rules::nft(rules)]);
    }

    /// Ends it, and checks that it ended well.
    pub fn finish(&mut self) {
        self.servers.clear();
        if let Some(mut redirector) = self.redirector.take() {
            redirector.process.signal(Signal::SIGINT);
            let status = redirector.process.wait();
            assert!(status.success(), "portredir: {status}");
        }
        if std::mem::take(&mut self.is_up) {
            let down = [PROGRAM, "down", "--drain-timeout", "0"];
            self.lab.host.run(&down);
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.servers.clear();
        if self.is_up {
            self.lab.host.succeeds(&[PROGRAM, "down", "--force"]);
        }
    }
}

/// The kernel verifies the programs, which takes a CPU for a while.
fn one_at_a_time() -> std::sync::MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn default_route(at: &Namespace, net: u8) {
    let [v4, v6] = Family::BOTH.map(|family| family.addr(net, 1));
    at.ip(&format!(
        "route add default via {v4}\nroute add default via {v6}"
    ));
}

/// A net of the lab with the length of its prefix.
pub fn network(family: Family, net: u8) -> String {
    match family {
        Family::V4 => format!("{}/24", family.addr(net, 0)),
        Family::V6 => format!("{}/64", family.addr(net, 0)),
    }
}
