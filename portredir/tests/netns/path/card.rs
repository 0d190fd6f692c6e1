//! Network cards of a virtual machine, which emulates the hardware, so the drivers are
//! the real ones: `cargo xtask test --kernel 6.12 --cards`.
//!
//! There are two cards of each model, wired to each other. A test moves one to the host
//! and one to the client, as h0 and c0. A line that begins with `seen` is for the table in
//! docs/TESTED.md: the name of the test, and what was seen.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::lab::namespace::Namespace;
use crate::lab::process::{note, wait_for};
use crate::lab::program::{PROGRAM, Redirector, attached, link_state};
use crate::lab::{Family, Lab, add_addrs, checksum, link, wait_for_route};
use crate::lifecycle::attach::{Clients, LinkWatch, attach_and_detach};
use crate::path::device::is_kernel;
use crate::path::link::redirects_all;
use crate::peer::conn::{Conn, PROTOS, Proto};
use crate::peer::echo::EchoServer;
use crate::peer::http::{get, http_server, noise, put};
use crate::{Cell, Tests, skip};

/// A driver, and the versions of Linux that brought parts of it.
#[derive(Clone, Copy)]
struct Driver {
    name: &'static str,
    /// The version of Linux that brought native XDP to the driver.
    xdp_since: Option<(u32, u32)>,
    /// The version of Linux that brought native XDP for packets of several buffers.
    frags_since: Option<(u32, u32)>,
    /// Whether the driver resets the link when an XDP program comes or goes.
    resets_for_xdp: bool,
    /// Whether `--engine auto` takes native XDP.
    is_listed: bool,
}

const DRIVERS: [Driver; 4] = [
    Driver {
        name: "virtio_net",
        xdp_since: Some((4, 10)),
        frags_since: Some((6, 3)),
        resets_for_xdp: false,
        is_listed: false,
    },
    Driver {
        name: "igb",
        xdp_since: Some((5, 10)),
        frags_since: None,
        // `igb_xdp_setup` in drivers/net/ethernet/intel/igb/igb_main.c.
        resets_for_xdp: true,
        is_listed: true,
    },
    Driver {
        name: "vmxnet3",
        xdp_since: Some((6, 6)),
        frags_since: None,
        // `vmxnet3_quiesce_dev` in drivers/net/vmxnet3/vmxnet3_drv.c.
        resets_for_xdp: true,
        is_listed: false,
    },
    Driver {
        name: "e1000e",
        xdp_since: None,
        frags_since: None,
        resets_for_xdp: false,
        is_listed: false,
    },
];

const ENGINES: [&str; 4] = ["auto", "xdp", "tc", "socket"];

const JUMBO: &str = "9000";

type Test = fn(&Case, &Lab);

pub fn add(tests: &mut Tests) {
    let all: [(&str, Test); 4] = [
        ("traffic", traffic),
        ("vlan", vlan),
        ("jumbo", jumbo),
        ("load", load),
    ];
    for (name, test) in all {
        for engine in ENGINES {
            // Neighbours in the list run at once where their drivers differ.
            for driver in DRIVERS {
                Case::add(tests, driver, engine, (name, test));
            }
        }
    }
    // The other engines refuse such rules.
    for engine in ["auto", "tc"] {
        for driver in DRIVERS {
            Case::add(tests, driver, engine, ("forward", forward));
        }
    }
}

/// One test of a card.
struct Case {
    driver: Driver,
    engine: &'static str,
    name: String,
}

impl Case {
    /// Adds a test for a driver and an engine.
    fn add(tests: &mut Tests, driver: Driver, engine: &'static str, (name, test): (&str, Test)) {
        let case = Self {
            driver,
            engine,
            name: format!("card/{}/{engine}/{name}", driver.name),
        };
        let tools = &["curl", "python3"];
        tests.add(case.name.clone(), tools, move || case.run(test));
    }

    fn run(&self, test: Test) {
        let lab = Lab::unlinked();
        let _cards = Cards::take(&lab, self.driver.name);
        wait_for_carrier(&lab);
        if self.engine == "xdp" && !self.has(self.driver.xdp_since) {
            // Before Linux 6.3 the attempt tells, and the words are those of the kernel.
            self.is_refused(&lab, &["native XDP", "XDP in native mode"]);
            return;
        }
        let before = link_state(&lab);
        test(self, &lab);
        wait_for_carrier(&lab);
        assert_eq!(link_state(&lab), before, "the link is as before");
    }

