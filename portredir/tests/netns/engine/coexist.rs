//! What others have attached, or filter, or route: each goes on as before, and
//! the redirect works too.
//!
//! The conformance suite ([`crate::conformance`]) compares us with nftables. Of
//! its first 84 rows, those about state, the host itself, devices and coexistence
//! are also tested, each on its own, by (see the table of [`crate::path::paths`] too)
//!
//! | row | what | tests |
//! |---|---|---|
//! | 4 | the target port dialled directly | `direct_beside_redirected` |
//! | 51 | one client port to both ports | `one_client_port` |
//! | 58 | connection that is older than we are | `older_connection` |
//! | 59 | stop with live connections | `stop_with_live_connection`, `attach_and_detach` |
//! | 60 | upgrade | `up_again` |
//! | 62 | in by one interface, out by another | `asymmetric_route` |
//! | 63 | the host dials itself | `own_addresses`, `link_local` |
//! | 64 | the same behind `ct state invalid drop` | `local_invalid_drop` |
//! | 65 | UDP to an own address | `own_addresses` |
//! | 66 | container to the host | `bridge`, `published_container` |
//! | 67 | container to container | `bridge` |
//! | 68 | forwarded | `routed` |
//! | 69 | a container dials itself | `other_namespace` |
//! | 70 | the host dials out from port 8080 | `from_target_port` |
//! | 71 | tun | `tun` |
//! | 72 | VLAN | `vlan_device`, `vlan_tag`, `two_vlan_tags` |
//! | 73 | bridge and port in every order | `one_hook` and what begins so |
//! | 74 | interfaces that change | `churn`, `interface_…` |
//! | 75 | addresses that change | `churn`, `address_comes_and_goes`, `many_addresses` |
//! | 76 | foreign XDP | `foreign_xdp_…` |
//! | 77 | foreign TCX and clsact | `foreign_tcx_…`, `foreign_clsact_…`, `foreign_filter_…` |
//! | 78 | the firewall's INPUT | `input_firewall` |
//! | 79, 27 | port 8080 published by Docker | `published_container` |
//! | 80 | `kill -9` | `kill_9`, `lro_comes_back` |
//! | 81 | two instances | `second_instance` |
//! | 82 | server that starts again | `server_restart`; engine `socket`: not here |
//! | 83 | target bound to 127.0.0.1 | `target_on_loopback`; engine `socket`: not here |
//! | 84 | kinds of listeners | `reuseport_group`, `ipv6_only`; dual-stack: [`Echo`], all tests |

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::lab::capture::Capture;
use crate::lab::foreign::{Foreign, NEXT, OK, PASS};
use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;
use crate::lab::program::{Redirector, attached, has_tcx, packets};
use crate::lab::{Family, Lab, add_addrs, link};
use crate::peer::conn::{Conn, PROTOS, Proto, answers, is_refused};
use crate::peer::echo::{self, Echo};
use crate::peer::http::{get, noise, put};
use crate::{Cell, ENGINES, Tests, skip};

