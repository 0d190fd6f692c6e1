//! Devices on devices: a packet is handled once, wherever on its way up the host's stack
//! the program sits, and in whatever order the devices come and go.

use std::net::SocketAddr;
use std::time::Instant;

use crate::lab::process::wait_for;
use crate::lab::program::Redirector;
use crate::lab::{Family, Lab, add_addrs, link};
use crate::lifecycle::oracle::{BridgeTracking, set_bridge_tracking};
use crate::peer::conn::{Conn, PROTOS, answers};
use crate::peer::echo::EchoServer;
use crate::{ANYWHERE, Cell, Tests, skip};

/// A stack of devices on the host, and the matching one on the client. The upper device of
/// both is `t0`.
struct Stack {
    name: &'static str,
    host: &'static str,
    client: &'static str,
}

const CLIENT_PLAIN: &str = "link set c0 down\nlink set c0 name t0\nlink set t0 up";
const CLIENT_VLAN: &str = "link add link c0 name t0 type vlan id 7\nlink set t0 up";
const CLIENT_QINQ: &str = "link add link c0 name c1 type vlan id 7 proto 802.1ad\nlink set c1 up\n\
    link add link c1 name t0 type vlan id 8\nlink set t0 up";

const STACKS: [Stack; 9] = [
    Stack {
        name: "bridge_over_macvlan",
        host: "link add link h0 name mv0 type macvlan mode passthru\nlink set mv0 up\n\
            link add t0 type bridge\nlink set mv0 master t0\nlink set t0 up",
        client: CLIENT_PLAIN,
    },
    Stack {
        name: "bridge_over_vlan",
        host: "link add link h0 name h0.7 type vlan id 7\nlink set h0.7 up\n\
            link add t0 type bridge\nlink set h0.7 master t0\nlink set t0 up",
        client: CLIENT_VLAN,
    },
    Stack {
        name: "bridge_over_vlan_over_bond",
        host: "link add bond0 type bond mode active-backup\nlink set h0 down\n\
            link set h0 master bond0\nlink set bond0 up\nlink set h0 up\n\
            link add link bond0 name b7 type vlan id 7\nlink set b7 up\n\
            link add t0 type bridge\nlink set b7 master t0\nlink set t0 up",
        client: CLIENT_VLAN,
    },
    Stack {
        name: "bond_over_vlan",
        host: "link add link h0 name h0.7 type vlan id 7\n\
            link add t0 type bond mode active-backup\nlink set h0.7 master t0\n\
            link set t0 up\nlink set h0.7 up",
        client: CLIENT_VLAN,
    },
    Stack {
        name: "macvlan_over_vlan",
        host: "link add link h0 name h0.7 type vlan id 7\nlink set h0.7 up\n\
            link add link h0.7 name t0 type macvlan mode bridge\nlink set t0 up",
        client: CLIENT_VLAN,
    },
    Stack {
        name: "ipvlan_over_vlan",
        host: "link add link h0 name h0.7 type vlan id 7\nlink set h0.7 up\n\
            link add link h0.7 name t0 type ipvlan mode l2\nlink set t0 up",
        client: CLIENT_VLAN,
    },
    Stack {
        name: "vlan_over_macvlan",
        host: "link add link h0 name mv0 type macvlan mode bridge\nlink set mv0 up\n\
            link add link mv0 name t0 type vlan id 7\nlink set t0 up",
        client: CLIENT_VLAN,
    },
    Stack {
        name: "qinq",
        host: "link add link h0 name h1 type vlan id 7 proto 802.1ad\nlink set h1 up\n\
            link add link h1 name t0 type vlan id 8\nlink set t0 up",
        client: CLIENT_QINQ,
    },
    Stack {
        name: "bridge_over_qinq",
        host: "link add link h0 name h1 type vlan id 7 proto 802.1ad\nlink set h1 up\n\
            link add link h1 name h2 type vlan id 8\nlink set h2 up\n\
            link add t0 type bridge\nlink set h2 master t0\nlink set t0 up",
        client: CLIENT_QINQ,
    },
];

pub fn add(tests: &mut Tests) {
    for engine in ANYWHERE {
        let cell = Cell {
            engine,
            is_offloaded: false,
            family: Family::V4,
        };
        for stack in &STACKS {
            let name = format!("{engine}/stack_{}", stack.name);
            tests.add(name, &[], move || stacked(&cell, stack));
        }
    }
}

fn stacked(cell: &Cell, stack: &Stack) {
    for family in Family::BOTH {
        let lab = Lab::unlinked();
        set_bridge_tracking(&lab.host, BridgeTracking::Off);
        link((&lab.host, "h0", (3, 1)), (&lab.client, "c0", (3, 2)));
        let chain = Chain::new(&lab);
        // Once with all devices there, once with the program there first.
        let early = (family == Family::V6).then(|| chain.redirect(cell));
        for (at, commands) in [(&lab.host, stack.host), (&lab.client, stack.client)] {
            for command in commands.lines() {
                let words: Vec<_> = ["ip"].into_iter().chain(command.split(' ')).collect();
                if !at.succeeds(&words) {
                    skip(format!("this kernel has no `ip {command}`"));
                }
            }
        }
        add_addrs(&lab.host, "t0", (1, 1));
        add_addrs(&lab.client, "t0", (1, 2));
        let redirector = early.unwrap_or_else(|| chain.redirect(cell));
        chain.check(family);
        redirector.finish(&lab);
    }
}

/// Rules that chain where a packet crosses two hooks, and their servers.
struct Chain<'a> {
    lab: &'a Lab,
    servers: [EchoServer; 2],
}

impl<'a> Chain<'a> {
    fn new(lab: &'a Lab) -> Self {
        let servers = [8080, 9090].map(|port| EchoServer::start(&lab.host, port));
        Self { lab, servers }
    }

    fn redirect(&self, cell: &Cell) -> Redirector {
        let args = [
            "--iface",
            "all",
            "--engine",
            cell.engine,
            "80:8080/both",
            "8080:9090/both",
        ];
        Redirector::start(&self.lab.host, &args)
    }

    fn check(&self, family: Family) {
        for (port, server) in [80, 8080].into_iter().zip(&self.servers) {
            let to = SocketAddr::new(family.addr(1, 1), port);
            for proto in PROTOS {
                let what = format!("a way to {to} by {proto:?}");
                wait_for(&what, || answers(&self.lab.client, proto, to).then_some(()));
                let message = format!("{proto:?} {to} {:?}", Instant::now());
                Conn::to(&self.lab.client, proto, 0, to).echo(message.as_bytes());
                server.peer(proto, message.as_bytes());
            }
        }
    }
}
