//! The hosts of the conformance suite, and what redirects on one of them.
//!
//! ```text
//!   client c0 ---- h0 host h1 ---- f0 far
//!   client c2 ---- out0 host
//!                     br0
//!          port-a ----' '---- port-b
//!   container A a0             b0 container B
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::Signal;

use super::rules;
use super::server::{Manner, Server};
use super::wire::{Wire, mac};
use crate::lab::namespace::Namespace;
use crate::lab::process::{Process, wait_for};
use crate::lab::program::{PROGRAM, Redirector};
use crate::lab::{Family, Lab, add_addrs, link, wait_for_route};
use crate::path::paths::{add_way_back, has_br_netfilter};
use crate::peer::conn::{Proto, is_refused};
use crate::skip;

/// Whether the devices compute checksums, and segment what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    On,
    Off,
}

/// The program that redirects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// nftables, with which all others are compared.
    Nft,
    /// portredir, by this engine.
    Engine(&'static str),
}

/// All of them, the oracle first.
pub const SUBJECTS: [Subject; 6] = [
    Subject::Nft,
    Subject::Engine("xdp"),
    Subject::Engine("tc"),
    Subject::Engine("socket"),
    Subject::Engine("xdp-generic"),
    Subject::Engine("tc-clsact"),
];

impl Subject {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Engine(name) => name,
        }
    }
}

/// The hosts, their servers and what redirects.
pub struct Site {
    pub subject: Subject,
    pub offload: Offload,
    pub lab: Lab,
    pub a: Namespace,
    /// Container B, which is deleted with the site.
    _b: Namespace,
    servers: Vec<Server>,
    redirector: Option<Redirector>,
    next_port: AtomicU16,
    /// The frames that arrive at the client and at the far host.
    pub wires: [Wire; 2],
}

/// The number of an address on the client's network that no host has: the host
/// replies to packets from there, and no kernel answers the replies.
pub const GHOST: u8 = 200;

/// The first of the ports that are given to clients.
const FIRST_PORT: u16 = 20_000;

/// Another one, which the host reaches by its second interface.
pub const STRAY: u8 = 210;

/// The interface by which only replies leave, which portredir is not told to select.
pub const OUT: &str = "out0";

/// All interfaces but [`OUT`], also those that cases add.
const SELECTED: &str = "lo,h*,br0,port-*";

/// More of them, for cases that leave a trace at the address.
pub const GHOSTS: std::ops::RangeInclusive<u8> = GHOST..=250;

impl Site {
    /// All of it, redirecting.
    pub fn new(subject: Subject, offload: Offload) -> Self {
        let mut site = Self::idle(subject, offload);
        site.start();
        site
    }

    /// Without what redirects.
    pub fn idle(subject: Subject, offload: Offload) -> Self {
        let mut lab = Lab::unlinked();
        let far = lab.third();
        let (a, b) = (lab.another("a"), lab.another("b"));
        let hosts = Hosts {
            lab: &lab,
            far: &far,
            a: &a,
            b: &b,
        };
        hosts.add_links();
        if offload == Offload::Off {
            hosts.switch_offload_off();
        }
        hosts.track_bridge(subject);
        hosts.add_routes();
        hosts.add_ghosts();
        hosts.wait_for_ways();
        let servers = serve(&lab, &far, &b);
        let wires = [Wire::open(&lab.client, "c0"), Wire::open(&far, "f0")];
        lab.far = Some(far);
        Self {
            subject,
            offload,
            lab,
            a,
            _b: b,
            servers,
            redirector: None,
            next_port: AtomicU16::new(FIRST_PORT),
            wires,
        }
    }

    /// Begins to redirect.
    pub fn start(&mut self) {
        // At the end no client is left to wait for.
        self.start_with(&["--drain-timeout", "0"]);
    }

    /// Starts to redirect, with these options of portredir.
    pub fn start_with(&mut self, options: &[&str]) {
        match self.subject {
            Subject::Nft => {
                self.lab.host.run(&["nft", &rules::nft()]);
            }
            Subject::Engine(engine) => {
                let rules = rules::portredir(engine);
                let mut args = vec!["--iface", SELECTED, "--engine", engine];
                args.extend(options);
                args.extend(rules.iter().map(String::as_str));
                // The kernel verifies the programs, which takes a CPU for a while.
                static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
                let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
                self.redirector = Some(Redirector::start(&self.lab.host, &args));
                drop(guard);
            }
        }
    }