    fn cell(&self) -> Cell {
        Cell {
            engine: self.engine,
            is_offloaded: true,
            family: Family::V4,
        }
    }

    /// Whether this kernel has what came with a version.
    fn has(&self, since: Option<(u32, u32)>) -> bool {
        since.is_some_and(|(major, minor)| is_kernel(major, minor))
    }

    /// Whether the engine is native XDP, as far as the MTU allows that.
    fn is_xdp(&self) -> bool {
        self.engine == "xdp" || (self.engine == "auto" && self.driver.is_listed)
    }

    /// The program refuses the engine, says why, and leaves nothing behind.
    fn is_refused(&self, lab: &Lab, words: &[&str]) {
        let before = link_state(lab);
        let args = ["--iface", "h0", "--engine", self.engine, "80:8080"];
        let mut refused = lab.host.start(&[&[PROGRAM][..], &args].concat());
        let status = refused.wait();
        let error = refused.err();
        assert_eq!(status.code(), Some(1), "{error}");
        assert_eq!(link_state(lab), before);
        let has = |line: &&str| words.iter().any(|words| line.contains(words));
        let reason = error.lines().rfind(has);
        let reason = reason.unwrap_or_else(|| panic!("{error}"));
        self.seen(&format!("refused: {}", reason.trim()));
    }

    /// Tells the reader of the table.
    fn seen(&self, what: &str) {
        println!("seen\t{}\t{what}", self.name);
        note(what);
    }

    /// Checks which program takes incoming packets on the card.
    fn check_hook(&self, lab: &Lab, is_xdp: bool) {
        let programs = attached(&lab.host);
        let has = |start: &str| programs.iter().any(|line| line.starts_with(start));
        assert_eq!(has("h0 xdp portredir"), is_xdp, "{programs:?}");
        let is_tc = has("h0 tcx-ingress portredir") || has("h0 tc-ingress portredir");
        assert_eq!(is_tc, !is_xdp && self.engine != "socket", "{programs:?}");
    }

    /// All traffic that the engine serves, over a link that is up.
    fn check_traffic(&self, lab: &Lab) {
        check_card(lab);
        if self.engine == "socket" {
            serves_tcp(lab);
        } else {
            redirects_all(&self.cell(), lab);
        }
    }
}

/// Waits until both cards are up: a driver that resets the link takes its time, and the
/// kernel tells the state later than it routes.
fn wait_for_carrier(lab: &Lab) {
    lab.wait_for_link();
    for (at, name) in [(&lab.host, "h0"), (&lab.client, "c0")] {
        wait_for("the carrier", || {
            let state = at.run(&["ip", "-oneline", "link", "show", name]);
            let is_up = state.contains("state UP") && !state.contains("NO-CARRIER");
            is_up.then_some(())
        });
    }
}

/// Without portredir, a file has to get over the emulated cards as well.
fn check_card(lab: &Lab) {
    lab.wait_for_link();
    let mut server = http_server(&lab.host, 8079);
    let (file, noise) = noise(&lab.dir, 1_000_000);
    for family in Family::BOTH {
        put(&lab.client, &file, family.host(8079));
        let answer = get(&lab.client, &lab.dir, family.host(8079));
        assert!(
            answer == noise,
            "{} bytes came back without us",
            answer.len()
        );
    }
    lab.check_checksums();
    server.kill();
}

/// TCP, as `--engine socket` serves nothing else.
fn serves_tcp(lab: &Lab) {
    lab.wait_for_link();
    let _server = http_server(&lab.host, 8080);
    let echo = EchoServer::start(&lab.host, 7778);
    // With VLAN devices, they are the interfaces by which packets come to sockets.
    let args = [
        "--iface",
        "all",
        "--engine",
        "socket",
        "80:8080",
        "7777:7778",
    ];
    let redirector = Redirector::start(&lab.host, &args);
    let (file, noise) = noise(&lab.dir, 1_000_000);
    for family in Family::BOTH {
        put(&lab.client, &file, family.host(80));
        let answer = get(&lab.client, &lab.dir, family.host(80));
        assert!(answer == noise, "{} bytes came back", answer.len());
        for port in [7777, 7778] {
            let message = format!("{family:?} {port}");
            let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, family.host(port));
            conn.echo(message.as_bytes());
            echo.peer(Proto::Tcp, message.as_bytes());
        }
    }
    redirector.finish(lab);
}

/// HTTP, datagrams, fragments and ICMP errors of both IP versions.
fn traffic(case: &Case, lab: &Lab) {
    case.check_traffic(lab);
}

