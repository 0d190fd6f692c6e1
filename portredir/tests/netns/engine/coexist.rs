//! Firewalls and containers beside portredir: each works as before, and so does the
//! redirect.
//!
//! The conformance suite ([`crate::conformance`]) compares portredir with nftables.
//! The rows of its first 84 about state, the host itself, devices and coexistence have
//! tests of their own as well (see also the table of [`crate::path::paths`]):
//!
//! | row | what | tests |
//! |---|---|---|
//! | 4 | a connection to the target port itself | `direct_beside_redirected` |
//! | 51 | one client port to both ports | `one_client_port` |
//! | 58 | connection that is older than we are | `older_connection` |
//! | 59 | stop with live connections | `stop_with_live_connection`, `attach_and_detach` |
//! | 60 | upgrade | `up_again` |
//! | 62 | in by one interface, out by another | `asymmetric_route` |
//! | 63 | the host connects to itself | `own_addresses`, `link_local` |
//! | 64 | the same behind `ct state invalid drop` | `local_invalid_drop` |
//! | 65 | UDP to an own address | `own_addresses` |
//! | 66 | container to the host | `bridge`, `published_container` |
//! | 67 | container to container | `bridge` |
//! | 68 | forwarded | `routed` |
//! | 69 | a container connects to itself | `other_namespace` |
//! | 70 | the host connects to others from port 8080 | `from_target_port` |
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
//! | 84 | kinds of listeners | `reuseport_group`, `ipv6_only`; dual-stack: [`EchoServer`], all tests |

use std::time::Duration;

use serde_json::Value;

use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;
use crate::lab::program::{Redirector, packets};
use crate::lab::{Family, Lab, add_addrs, link};
use crate::peer::conn::{Conn, PROTOS, Proto, answers, is_refused};
use crate::peer::echo::EchoServer;
use crate::peer::http::http_server;
use crate::peer::http::{get, noise, put};
use crate::{Cell, ENGINES, Tests};

pub fn add(tests: &mut Tests) {
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
}

pub const AUTO: Cell = Cell {
    engine: "auto",
    is_offloaded: true,
    family: Family::V4,
};

/// Checks that clients reach the server by the destination and by the target port,
/// over IPv4 and IPv6.
pub fn check_both_ports(lab: &Lab, server: &EchoServer) {
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

/// Checks one redirected TCP connection over IPv4.
pub fn check_redirected(lab: &Lab) {
    Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80)).echo(b"to the target");
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
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    nft(&lab.host, STATEFUL);
    check_both_ports(&lab, &server);
    // Long enough for several windows.
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    let (_, noise) = noise(&lab.dir, 60_000);
    (0..20).for_each(|_| conn.echo(&noise));
    drop(conn);
    assert_eq!(nft_count(&lab.host, "invalid"), 0);
    assert_eq!(nft_count(&lab.host, "other"), 0, "not to the target port");
    redirector.finish(&lab);
}

/// Conntrack finds no INVALID packet in local traffic either.
fn local_invalid_drop() {
    let lab = Lab::new(&AUTO);
    let echo = EchoServer::start(&lab.host, 8080);
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
    let _server = EchoServer::start(&lab.host, 8080);
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
    check_redirected(&lab);
    assert!(answers(&lab.client, Proto::Udp, Family::V4.host(80)));
    allow_only(80);
    // The SYN is lost: this uses UDP alone, whose timeout is short.
    assert!(!answers(&lab.client, Proto::Udp, Family::V4.host(80)));
    allow_only(8080);
    check_redirected(&lab);
    redirector.finish(&lab);
}

/// The rules that Docker adds for a container that publishes its port 80 as 8080.
const DOCKER: &str = "table ip nat {
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
    }";

/// Docker with `-p 8080:80`: the port is published by DNAT to a container
/// behind a bridge; what the container sends is masqueraded.
fn published_container(cell: &Cell) {
    let mut lab = Lab::new(cell);
    lab.far = Some(lab.third());
    let container = lab.far();
    link((&lab.host, "veth7", (3, 7)), (container, "eth0", (3, 2)));
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
    nft(&lab.host, DOCKER);
    let _server = http_server(container, 80);
    let neighbour = EchoServer::start(&lab.client, 9000);
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
    // The container itself, also packets that it sends from port 80, is left alone.
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