    /// Ends it, and checks that it ended well.
    pub fn finish(&mut self) {
        if let Some(mut redirector) = self.redirector.take() {
            redirector.process.signal(Signal::SIGINT);
            let status = redirector.process.wait();
            assert!(status.success(), "portredir: {status}");
        }
    }

    /// Begins to end it: new connections are no longer redirected.
    pub fn begin_to_end(&self) {
        match &self.redirector {
            None => {
                let host = &self.lab.host;
                host.run(&["nft", "flush chain inet redirects prerouting"]);
            }
            Some(redirector) => {
                redirector.process.signal(Signal::SIGTERM);
                wait_for("the end of the redirect", || {
                    let to = Family::V4.host(80);
                    is_refused(&self.lab.client, Proto::Tcp, to).then_some(())
                });
            }
        }
    }

    /// Kills portredir by SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut redirector) = self.redirector.take() {
            redirector.process.kill();
        }
    }

    /// Starts portredir with other arguments.
    pub fn command(&self, args: &[&str]) -> Process {
        self.lab.host.start(&[&[PROGRAM], args].concat())
    }

    /// Takes down what `up` left, at the end.
    pub fn down_later(&self) -> Down<'_> {
        Down(self)
    }

    /// A client port that no other case uses here.
    pub fn port(&self) -> u16 {
        self.next_port.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether a client port is one of those.
    pub fn has_given(&self, port: u16) -> bool {
        (FIRST_PORT..self.next_port.load(Ordering::Relaxed)).contains(&port)
    }

    /// Adds rules of `nft` to the host, for as long as what is returned lives.
    pub fn filter(&self, ruleset: &str) -> Filter<'_> {
        self.lab
            .host
            .run(&["nft", &format!("table inet filter {{\n{ruleset}\n}}")]);
        Filter(&self.lab.host)
    }

    /// Changes a value below `/proc/sys/net` of the host, for as long as what is
    /// returned lives.
    pub fn tune(&self, key: &'static str, value: &str) -> Tuned<'_> {
        let host = &self.lab.host;
        let path = std::path::Path::new("/proc/sys/net").join(key);
        let before = host.enter(|| std::fs::read_to_string(path)).expect(key);
        host.sysctl(key, value);
        Tuned {
            host,
            key,
            before: before.trim().to_owned(),
        }
    }
}

/// The hosts while they are made, and linked as at the top of this file.
struct Hosts<'a> {
    lab: &'a Lab,
    far: &'a Namespace,
    a: &'a Namespace,
    b: &'a Namespace,
}

impl Hosts<'_> {
    fn add_links(&self) {
        let host = &self.lab.host;
        link((host, "h0", (1, 1)), (&self.lab.client, "c0", (1, 2)));
        link((host, "h1", (2, 1)), (self.far, "f0", (2, 2)));
        host.ip("addr add 10.9.1.11/24 dev h0\n\
             addr add fd09:0:0:1::b/64 dev h0 nodad\n\
             addr add fe80::1/64 dev h0 nodad\n\
             link add br0 type bridge");
        for (port, at, name, number) in [("port-a", self.a, "a0", 2), ("port-b", self.b, "b0", 3)] {
            link((host, port, (8, number)), (at, name, (3, number)));
            host.ip(&format!(
                "addr flush dev {port}\nlink set {port} master br0"
            ));
        }
        add_way_back(self.lab, OUT);
    }

    fn switch_offload_off(&self) {
        for (at, interface) in [
            (&self.lab.client, "c0"),
            (&self.lab.host, "h0"),
            (&self.lab.host, "h1"),
            (self.far, "f0"),
            (&self.lab.client, "c2"),
            (&self.lab.host, OUT),
        ] {
            at.run(&["ethtool", "-K", interface, "tx", "off"]);
        }
    }

    /// The engine `xdp` needs the ports of a bridge, which portredir uses where
    /// packets cross netfilter there.
    fn track_bridge(&self, subject: Subject) {
        for file in ["iptables", "ip6tables"] {
            if has_br_netfilter() {
                let key = format!("bridge/bridge-nf-call-{file}");
                self.lab.host.sysctl(&key, "1");
            } else if matches!(subject, Subject::Engine("xdp")) {
                skip("needs br_netfilter");
            }
        }
    }

    fn add_routes(&self) {
        let host = &self.lab.host;
        host.sysctl("ipv4/ip_forward", "1");
        host.sysctl("ipv6/conf/all/forwarding", "1");
        for (at, net) in [
            (&self.lab.client, 1),
            (self.far, 2),
            (self.a, 3),
            (self.b, 3),
        ] {
            let [v4, v6] = Family::BOTH.map(|family| family.addr(net, 1));
            at.ip(&format!(
                "route add default via {v4}\nroute add default via {v6}"
            ));
        }
        add_addrs(host, "br0", (3, 1));
        // Networks of which every address is local, and single addresses of load balancers.
        host.ip("route add local 10.9.7.0/24 dev lo\n\
             route add local fd09:0:0:7::/64 dev lo\n\
             route add local 10.9.9.9/32 dev h0\n\
             route add local fd09:0:0:9::9/128 dev h0");
    }

    fn add_ghosts(&self) {
        let host = &self.lab.host;
        let ghosts = GHOSTS.filter(|ghost| *ghost != STRAY);
        let ghosts = neighbours(ghosts, &self.lab.client, "c0", "h0");
        let stray = neighbours([STRAY], self.far, "f0", "h1");
        host.ip(&(ghosts + &stray));
        for family in Family::BOTH {
            let stray = family.addr(1, STRAY);
            host.ip(&format!("route add {stray} dev h1"));
        }
    }

    fn wait_for_ways(&self) {
        for family in Family::BOTH {
            for at in [&self.lab.client, self.far, self.a, self.b] {
                wait_for_route(at, family.host(1));
            }
            wait_for_route(self.a, SocketAddr::new(family.addr(3, 3), 1));
            wait_for_route(&self.lab.client, SocketAddr::new(family.addr(5, 1), 1));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.servers.clear();
    }
}