/// Traffic over a VLAN device on the card.
fn vlan(case: &Case, lab: &Lab) {
    let ends = [(&lab.host, "h0", 1), (&lab.client, "c0", 2)];
    let lro = [Lro::of(&lab.host, "h0"), Lro::of(&lab.client, "c0")];
    for (at, name, number) in ends {
        let device = format!("{name}.10");
        at.ip(&format!(
            "addr flush dev {name} scope global\n\
             link add link {name} name {device} type vlan id 10"
        ));
        add_addrs(at, &device, (1, number));
    }
    case.check_traffic(lab);
    for (at, name, number) in ends {
        at.ip(&format!("link del {name}.10"));
        add_addrs(at, name, (1, number));
    }
    // A VLAN device has no LRO, so the kernel takes it from the card
    // (`netdev_sync_lower_features` of net/core/dev.c).
    lro.iter().for_each(Lro::restore);
}

/// The LRO of a card, which the kernel takes for good where a test asks for something
/// else, without portredir.
struct Lro<'a> {
    at: &'a Namespace,
    card: &'static str,
    is_on: bool,
}

impl<'a> Lro<'a> {
    fn of(at: &'a Namespace, card: &'static str) -> Self {
        let features = at.run(&["ethtool", "-k", card]);
        let is_on = features.contains("large-receive-offload: on\n");
        Self { at, card, is_on }
    }

    fn restore(&self) {
        if self.is_on {
            self.at.run(&["ethtool", "-K", self.card, "lro", "on"]);
        }
    }
}

/// Packets of 9000 bytes. `auto` leaves native XDP where the driver has none for them.
fn jumbo(case: &Case, lab: &Lab) {
    let set_mtu = |mtu: &str| {
        lab.host.ip(&format!("link set h0 mtu {mtu}"));
        lab.client.ip(&format!("link set c0 mtu {mtu}"));
    };
    set_mtu(JUMBO);
    lab.wait_for_link();
    let has_frags = case.has(case.driver.frags_since);
    if case.engine == "xdp" && !has_frags {
        case.is_refused(
            lab,
            &[
                "RX buffer size is too small",
                "MTU too large",
                "too large for XDP",
            ],
        );
    } else {
        let proto = PROTOS[usize::from(case.engine != "socket")];
        let rule = format!("7777:7778/{proto:?}").to_lowercase();
        let server = EchoServer::start(&lab.host, 7778);
        // Without portredir, such packets have to arrive as well.
        Conn::to(&lab.client, proto, 0, Family::V4.host(7778)).echo(&[5; 8000]);
        let redirector = Redirector::of(&case.cell(), lab, &[&rule]);
        case.check_hook(lab, case.is_xdp() && has_frags);
        for family in Family::BOTH {
            let message = vec![7; 8000];
            let mut conn = Conn::to(&lab.client, proto, 0, family.host(7777));
            conn.echo(&message);
            server.peer(proto, &message);
        }
        redirector.finish(lab);
    }
    set_mtu("1500");
    lab.wait_for_link();
}

/// Targets with an address, behind the host.
fn forward(case: &Case, lab: &Lab) {
    let far = lab.third();
    link((&lab.host, "h1", (2, 1)), (&far, "f0", (2, 2)));
    let lro = Lro::of(&lab.host, "h0");
    lab.host.sysctl("ipv4/ip_forward", "1");
    lab.host.sysctl("ipv6/conf/all/forwarding", "1");
    far.ip("route add default via 10.9.2.1\nroute add default via fd09:0:0:2::1");
    for family in Family::BOTH {
        wait_for_route(&far, family.host(1));
    }
    let _server = http_server(&far, 8080);
    let echo = EchoServer::start(&far, 7778);
    let [v4, v6] = Family::BOTH.map(|family| SocketAddr::new(family.addr(2, 2), 8080));
    let [echo_v4, echo_v6] = Family::BOTH.map(|family| SocketAddr::new(family.addr(2, 2), 7778));
    let rules = [
        format!("80:{v4}"),
        format!("81:{v6}"),
        format!("7777:{echo_v4}/both"),
        format!("7779:{echo_v6}/both"),
    ];
    let rules = rules.each_ref().map(String::as_str);
    let redirector = Redirector::beside(&case.cell(), lab, &rules);
    case.check_hook(lab, case.is_xdp());
    let (file, noise) = noise(&lab.dir, 1_000_000);
    for (family, web, port) in [(Family::V4, 80, 7777), (Family::V6, 81, 7779)] {
        put(&lab.client, &file, family.host(web));
        let answer = get(&lab.client, &lab.dir, family.host(web));
        assert!(answer == noise, "{} bytes came back", answer.len());
        for proto in PROTOS {
            let message = format!("{proto:?} {port}");
            let mut conn = Conn::to(&lab.client, proto, 0, family.host(port));
            conn.echo(message.as_bytes());
            // The server sees the client itself.
            let peer = echo.peer(proto, message.as_bytes());
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            assert_eq!(peer, conn.local());
        }
    }
    redirector.finish(lab);
    checksum::check(&far);
    lab.host.ip("link del h1");
    lab.host.sysctl("ipv4/ip_forward", "0");
    lab.host.sysctl("ipv6/conf/all/forwarding", "0");
    // A host that forwards has no LRO (`inet_forward_change` of net/ipv4/devinet.c).
    lro.restore();
}