pub fn add(tests: &mut Tests) {
    for position in ["native", "generic", "native-netlink", "generic-netlink"] {
        let name = format!("foreign_xdp_dispatcher_{position}");
        tests.add(name, &["python3"], move || foreign_xdp(position));
    }
    tests.add_for(&["xdp"], "foreign_xdp_comes_later", &["python3"], |cell| {
        foreign_xdp_comes_later(cell);
    });
    for engine in ["tc", "xdp"] {
        for position in ["first", "last"] {
            for (when, is_later) in [("older", false), ("later", true)] {
                let name = format!("{engine}/foreign_tcx_{when}_{position}");
                tests.add(name, &["python3"], move || {
                    foreign_tcx(engine, position, is_later);
                });
            }
        }
    }
    for engine in ["tc", "tc-clsact", "xdp"] {
        for pref in ["1", "10"] {
            for (what, verdict) in [("next", NEXT), ("final", OK)] {
                let name = format!("{engine}/foreign_clsact_{what}_at_{pref}");
                tests.add(name, &["python3"], move || {
                    foreign_clsact(engine, pref, verdict);
                });
            }
        }
    }
    tests.add_for(&ENGINES, "sniffer", &[], sniffer);
    tests.add_for(&ENGINES, "invalid_drop", &["nft"], invalid_drop);
    tests.add_for(&ENGINES, "input_firewall", &["nft"], input_firewall);
    tests.add_for(&["auto"], "local_invalid_drop", &["nft"], |_| {
        local_invalid_drop();
    });
    for (engine, is_offloaded) in [
        ("auto", true),
        ("auto", false),
        ("tc-clsact", true),
        ("tc-clsact", false),
        // XDP does not know that a checksum is yet to be computed.
        ("xdp", false),
        ("xdp-generic", false),
    ] {
        let tx = if is_offloaded { "tx-on" } else { "tx-off" };
        let name = format!("{engine}/{tx}/published_container");
        let cell = Cell {
            engine,
            is_offloaded,
            family: Family::V4,
        };
        tests.add(name, &["nft", "curl", "python3"], move || {
            published_container(&cell);
        });
    }
    tests.add("xdp-generic/lro_comes_back", &[], lro_comes_back);
}

const AUTO: Cell = Cell {
    engine: "auto",
    is_offloaded: true,
    family: Family::V4,
};

/// Conversations by the dialled and by the target port, IPv4 and IPv6.
fn works(lab: &Lab, server: &Echo) {
    for family in Family::BOTH {
        for proto in PROTOS {
            for port in [80, 8080] {
                let message = format!("{family:?} {proto:?} by {port}");
                let mut conn = Conn::to(&lab.client, proto, 0, family.host(port));
                conn.echo(message.as_bytes());
                server.peer(proto, message.as_bytes());
            }
        }
    }
}

/// One conversation by TCP with the dialled port, IPv4.
fn redirects(lab: &Lab) {
    Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80)).echo(b"to the target");
}

/// The engine `auto` steps aside and says for whom, also for a program that
/// runs others, and however it was attached.
fn foreign_xdp(position: &'static str) {
    let lab = Lab::new(&AUTO);
    let server = Echo::start(&lab.host, 8080);
    let name = "xdp_dispatcher";
    let foreign = Foreign::attach(&lab.host, ("xdp", position), "h0", name, PASS);
    let before = attached(&lab.host);
    assert_eq!(before, ["h0 xdp xdp_dispatcher"]);
    let redirector = Redirector::of(&AUTO, &lab, &["80:8080/both"]);
    let plan = redirector.process.err();
    assert!(plan.contains("taken by xdp_dispatcher (id "), "{plan}");
    let both = attached(&lab.host);
    assert_eq!(both[0], before[0]);
    assert_eq!(both.len(), 3, "{both:?}");
    let seen = foreign.packets(80);
    works(&lab, &server);
    assert!(
        foreign.packets(80) > seen,
        "it comes first and sees the wire"
    );
    redirector.finish(&lab);
    assert_eq!(attached(&lab.host), before);
    let seen = foreign.packets(8080);
    Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(8080)).echo(b"directly");
    assert!(foreign.packets(8080) > seen, "it still runs");
}

/// Nobody takes our place unasked.
fn foreign_xdp_comes_later(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = Echo::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    let programs = attached(&lab.host);
    for position in ["native", "generic", "native-netlink", "generic-netlink"] {
        assert!(
            Foreign::is_refused(&lab.host, ("xdp", position), "h0"),
            "{position}"
        );
    }
    assert!(
        !lab.host
            .succeeds(&["ip", "link", "set", "h0", "xdp", "off"])
    );
    assert_eq!(attached(&lab.host), programs);
    works(&lab, &server);
    redirector.finish(&lab);
}

