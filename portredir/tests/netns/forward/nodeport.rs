//! Rules to a port of this host on which nothing listens, as DNAT rules of somebody else
//! lead it to another host: a NodePort of Kubernetes, a published port of Docker.
//!
//! ```text
//!   client c0 ---- h0 node br0 ---- pod
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::conformance::client::Conversation;
use crate::conformance::server::{Manner, Server};
use crate::lab::extent::allow;
use crate::lab::namespace::Namespace;
use crate::lab::process::{note, wait_within};
use crate::lab::program::Redirector;
use crate::lab::{Family, Lab, add_addrs, link, wait_for_route};
use crate::lifecycle::host::Host;
use crate::peer::conn::{PROTOS, Proto, is_refused};
use crate::peer::pair::{Acceptor, End, TcpPair};
use crate::peer::raw::{Flood, Segment, add_spoofed_networks, spoofed_addr, tcp};
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, fn(&Cell));
    const TESTS: [Test; 4] = [
        ("flood", flood),
        ("down", down),
        ("if_listening", if_listening),
        ("comes_and_goes", comes_and_goes),
    ];
    for (name, test) in TESTS {
        for engine in ["auto", "tc"] {
            let cell = Cell {
                engine,
                is_offloaded: true,
                family: Family::V4,
            };
            let name = format!("forward/nodeport_{name}/{engine}");
            tests.add(name, &["nft"], move || {
                test(&cell);
            });
        }
    }
    tests.add("forward/nodeport_flood/none", &["nft"], without_us);
}

/// A node with a pod, and the rules of kube-proxy for its NodePort 30080, with
/// `externalTrafficPolicy: Local`: the pod sees the client's address.
struct Node {
    lab: Lab,
    pod: Namespace,
}

impl Node {
    fn new() -> Self {
        let lab = Lab::unlinked();
        let pod = lab.another("p");
        let host = &lab.host;
        for key in [
            "ipv4/ip_forward",
            "ipv6/conf/all/forwarding",
            "ipv4/conf/all/route_localnet",
        ] {
            host.sysctl(key, "1");
        }
        link((host, "h0", (1, 1)), (&lab.client, "c0", (1, 2)));
        host.ip("link add br0 type bridge");
        link((host, "port-p", (8, 2)), (&pod, "eth0", (7, 2)));
        host.ip("addr flush dev port-p\nlink set port-p master br0");
        add_addrs(host, "br0", (7, 1));
        for (at, net) in [(&lab.client, 1), (&pod, 7)] {
            let [v4, v6] = Family::BOTH.map(|family| family.addr(net, 1));
            at.ip(&format!(
                "route add default via {v4}\nroute add default via {v6}"
            ));
        }
        lab.wait_for_link();
        for family in Family::BOTH {
            wait_for_route(&lab.client, SocketAddr::new(family.addr(7, 2), 1));
        }
        let [v4, v6] = Family::BOTH.map(|family| SocketAddr::new(family.addr(7, 2), 8080));
        host.run(&[
            "nft",
            &format!(
                "table inet kube-proxy {{
                    chain nodeports {{
                        meta nfproto ipv4 meta l4proto {{ tcp, udp }} th dport 30080 dnat ip to {v4}
                        meta nfproto ipv6 meta l4proto {{ tcp, udp }} th dport 30080 dnat ip6 to {v6}
                    }}
                    chain nat-prerouting {{
                        type nat hook prerouting priority dstnat
                        fib daddr type local jump nodeports
                    }}
                    chain nat-output {{
                        type nat hook output priority -100
                        fib daddr type local jump nodeports
                    }}
                    chain nat-postrouting {{
                        type nat hook postrouting priority srcnat
                        meta mark & 0x4000 != 0 masquerade
                    }}
                    chain filter-forward {{
                        type filter hook forward priority 0
                        ct state invalid drop
                    }}
                }}"
            ),
        ]);
        Self { lab, pod }
    }
}

/// SYNs that come beside open connections.
const SYNS: usize = 600_000;

/// Another SYN for each number, to a port of the node.
fn forged(port: u16, number: u32) -> (IpAddr, Vec<u8>) {
    let from = 1024 + u16::try_from(number >> 17).expect("fewer than 2^33 numbers");
    let from = SocketAddr::new(spoofed_addr(Family::V4, number & 0x1_ffff), from);
    let to = Family::V4.host(port);
    let seq = number.wrapping_mul(0x9e37_79b9);
    (to.ip(), tcp(from, to, Segment::Syn, (seq, 0)))
}