/// The programs come and go while clients send requests and one connection waits.
fn load(case: &Case, lab: &Lab) {
    let bystander = EchoServer::start(&lab.host, 9090);
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(9090));
    conn.echo(b"before");
    bystander.peer(Proto::Tcp, b"before");
    let watch = LinkWatch::start(lab);
    attach_and_detach(&case.cell(), lab, 3, Clients::Redirected);
    conn.echo(b"after");
    if case.is_xdp() && case.driver.resets_for_xdp {
        let changes = watch.changes();
        assert!(changes > 0, "the driver no longer resets the link");
        case.seen(&format!(
            "no connection is lost; the driver resets the link: {changes} changes of the carrier \
             for 3 times to attach and to detach"
        ));
    } else {
        watch.check_is_kept();
    }
}

/// Two network cards that are wired to each other, which the machine does not need for
/// itself.
struct Cards {
    _one_at_a_time: MutexGuard<'static, ()>,
    names: [String; 2],
    ends: [(String, &'static str); 2],
}

impl Cards {
    /// Moves the cards of a driver to host and client.
    fn take(lab: &Lab, driver: &str) -> Self {
        static ONE: [Mutex<()>; DRIVERS.len()] = [const { Mutex::new(()) }; DRIVERS.len()];
        let Ok(names) = std::env::var("TEST_NICS") else {
            skip("needs a virtual machine: cargo xtask test --kernel 6.12 --cards");
        };
        let place = DRIVERS.iter().position(|known| known.name == driver);
        let guard = ONE[place.expect("a driver")].lock();
        let guard = guard.unwrap_or_else(PoisonError::into_inner);
        let names: Vec<_> = names
            .split(',')
            .filter(|name| is_driven_by(name, driver))
            .map(str::to_owned)
            .collect();
        let Ok(names) = <[String; 2]>::try_from(names) else {
            skip(format!(
                "needs two cards of {driver}: cargo xtask test --kernel 6.12 --cards"
            ));
        };
        let cards = Self {
            _one_at_a_time: guard,
            names,
            ends: [
                (lab.host.name.clone(), "h0"),
                (lab.client.name.clone(), "c0"),
            ],
        };
        for (name, (namespace, new)) in cards.names.iter().zip(&cards.ends) {
            ip(&["link", "set", name, "down"]);
            ip(&["link", "set", name, "netns", namespace, "name", new]);
        }
        add_addrs(&lab.host, "h0", (1, 1));
        add_addrs(&lab.client, "c0", (1, 2));
        cards
    }
}

/// Whether a card has this driver; for virtio, the driver is that of a device below.
fn is_driven_by(name: &str, driver: &str) -> bool {
    let link = Path::new("/sys/class/net").join(name).join("device/driver");
    let target = fs::read_link(link);
    target.is_ok_and(|target| target.file_name().is_some_and(|name| name == driver))
}

impl Drop for Cards {
    /// Before their namespaces end: from there they would come back under the names they
    /// have there.
    fn drop(&mut self) {
        for (name, (namespace, new)) in self.names.iter().zip(&self.ends) {
            ip(&["-n", namespace, "link", "set", new, "down"]);
            let back = [
                "link", "set", new, "mtu", "1500", "netns", "1", "name", name,
            ];
            ip(&[&["-n", namespace][..], &back].concat());
        }
    }
}

fn ip(args: &[&str]) {
    let status = std::process::Command::new("ip").args(args).status();
    let is_done = status.is_ok_and(|status| status.success());
    // Not during a panic: a second one would abort all tests.
    assert!(is_done || std::thread::panicking(), "ip {args:?}");
}