/// TCX programs before and behind ours see each packet; behind ours also those
/// that end the chain are welcome.
fn foreign_tcx(engine: &'static str, position: &str, is_later: bool) {
    let cell = Cell { engine, ..AUTO };
    let lab = Lab::new(&cell);
    if !lab.host.enter(has_tcx) {
        skip("needs TCX, Linux 6.6");
    }
    let server = Echo::start(&lab.host, 8080);
    let attach = |position, verdict| {
        ["ingress", "egress"]
            .map(|hook| Foreign::attach(&lab.host, (hook, position), "h0", "foreign", verdict))
    };
    // Ours ask to be first, so only who comes later can be before them.
    let is_before = is_later && position == "first";
    let start = || Redirector::of(&cell, &lab, &["80:8080/both"]);
    let (redirector, foreign) = if is_later {
        let redirector = start();
        (redirector, attach(position, NEXT))
    } else {
        let foreign = attach(position, NEXT);
        (start(), foreign)
    };
    works(&lab, &server);
    let [ingress, egress] = &foreign;
    let before = [ingress.packets(80), egress.packets(80)];
    let before_target = [ingress.packets(8080), egress.packets(8080)];
    redirects(&lab);
    let grew = |old: u64, new: u64| new > old;
    // XDP rewrites before all TC programs. With TC, packets have the target
    // port behind ours on the way in, and the dialled one on the way out.
    let is_wire = is_before && engine == "tc";
    assert_eq!(grew(before[0], ingress.packets(80)), is_wire);
    assert_eq!(grew(before_target[0], ingress.packets(8080)), !is_wire);
    assert_eq!(grew(before[1], egress.packets(80)), !is_before);
    assert_eq!(grew(before_target[1], egress.packets(8080)), is_before);
    if !is_before {
        let last = attach("last", OK);
        works(&lab, &server);
        drop(last);
    }
    redirector.finish(&lab);
    let seen = ingress.packets(8080);
    Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(8080)).echo(b"directly");
    assert!(ingress.packets(8080) > seen, "it still runs");
}

/// Filters of others, which may end the chain, run behind ours.
fn foreign_clsact(engine: &'static str, pref: &str, verdict: i8) {
    let cell = Cell { engine, ..AUTO };
    let lab = Lab::new(&cell);
    let server = Echo::start(&lab.host, 8080);
    lab.host.run(&["tc", "qdisc", "add", "dev", "h0", "clsact"]);
    let [ingress, egress] = ["ingress", "egress"]
        .map(|hook| Foreign::attach(&lab.host, (hook, pref), "h0", "foreign", verdict));
    let before = attached(&lab.host);
    let redirector = Redirector::of(&cell, &lab, &["80:8080/both"]);
    works(&lab, &server);
    let seen = [ingress.packets(8080), egress.packets(80)];
    redirects(&lab);
    assert!(ingress.packets(8080) > seen[0], "its ingress filter runs");
    assert!(egress.packets(80) > seen[1], "its egress filter runs");
    redirector.finish(&lab);
    assert_eq!(attached(&lab.host), before);
    let seen = ingress.packets(8080);
    Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(8080)).echo(b"directly");
    assert!(ingress.packets(8080) > seen, "it still runs");
}

/// tcpdump on the host: the wire with TC; with XDP the target port on the way
/// in, as XDP comes before it.
fn sniffer(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = Echo::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    let inside = Capture::start(&lab.host, "h0", "tcp or udp");
    let outside = Capture::start(&lab.client, "c0", "tcp or udp");
    for proto in PROTOS {
        Conn::to(&lab.client, proto, 0, Family::V4.host(80)).echo(b"seen");
    }
    // The last one is a datagram from the host.
    for capture in [&inside, &outside] {
        capture.wait_for("the answer", |frame| {
            (frame[23] == 17 && ports(frame).0 == 80).then_some(())
        });
    }
    let here = |capture: &Capture| {
        let client = Family::V4.addr(1, 2).to_string();
        let is_from_client = |frame: &[u8]| {
            let source: [u8; 4] = frame[26..30].try_into().expect("an address");
            std::net::Ipv4Addr::from(source).to_string() == client
        };
        let frames = capture.frames();
        let (to, from): (Vec<_>, Vec<_>) = frames.iter().partition(|frame| is_from_client(frame));
        let to: BTreeSet<_> = to.iter().map(|frame| ports(frame).1).collect();
        let from: BTreeSet<_> = from.iter().map(|frame| ports(frame).0).collect();
        (to, from)
    };
    let only = |port| BTreeSet::from([port]);
    let port_in = if cell.engine.starts_with("xdp") {
        8080
    } else {
        80
    };
    assert_eq!(here(&inside), (only(port_in), only(80)), "on the host");
    assert_eq!(here(&outside), (only(80), only(80)), "on the wire");
    redirector.finish(&lab);
}