/// Ends what `up` began, when it is dropped.
pub struct Down<'a>(&'a Site);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let mut down = self.0.command(&["down", "--drain-timeout", "0"]);
        if !down.wait().success() {
            self.0.command(&["down", "--force"]).wait();
        }
    }
}

/// Rules that go when it is dropped.
pub struct Filter<'a>(&'a Namespace);

impl Drop for Filter<'_> {
    fn drop(&mut self) {
        self.0.succeeds(&["nft", "delete table inet filter"]);
    }
}

/// A setting that is restored when it is dropped.
pub struct Tuned<'a> {
    host: &'a Namespace,
    key: &'static str,
    before: String,
}

impl Drop for Tuned<'_> {
    fn drop(&mut self) {
        self.host.sysctl(self.key, &self.before);
    }
}

/// Commands of `ip` that make a host believe these addresses are somewhere.
fn neighbours(
    numbers: impl IntoIterator<Item = u8>,
    at: &Namespace,
    interface: &str,
    by: &str,
) -> String {
    let mac = mac(at, interface)
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    let mut commands = String::new();
    for number in numbers {
        for family in Family::BOTH {
            let addr = family.addr(1, number);
            commands += &format!("neigh add {addr} lladdr {mac} dev {by} nud permanent\n");
        }
    }
    commands
}

fn serve(lab: &Lab, far: &Namespace, b: &Namespace) -> Vec<Server> {
    let host = &lab.host;
    let echo = |at, name: &str, port| Server::start(at, name, port, Manner::Echo);
    let mut servers = vec![];
    for port in [
        8080, 8086, 93, 8093, 9090, 9191, 8098, 8099, 8100, 9100, 9103,
    ] {
        servers.push(echo(host, &port.to_string(), port));
    }
    for number in 1..=4 {
        let name = format!("8082-{number}");
        servers.push(Server::start(host, &name, 8082, Manner::Shared));
    }
    for addr in ["127.0.0.1", "::1"] {
        let addr: IpAddr = addr.parse().expect("an address");
        servers.push(Server::tcp(host, "8083", (addr, 8083).into()));
    }
    let any6: SocketAddr = "[::]:8084".parse().expect("an address");
    servers.push(Server::tcp(host, "8084", any6));
    servers.push(Server::start(host, "8094", 8094, Manner::HangsUp));
    servers.push(Server::start(host, "8101", 8101, Manner::AnyAddress));
    for port in [80, 8080, 8085] {
        servers.push(echo(far, &format!("far {port}"), port));
    }
    servers.push(echo(b, "container B", 80));
    for port in [80, 8080] {
        servers.push(echo(&lab.client, &format!("client {port}"), port));
    }
    servers
}