/// Connections to a port live through a flood of SYNs to that port, be they idle or not.
fn survive(node: &Node, port: u16, others: &mut [TcpPair]) {
    let Node { lab, pod } = node;
    add_spoofed_networks(&lab.host);
    let acceptor = Acceptor::start(pod, 8080);
    let open = |family: Family| TcpPair::new(&lab.client, &acceptor, 0, family.host(port));
    let mut silent = Family::BOTH.map(open);
    let mut busy = Family::BOTH.map(open);
    for pair in silent.iter_mut().chain(&mut busy) {
        pair.exchange(100, "at first");
    }
    let flood = Flood::start(&lab.client, Duration::from_micros(300), move |number| {
        forged(port, number)
    });
    while flood.sent() < SYNS {
        for pair in &mut busy {
            pair.exchange(700, "in the flood");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let sent = flood.end();
    note(&format!("{sent} SYNs"));
    // The server speaks first.
    for pair in silent.iter_mut().chain(&mut busy).chain(others) {
        pair.exchange(300, "after the flood");
    }
}

fn flood(cell: &Cell) {
    allow(Duration::from_secs(150));
    let node = Node::new();
    let local = Acceptor::start(&node.lab.host, 9090);
    let args = [
        "--iface",
        "h0",
        "--engine",
        cell.engine,
        "80:30080/both",
        "90:9090",
    ];
    let redirector = Redirector::start(&node.lab.host, &args);
    let to_local = TcpPair::new(&node.lab.client, &local, 0, Family::V4.host(90));
    let mut others = [to_local];
    others[0].exchange(100, "at first");
    survive(&node, 80, &mut others);
    for pair in others {
        pair.close(End::Reset);
    }
    redirector.stop();
    node.lab.check_checksums();
}

/// Without portredir all of it holds as well.
fn without_us() {
    allow(Duration::from_secs(150));
    let node = Node::new();
    survive(&node, 30080, &mut []);
    node.lab.check_checksums();
}

/// `down` waits for the flows, which continue, and ends when they end.
fn down(cell: &Cell) {
    let node = Node::new();
    let Node { lab, pod } = &node;
    let acceptor = Acceptor::start(pod, 8080);
    let host = Host::of(lab);
    host.up(&["--engine", cell.engine, "80:30080/both"]);
    let mut pairs =
        Family::BOTH.map(|family| TcpPair::new(&lab.client, &acceptor, 0, family.host(80)));
    for pair in &mut pairs {
        pair.exchange(100, "before");
    }
    let mut down = host.start(&["down", "--drain-timeout", "60"]);
    for round in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        for pair in &mut pairs {
            pair.exchange(100, &format!("in round {round} of the drain"));
        }
    }
    let status = down.try_wait();
    assert!(status.is_none(), "down did not wait: {}", down.err());
    for family in Family::BOTH {
        assert!(is_refused(&lab.client, Proto::Tcp, family.host(80)));
    }
    let [first, second] = pairs;
    // One by FIN of both ends, one by RST.
    first.close(End::Client);
    second.close(End::Reset);
    let soon = Duration::from_secs(2);
    let status = wait_within(soon, "the end of down", || down.try_wait());
    assert_eq!(status.code(), Some(0), "{}", down.err());
}

/// Somebody's DNAT counts as a server that listens; a port without one does not.
fn if_listening(cell: &Cell) {
    let node = Node::new();
    let Node { lab, pod } = &node;
    let _pod = Server::start(pod, "pod", 8080, Manner::Echo);
    let _beside = Server::start(&lab.host, "81 itself", 81, Manner::Echo);
    let host = Host::of(lab);
    let rules = ["80:30080/both", "81:31000/both"];
    let options = ["--engine", cell.engine, "--if-listening"];
    host.up(&[&options[..], &rules].concat());
    for family in Family::BOTH {
        for proto in PROTOS {
            for (port, name) in [(80, "pod"), (81, "81 itself")] {
                let to = family.host(port);
                let conversation = Conversation::begin(&lab.client, proto, 0, to);
                let conversation = conversation
                    .unwrap_or_else(|error| panic!("{proto:?} to {to}, {name}: {error}"));
                assert_eq!(conversation.name, name, "{proto:?} to {to}");
            }
        }
    }
    host.down();
    lab.check_checksums();
}

/// The watcher notices that somebody's DNAT is gone, and that it is back.
fn comes_and_goes(cell: &Cell) {
    allow(Duration::from_secs(60));
    let node = Node::new();
    let Node { lab, pod } = &node;
    let _pod = Server::start(pod, "pod", 8080, Manner::Echo);
    let _beside = Server::start(&lab.host, "80 itself", 80, Manner::Echo);
    let host = Host::of(lab);
    host.up(&["--engine", cell.engine, "--if-listening", "80:30080/both"]);
    let wait_for = |name: &str| {
        for proto in PROTOS {
            wait_within(Duration::from_secs(10), name, || {
                let to = Family::V4.host(80);
                let conversation = Conversation::begin(&lab.client, proto, 0, to).ok()?;
                (conversation.name == name).then_some(())
            });
        }
    };
    wait_for("pod");
    let table = lab
        .host
        .run(&["nft", "list", "table", "inet", "kube-proxy"]);
    lab.host
        .run(&["nft", "delete", "table", "inet", "kube-proxy"]);
    wait_for("80 itself");
    lab.host.run(&["nft", &table]);
    wait_for("pod");
    host.down();
    lab.check_checksums();
}
