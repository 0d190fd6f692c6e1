//! Tunnels, of which some show TC the header that a packet came out of: IPsec by routes,
//! and GRE with many peers. Most are modules that not every kernel has.

use crate::lab::esp::Esp;
use crate::lab::{Family, Lab, add_addrs, link};
use crate::path::link::redirects_all;
use crate::{Cell, Tests, skip};

/// A kind of tunnel between host and client.
struct Tunnel {
    name: &'static str,
    /// The family of the outer header.
    outer: Family,
    /// The type and its options; `OWN` and `OTHER` are the addresses of the outer header,
    /// `DEVICE` is the link below.
    link: &'static str,
    peers: Peers,
    /// The options of the kernel that it needs.
    needs: &'static str,
}

/// The way in which a tunnel knows its peers.
#[derive(Clone, Copy)]
enum Peers {
    /// One peer, which the tunnel names.
    One,
    /// Neighbours.
    Many,
    /// IPsec, limited by these words.
    Esp(&'static str),
}

const XFRM: &str = "xfrm dev DEVICE if_id 7";
const NEEDS_XFRM: &str = "needs CONFIG_XFRM_INTERFACE";
const NEEDS_GRE: &str = "needs CONFIG_NET_IPGRE";

const TUNNELS: [Tunnel; 10] = [
    Tunnel {
        name: "xfrm",
        outer: Family::V4,
        link: XFRM,
        peers: Peers::Esp("if_id 7"),
        needs: NEEDS_XFRM,
    },
    Tunnel {
        name: "xfrm_by_v6",
        outer: Family::V6,
        link: XFRM,
        peers: Peers::Esp("if_id 7"),
        needs: NEEDS_XFRM,
    },
    Tunnel {
        name: "vti",
        outer: Family::V4,
        link: "vti local OWN remote OTHER key 7",
        peers: Peers::Esp("mark 7"),
        needs: "needs CONFIG_NET_IPVTI",
    },
    Tunnel {
        name: "vti6",
        outer: Family::V6,
        link: "vti6 local OWN remote OTHER key 7",
        peers: Peers::Esp("mark 7"),
        needs: "needs CONFIG_IPV6_VTI",
    },
    Tunnel {
        name: "gre_of_many",
        outer: Family::V4,
        link: "gre local OWN",
        peers: Peers::Many,
        needs: NEEDS_GRE,
    },
    Tunnel {
        name: "gre_of_many_with_key",
        outer: Family::V4,
        link: "gre local OWN key 7 csum seq",
        peers: Peers::Many,
        needs: NEEDS_GRE,
    },
    Tunnel {
        name: "gre",
        outer: Family::V4,
        link: "gre local OWN remote OTHER key 7 csum",
        peers: Peers::One,
        needs: NEEDS_GRE,
    },
    Tunnel {
        name: "ip6gre",
        outer: Family::V6,
        link: "ip6gre local OWN remote OTHER",
        peers: Peers::One,
        needs: "needs CONFIG_IPV6_GRE",
    },
    Tunnel {
        name: "sit",
        outer: Family::V4,
        link: "sit local OWN remote OTHER mode any",
        peers: Peers::One,
        needs: "needs CONFIG_IPV6_SIT",
    },
    Tunnel {
        name: "ip6tnl",
        outer: Family::V6,
        link: "ip6tnl local OWN remote OTHER mode any",
        peers: Peers::One,
        needs: "needs CONFIG_IPV6_TUNNEL",
    },
];

pub fn add(tests: &mut Tests) {
    for engine in ["tc", "xdp-generic"] {
        let cell = Cell {
            engine,
            is_offloaded: false,
            family: Family::V4,
        };
        for tunnel in &TUNNELS {
            let name = format!("{engine}/tunnel_{}", tunnel.name);
            let tools = &["curl", "python3"];
            tests.add(name, tools, move || tunneled(&cell, tunnel));
        }
    }
}

fn tunneled(cell: &Cell, tunnel: &Tunnel) {
    let lab = Lab::unlinked();
    link((&lab.host, "h9", (3, 1)), (&lab.client, "c9", (3, 2)));
    let [host_end, client_end] = [1, 2].map(|number| tunnel.outer.addr(3, number));
    let ends = [
        (&lab.host, ["h0", "h9"], [host_end, client_end]),
        (&lab.client, ["c0", "c9"], [client_end, host_end]),
    ];
    for (number, (at, [name, device], [own, other])) in (1..).zip(ends) {
        let words = tunnel.link.replace("OWN", &own.to_string());
        let words = words.replace("OTHER", &other.to_string());
        let add = format!("ip link add {name} type {words}").replace("DEVICE", device);
        if !at.succeeds(&add.split(' ').collect::<Vec<_>>()) {
            skip(tunnel.needs);
        }
        add_addrs(at, name, (1, number));
        if let Peers::Many = tunnel.peers {
            for family in Family::BOTH {
                let neighbour = family.addr(1, 3 - number);
                at.ip(&format!(
                    "neigh add {neighbour} lladdr {other} dev {name} nud permanent"
                ));
            }
        }
    }
    if let Peers::Esp(limit) = tunnel.peers {
        let esp = Esp {
            ends: [host_end, client_end],
            mode: "tunnel",
            limit,
        };
        esp.add_states(&lab);
        for all in ["0.0.0.0/0", "::/0"] {
            esp.add_policies(&lab, [all, all]);
        }
    }
    redirects_all(cell, &lab);
}