/// Source and destination port of IPv4 without options.
fn ports(frame: &[u8]) -> (u16, u16) {
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (port(34), port(36))
}

/// Adds rules of nftables.
fn nft(namespace: &Namespace, ruleset: &str) {
    namespace.run(&["nft", ruleset]);
}

/// Packets that the counters of a table have counted.
fn nft_count(namespace: &Namespace, name: &str) -> u64 {
    let json = namespace.run(&["nft", "-j", "list", "counters"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let all = json["nftables"].as_array().expect("a list");
    let counter = all.iter().find(|item| item["counter"]["name"] == name);
    let counter = counter.unwrap_or_else(|| panic!("no counter {name}: {json}"));
    counter["counter"]["packets"].as_u64().expect("a number")
}

/// A firewall that knows connections.
const STATEFUL: &str = "
    table inet lab {
        counter invalid {}
        counter other {}
        chain input {
            type filter hook input priority 0; policy accept;
            ct state invalid counter name invalid drop
            ct state established,related accept
            meta l4proto { tcp, udp } th dport { 8080, 7778 } accept
            meta l4proto { tcp, udp } counter name other
        }
        chain output {
            type filter hook output priority 0; policy accept;
            ct state invalid counter name invalid drop
        }
    }";

/// Conntrack sees a plain connection to the target port, both ways.
fn invalid_drop(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = Echo::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    nft(&lab.host, STATEFUL);
    works(&lab, &server);
    // Long enough for several windows.
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    let (_, noise) = noise(&lab.dir, 60_000);
    (0..20).for_each(|_| conn.echo(&noise));
    drop(conn);
    assert_eq!(nft_count(&lab.host, "invalid"), 0);
    assert_eq!(nft_count(&lab.host, "other"), 0, "not to the target port");
    redirector.finish(&lab);
}

/// The same where the host talks to itself.
fn local_invalid_drop() {
    let lab = Lab::new(&AUTO);
    let echo = Echo::start(&lab.host, 8080);
    let redirector = Redirector::start(&lab.host, &["--iface", "all", "80:8080/both"]);
    nft(&lab.host, STATEFUL);
    let own = Family::BOTH.map(|family| family.host(80));
    let loopback = ["127.0.0.1:80", "[::1]:80"].map(|addr| addr.parse().expect("an address"));
    for proto in PROTOS {
        for to in own.into_iter().chain(loopback) {
            let message = format!("{proto:?} {to}");
            Conn::to(&lab.host, proto, 0, to).echo(message.as_bytes());
            echo.peer(proto, message.as_bytes());
        }
    }
    assert_eq!(nft_count(&lab.host, "invalid"), 0);
    redirector.finish(&lab);
}

/// The firewall of the host sees the target port: that one has to be open.
fn input_firewall(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = Echo::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    let allow_only = |port| {
        nft(
            &lab.host,
            &format!(
                "table inet lab {{ }}; delete table inet lab; table inet lab {{
                    chain input {{
                        type filter hook input priority 0; policy accept;
                        meta l4proto {{ tcp, udp }} th dport {{ 80, 8080 }} jump one
                    }}
                    chain one {{
                        th dport {port} accept
                        drop
                    }}
                }}"
            ),
        );
    };
    allow_only(8080);
    redirects(&lab);
    assert!(answers(&lab.client, Proto::Udp, Family::V4.host(80)));
    allow_only(80);
    // The SYN is lost: ask by UDP alone, whose patience is short.
    assert!(!answers(&lab.client, Proto::Udp, Family::V4.host(80)));
    allow_only(8080);
    redirects(&lab);
    redirector.finish(&lab);
}

