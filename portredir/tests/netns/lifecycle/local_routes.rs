//! Addresses that are routes of type `local`, and more addresses than the map holds.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::lab::process::{wait_for, wait_within};
use crate::lab::program::{PROGRAM, Redirector};
use crate::lab::{Family, Lab, link};
use crate::lifecycle::follow::{SOON, redirect_all};
use crate::peer::conn::{Conn, Proto, answers, is_refused};
use crate::peer::echo::EchoServer;
use crate::{Cell, ENGINES, Tests};

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "local_routes", &[], local_routes);
    tests.add_for(&ENGINES, "local_networks", &[], local_networks);
    tests.add_for(&ENGINES, "address_that_arrives", &[], arrives);
    tests.add_for(&["tc"], "more_addresses_than_places", &[], too_many);
}

/// Addresses that load balancers of clouds forward, as their agents add them.
const FORWARDED: [&str; 2] = ["198.51.100.10/32", "2001:db8:5::10/128"];

/// Networks of which every address is local (`AnyIP`), and one of those.
const NETWORKS: [(&str, &str); 2] = [
    ("203.0.113.0/24", "203.0.113.77"),
    ("2001:db8:6::/64", "2001:db8:6::77"),
];

fn addr(network: &str) -> IpAddr {
    let (addr, _) = network.split_once('/').expect("a network");
    addr.parse().expect("an address")
}

fn route(lab: &Lab, network: &str) {
    let gateway = match addr(network) {
        IpAddr::V4(_) => Family::V4.addr(1, 1),
        IpAddr::V6(_) => Family::V6.addr(1, 1),
    };
    lab.client.ip(&format!("route add {network} via {gateway}"));
}

fn local_routes(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 7778);
    let add = |network: &str| {
        lab.host
            .ip(&format!("route add local {network} dev h0 proto 66"));
    };
    for network in FORWARDED {
        route(&lab, network);
        add(network);
    }
    let redirector = redirect_all(cell, &lab);
    for network in FORWARDED {
        let to = SocketAddr::new(addr(network), 7777);
        for round in 0..2 {
            // By TCP: the echo answers UDP from the first address.
            wait_within(SOON, &format!("a redirect of {to}"), || {
                answers(&lab.client, Proto::Tcp, to).then_some(())
            });
            for at in [&lab.client, &lab.host] {
                let message = format!("{round} {to} {}", at.name);
                Conn::to(at, Proto::Tcp, 0, to).echo(message.as_bytes());
                server.peer(Proto::Tcp, message.as_bytes());
            }
            lab.host.ip(&format!("route del local {network} dev h0"));
            wait_for(&format!("the loss of {to}"), || {
                (!answers(&lab.client, Proto::Tcp, to)).then_some(())
            });
            add(network);
        }
    }
    redirector.finish(&lab);
}

/// Every address of a network is one of the host, for others and for itself.
fn local_networks(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 7778);
    let redirector = redirect_all(cell, &lab);
    for (network, addr) in NETWORKS {
        let to = SocketAddr::new(addr.parse().expect("an address"), 7777);
        route(&lab, network);
        lab.host.ip(&format!("route add local {network} dev lo"));
        wait_within(SOON, &format!("a redirect of {to}"), || {
            answers(&lab.client, Proto::Tcp, to).then_some(())
        });
        for at in [&lab.client, &lab.host] {
            let message = format!("{to} {}", at.name);
            Conn::to(at, Proto::Tcp, 0, to).echo(message.as_bytes());
            server.peer(Proto::Tcp, message.as_bytes());
        }
        lab.host.ip(&format!("route del local {network} dev lo"));
        wait_for(&format!("the loss of {to}"), || {
            (!answers(&lab.client, Proto::Tcp, to)).then_some(())
        });
    }
    redirector.finish(&lab);
}

/// An address that arrives is redirected at once, while other changes keep the host from
/// calming down: `ip` needs longer to end than the watcher to notice.
fn arrives(cell: &Cell) {
    const ADDRS: u8 = 20;
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 7778);
    let redirector = redirect_all(cell, &lab);
    let mut late = 0;
    for number in 0..ADDRS {
        lab.host.ip("link set lo mtu 65000");
        let addr = Family::V4.addr(1, 100 + number);
        lab.host.ip(&format!("addr add {addr}/24 dev h0"));
        let to = SocketAddr::new(addr, 7777);
        late += u8::from(is_refused(&lab.client, Proto::Tcp, to));
        wait_for(&format!("an answer from {to}"), || {
            answers(&lab.client, Proto::Tcp, to).then_some(())
        });
        lab.host.ip("link set lo mtu 65536");
        let message = format!("to {to}");
        Conn::to(&lab.client, Proto::Tcp, 0, to).echo(message.as_bytes());
        server.peer(Proto::Tcp, message.as_bytes());
    }
    // A machine that is busy may give the watcher no turn in that time.
    assert!(late <= ADDRS / 2, "{late} of {ADDRS} were refused first");
    redirector.finish(&lab);
}

/// Addresses without a place are reported, at the start and later, and all else is followed.
fn too_many(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 7778);
    let (mut add, mut del) = (String::new(), String::new());
    for number in 0..17_000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let _ = writeln!(add, "route add local 10.200.{high}.{low} dev lo");
        let _ = writeln!(del, "route del local 10.200.{high}.{low} dev lo");
    }
    let redirector = redirect_all(cell, &lab);
    lab.host.ip(&add);
    wait_for("the warning", || {
        redirector
            .process
            .err()
            .contains("local addresses")
            .then_some(())
    });
    link((&lab.host, "h2", (3, 1)), (&lab.client, "c2", (3, 2)));
    let is_hooked = || redirector.process.err().contains("h2 ");
    wait_for("h2", || is_hooked().then_some(()));
    redirector.stop();

    let args = [
        PROGRAM,
        "--iface",
        "all",
        "--engine",
        cell.engine,
        "7777:7778/both",
    ];
    let mut refused = lab.host.start(&args);
    assert_eq!(refused.wait().code(), Some(1), "{}", refused.err());
    let error = refused.err();
    assert!(error.contains("local addresses"), "{error}");

    lab.host.ip(&del);
    let redirector = Redirector::start(&lab.host, &args[1..]);
    assert!(!is_refused(&lab.client, Proto::Tcp, Family::V4.host(7777)));
    redirector.stop();
}
