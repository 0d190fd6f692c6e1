//! Bridges, their ports, and macvlans: every packet crosses exactly one of our
//! hooks, in whatever order the interfaces come up.

use std::net::SocketAddr;
use std::time::Instant;

use crate::lab::process::wait_within;
use crate::lab::program::Redirector;
use crate::lab::{Family, Lab, add_addrs};
use crate::lifecycle::follow::SOON;
use crate::lifecycle::oracle::{
    ALL, BridgeTracking, Selection, set_bridge_tracking, wait_for_carriers,
};
use crate::peer::conn::{Conn, PROTOS, Proto, answers};
use crate::peer::echo::EchoServer;
use crate::{ANYWHERE, Cell, Tests};

pub fn add(tests: &mut Tests) {
    for (name, test) in [
        (
            "port_before_start",
            port_before_start as fn(&Cell, BridgeTracking),
        ),
        ("port_comes_and_goes", port_comes_and_goes),
        ("bridge_comes_and_goes", bridge_comes_and_goes),
        ("port_and_bridge_named", port_and_bridge_named),
    ] {
        for (suffix, tracking) in [("", BridgeTracking::Off), ("_tracked", BridgeTracking::On)] {
            for engine in ANYWHERE {
                let name = format!("{engine}/one_hook_{name}{suffix}");
                let cell = Cell {
                    engine,
                    is_offloaded: false,
                    family: Family::V4,
                };
                tests.add(name, &[], move || test(&cell, tracking));
            }
        }
    }
    tests.add_for(&ANYWHERE, "one_hook_macvlan", &[], macvlan);
}

/// A packet for port 80 reaches 8080, one for 8080 reaches 9090, and none goes
/// both ways, however many hooks it might cross.
const CHAINED: [&str; 2] = ["80:8080/both", "8080:9090/both"];

/// The servers of [`CHAINED`].
struct Chain([EchoServer; 2]);

impl Chain {
    fn new(lab: &Lab) -> Self {
        Self([8080, 9090].map(|port| EchoServer::start(&lab.host, port)))
    }

    /// Waits until all is attached, and looks where packets for an address go.
    fn check(&self, lab: &Lab, engine: &str, selection: Selection, addr: (u8, u8)) {
        wait_for_carriers(lab, engine, selection);
        for family in Family::BOTH {
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
pub const ENSLAVE: &str = "link add br0 address 02:00:00:00:02:00 type bridge\n\
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

fn port_before_start(cell: &Cell, tracking: BridgeTracking) {
    let lab = Lab::new(cell);
    set_bridge_tracking(&lab.host, tracking);
    let chain = Chain::new(&lab);
    enslave(&lab);
    let redirector = chained(cell, &lab, ALL);
    chain.check(&lab, cell.engine, ALL, (1, 1));
    redirector.finish(&lab);
}

fn port_comes_and_goes(cell: &Cell, tracking: BridgeTracking) {
    let lab = Lab::new(cell);
    set_bridge_tracking(&lab.host, tracking);
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
fn bridge_comes_and_goes(cell: &Cell, tracking: BridgeTracking) {
    let lab = Lab::new(cell);
    set_bridge_tracking(&lab.host, tracking);
    let chain = Chain::new(&lab);
    enslave(&lab);
    lab.host.ip("link set br0 down");
    let redirector = chained(cell, &lab, ALL);
    for _ in 0..2 {
        raise_bridge_with_addrs(&lab);
        chain.check(&lab, cell.engine, ALL, (1, 1));
        lab.host.ip("link set br0 down");
        wait_for_carriers(&lab, cell.engine, ALL);
    }
    redirector.finish(&lab);
}

/// IPv6 addresses go when the interface goes down.
fn raise_bridge_with_addrs(lab: &Lab) {
    let addr = Family::V6.addr(1, 1);
    lab.host.ip(&format!(
        "link set br0 up\naddr replace {addr}/64 dev br0 nodad"
    ));
}

fn port_and_bridge_named(cell: &Cell, tracking: BridgeTracking) {
    let lab = Lab::new(cell);
    set_bridge_tracking(&lab.host, tracking);
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
    let add_macvlan = || {
        lab.host.ip(add);
        lab.host.sysctl("ipv4/conf/all/rp_filter", "0");
        // No second route to the net of the client.
        let (v4, v6) = (Family::V4.addr(1, 3), Family::V6.addr(1, 3));
        lab.host.ip(&format!(
            "link set mv0 up\naddr add {v4}/32 dev mv0\naddr add {v6}/128 dev mv0 nodad"
        ));
    };
    let check = || {
        chain.check(&lab, cell.engine, ALL, (1, 1));
        check_tcp(&lab, &chain, (1, 3));
    };
    add_macvlan();
    let redirector = chained(cell, &lab, ALL);
    check();
    lab.host.ip("link del mv0");
    wait_for_carriers(&lab, cell.engine, ALL);
    add_macvlan();
    check();
    redirector.finish(&lab);
}

/// By TCP alone: the echo answers UDP from the first address.
fn check_tcp(lab: &Lab, chain: &Chain, (net, host): (u8, u8)) {
    for family in Family::BOTH {
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