/// Docker with `-p 8080:80`: the port is published by DNAT to a container
/// behind a bridge; what the container sends is masqueraded.
fn published_container(cell: &Cell) {
    let mut lab = Lab::new(cell);
    lab.far = Some(lab.third());
    let container = lab.far();
    link(&lab.host, "veth7", (3, 7), container, "eth0", (3, 2));
    lab.host.ip("addr flush dev veth7\n\
         link add docker0 type bridge\n\
         link set veth7 master docker0");
    add_addrs(&lab.host, "docker0", (3, 1));
    container.ip("route add default via 10.9.3.1");
    lab.host.sysctl("ipv4/ip_forward", "1");
    if !cell.is_offloaded {
        container.run(&["ethtool", "-K", "eth0", "tx", "off"]);
        lab.host.run(&["ethtool", "-K", "veth7", "tx", "off"]);
    }
    nft(
        &lab.host,
        "table ip nat {
            chain prerouting {
                type nat hook prerouting priority dstnat;
                fib daddr type local jump docker
            }
            chain output {
                type nat hook output priority -100;
                ip daddr != 127.0.0.0/8 fib daddr type local jump docker
            }
            chain postrouting {
                type nat hook postrouting priority srcnat;
                ip saddr 10.9.3.0/24 oifname != docker0 masquerade
            }
            chain docker {
                iifname docker0 return
                tcp dport 8080 dnat to 10.9.3.2:80
            }
        }",
    );
    let _server = echo::http(container, 80);
    let neighbour = Echo::start(&lab.client, 9000);
    wait_for("the published port", || {
        answers_http(&lab, 8080).then_some(())
    });
    let iface = match cell.engine {
        // No native XDP on a bridge.
        "xdp" => "h0",
        _ => "all",
    };
    let args = ["--iface", iface, "--engine", cell.engine, "80:8080"];
    let redirector = Redirector::start(&lab.host, &args);
    let (file, noise) = noise(&lab.dir, 2_000_000);
    for port in [80, 8080] {
        put(&lab.client, &file, Family::V4.host(port));
        let answer = get(&lab.client, &lab.dir, Family::V4.host(port));
        assert!(answer == noise, "{} bytes came by {port}", answer.len());
    }
    // The container itself, also what it sends from port 80, is let alone.
    let to = (Family::V4.addr(1, 2), 9000).into();
    for proto in PROTOS {
        let message = format!("masqueraded {proto:?}");
        Conn::to(container, proto, 0, to).echo(message.as_bytes());
        let peer = neighbour.peer(proto, message.as_bytes());
        assert_eq!(peer.ip().to_canonical(), Family::V4.addr(1, 1));
    }
    let report = redirector.finish(&lab);
    assert!(packets(&report, 0) > 100, "{report}");
    assert!(is_refused(&lab.client, Proto::Tcp, Family::V4.host(80)));
    assert!(answers_http(&lab, 8080));
}

fn answers_http(lab: &Lab, port: u16) -> bool {
    let url = format!("http://{}/", Family::V4.host(port));
    let limit = Duration::from_secs(2).as_secs().to_string();
    let mut args = vec!["curl", "-qsSf", "--noproxy", "*"];
    args.extend(["--max-time", &limit, &url]);
    lab.client.succeeds(&args)
}

/// Generic XDP takes the host's LRO; it comes back. Needs a device that has it.
fn lro_comes_back() {
    let lab = Lab::new(&AUTO);
    lab.host
        .ip("link add link h0 name mv0 type macvlan\nlink set mv0 up");
    lab.host.succeeds(&["ethtool", "-K", "mv0", "lro", "on"]);
    let lro = || {
        let features = lab.host.run(&["ethtool", "-k", "mv0"]);
        let line = features.lines().find(|line| line.starts_with("large-rec"));
        line.expect("a line about LRO").to_owned()
    };
    let before = lro();
    if !before.contains(": on") {
        skip("needs a device with LRO or hardware GRO; no virtual one here has them");
    }
    let args = ["--iface", "mv0", "--engine", "xdp-generic", "80:8080"];
    let redirector = Redirector::start(&lab.host, &args);
    assert!(lro().contains(": off"), "{}", lro());
    redirector.stop();
    assert_eq!(lro(), before);
}
