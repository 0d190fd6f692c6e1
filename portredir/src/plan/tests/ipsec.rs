//! Clients behind IPsec policies.

use portredir_common::map::local;
use portredir_common::net::Addr;

use super::*;
use crate::sys::xfrm::Policy;

fn policy(src: &str, dst: &str) -> Policy {
    Policy {
        src: src.parse().expect("a network"),
        dst: dst.parse().expect("a network"),
        needs_mark: false,
        needs_interface: false,
    }
}

/// A host with the address 10.9.5.1 and these policies.
fn host(policies: impl IntoIterator<Item = Policy>) -> Snapshot {
    let addr: std::net::IpAddr = "10.9.5.1".parse().expect("an address");
    let addrs = std::collections::HashMap::from([(Addr::from(addr).octets(), local::ANYWHERE)]);
    Snapshot {
        local: addrs.into(),
        policies: policies.into_iter().collect(),
        ..snapshot([
            interface(1, "lo"),
            driver(2, "eth0", "i40e"),
            on(kind(3, "eth0.5", "vlan"), 2),
            Interface {
                link: Link::Ip,
                ..kind(4, "ipsec0", "xfrm")
            },
        ])
    }
}

/// The interfaces on which listeners get the connections out of IPsec.
fn by_socket(snapshot: &Snapshot, text: &str) -> Vec<u32> {
    plan(snapshot, text).ipsec.by_socket.into_iter().collect()
}

#[test]
fn auto_leaves_what_comes_out_of_ipsec_to_listeners() {
    let snapshot = host([
        policy("10.9.5.0/24", "10.9.6.0/24"),
        policy("0.0.0.0/0", "10.7.0.0/16"),
    ]);
    // All others are redirected as before; a VLAN delivers its packets itself.
    assert_eq!(by_socket(&snapshot, ""), [2, 3]);
    assert_eq!(by_socket(&snapshot, "--iface eth0"), [2]);
    let plan = plan(&snapshot, "");
    assert_eq!(plan.attach[&2].engine, Engine::XdpNative);
    assert_eq!(
        plan.notes,
        [
            "IPsec policy 10.9.5.0/24 to 10.9.6.0/24 and 1 more: replies are encrypted before TC \
             can restore their port; TCP connections of clients behind it are given to listeners \
             (sk_lookup), and INPUT sees the port before redirection"
        ]
    );
}

#[test]
fn other_engines_say_what_to_type() {
    let snapshot = host([policy("10.9.5.1/32", "10.9.6.1/32")]);
    for engine in ["tc", "xdp-generic"] {
        let plan = plan(&snapshot, &format!("--engine {engine}"));
        assert!(plan.ipsec.by_socket.is_empty());
        let note = plan.ipsec.note.expect("a note");
        assert!(note.contains("use --engine auto"), "{note}");
    }
    assert_eq!(plan(&snapshot, "--engine socket").ipsec, Ipsec::default());
}

#[test]
fn policies_that_encrypt_no_reply_here_do_not_count() {
    for policies in [
        vec![],
        // What this host forwards for others.
        vec![policy("10.8.0.0/16", "10.9.6.0/24"), policy("::/0", "::/0")],
        vec![Policy {
            needs_interface: true,
            ..policy("0.0.0.0/0", "0.0.0.0/0")
        }],
    ] {
        assert_eq!(plan(&host(policies), "").ipsec, Ipsec::default());
    }
    // A mark is for VTI, where there is one.
    let marked = Policy {
        needs_mark: true,
        ..policy("0.0.0.0/0", "0.0.0.0/0")
    };
    let mut snapshot = host([marked]);
    assert_eq!(by_socket(&snapshot, ""), [2, 3]);
    let vti = Interface {
        link: Link::Ip,
        ..kind(5, "vti0", "vti")
    };
    snapshot.interfaces.insert(5, vti);
    assert_eq!(plan(&snapshot, "").ipsec, Ipsec::default());
}
