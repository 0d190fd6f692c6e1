//! The hosts of the paths.
//!
//! ```text
//!   client 1 c0 ---- h0 host h1 ---- c0 client 2
//!   client 1 c2 ---- h2 host
//!                      br0
//!           port-a ----' '---- port-b
//!   container A a0             b0 container B
//! ```

use std::net::SocketAddr;

use crate::lab::cgroup::Cgroup;
use crate::lab::flap::flap;
use crate::lab::namespace::Namespace;
use crate::lab::process::{Process, wait_for};
use crate::lab::program::PROGRAM;
use crate::lab::{Family, Lab, add_addrs, link, wait_for_route};
use crate::lifecycle::oracle::carriers;
use crate::peer::whoami::whoami_server;

/// Whether netfilter's hooks for IP can run for what crosses a bridge.
pub fn has_br_netfilter() -> bool {
    std::path::Path::new("/proc/sys/net/bridge").exists()
}

/// The places of clients and servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Client1,
    Client2,
    Host,
    A,
    B,
}

impl Place {
    /// The name in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client1 => "client 1",
            Self::Client2 => "client 2",
            Self::Host => "the host",
            Self::A => "container A",
            Self::B => "container B",
        }
    }
}

/// The hosts, their servers and their firewall.
pub struct Site {
    servers: Vec<Process>,
    pub lab: Lab,
    a: Namespace,
    b: Namespace,
    /// The cgroup of all clients and servers.
    pub cgroup: Cgroup,
}

/// Makes conntrack follow all packets, and counts those that it does not
/// understand.
const RULESET: &str = "
table inet watch {
    chain prerouting {
        type filter hook prerouting priority 0
        ct state invalid counter
    }
    chain output {
        type filter hook output priority 0
        ct state invalid counter
    }
}";

/// Gives packets of containers to client 2 the host's own address.
const MASQUERADE: &str = "
table inet mask {
    chain postrouting {
        type nat hook postrouting priority srcnat
        ip saddr 10.9.3.0/24 oifname h1 masquerade
        ip6 saddr fd09:0:0:3::/64 oifname h1 masquerade
    }
}";

/// Containers are masqueraded until it is dropped.
pub struct Masquerade<'a>(&'a Namespace);

impl Drop for Masquerade<'_> {
    fn drop(&mut self) {
        self.0.succeeds(&["nft", "delete table inet mask"]);
    }
}

impl Site {
    /// All of it, but for the bridge, which is down.
    pub fn new() -> Self {
        let mut lab = Lab::unlinked();
        let cgroup = Cgroup::new(lab.prefix());
        let client2 = lab.third();
        let (a, b) = (lab.another("a"), lab.another("b"));
        let host = &lab.host;
        link((host, "h0", (1, 1)), (&lab.client, "c0", (1, 2)));
        link((host, "h1", (2, 1)), (&client2, "c0", (2, 2)));
        // To the other address the host has connections from port 80 of its own.
        client2.ip("addr add 10.9.2.12/24 dev c0\n\
             addr add fd09:0:0:2::12/64 dev c0 nodad");
        host.ip("addr add 10.9.1.11/24 dev h0\n\
             addr add fd09:0:0:1::11/64 dev h0 nodad\n\
             addr add fe80::1/64 dev h0 nodad\n\
             route add local 10.9.7.0/24 dev lo\n\
             link add br0 type bridge");
        for (port, at, name, number) in [("port-a", &a, "a0", 2), ("port-b", &b, "b0", 3)] {
            link((host, port, (8, number)), (at, name, (3, number)));
            host.ip(&format!(
                "addr flush dev {port}\nlink set {port} master br0"
            ));
        }
        add_way_back(&lab, "h2");
        host.sysctl("ipv4/ip_forward", "1");
        host.sysctl("ipv6/conf/all/forwarding", "1");
        for (at, net) in [(&lab.client, 1), (&client2, 2), (&a, 3), (&b, 3)] {
            let gateways = Family::BOTH.map(|family| family.addr(net, 1));
            let [v4, v6] = gateways;
            at.ip(&format!(
                "route add default via {v4}\nroute add default via {v6}"
            ));
        }
        lab.wait_for_link();
        for family in Family::BOTH {
            wait_for_route(&client2, family.host(1));
        }
        let servers = [
            (host, Place::Host, 8080),
            (&client2, Place::Client2, 80),
            (&b, Place::B, 80),
        ];
        let servers =
            servers.map(|(at, place, port)| whoami_server(at, &cgroup, place.name(), port));
        host.run(&["nft", RULESET]);
        lab.far = Some(client2);
        Self {
            servers: servers.into(),
            lab,
            a,
            b,
            cgroup,
        }
    }

    /// Sets the bridge up, and waits until the containers are reached.
    pub fn raise_bridge(&self) {
        add_addrs(&self.lab.host, "br0", (3, 1));
        for family in Family::BOTH {
            for container in [&self.a, &self.b] {
                wait_for_route(container, family.host(1));
            }
            wait_for_route(&self.a, SocketAddr::new(family.addr(3, 3), 1));
        }
    }

    pub fn at(&self, place: Place) -> &Namespace {
        match place {
            Place::Client1 => &self.lab.client,
            Place::Client2 => self.lab.far(),
            Place::Host => &self.lab.host,
            Place::A => &self.a,
            Place::B => &self.b,
        }
    }

    /// Makes netfilter's hooks for IP run for what crosses the bridge, or not.
    pub fn set_br_netfilter(&self, is_on: bool) {
        if has_br_netfilter() {
            let value = if is_on { "1" } else { "0" };
            for file in ["iptables", "ip6tables"] {
                let key = format!("bridge/bridge-nf-call-{file}");
                self.lab.host.sysctl(&key, value);
            }
        }
    }

    /// Begins to masquerade containers.
    pub fn masquerade(&self) -> Masquerade<'_> {
        let host = &self.lab.host;
        host.run(&["nft", MASQUERADE]);
        Masquerade(host)
    }

    /// Sets the link to client 1 down for 200 ms.
    pub fn flap(&self) {
        let host = &self.lab.host;
        flap((host, "h0"), (&self.lab.client, "c0"), || {});
        host.ip("addr replace fe80::1/64 dev h0 nodad");
    }

    /// Waits until the programs are on the bridge, or on its ports instead.
    pub fn wait_for_carriers(&self, engine: &str, are_ports: bool) {
        // A bridge has no XDP of its own, so programs stay on its ports.
        if !has_br_netfilter() || engine == "xdp" {
            return;
        }
        let engine = if engine == "auto" { "tc" } else { engine };
        wait_for("programs on the bridge or on its ports", || {
            let carriers = carriers(&self.lab.host, engine);
            let on_ports = ["port-a", "port-b"].map(|port| carriers.contains(port));
            (carriers.contains("br0") != are_ports && on_ports == [are_ports; 2]).then_some(())
        });
    }

    /// How many packets conntrack did not understand so far.
    pub fn invalid(&self) -> u64 {
        let ruleset = self.lab.host.run(&["nft", "list", "ruleset"]);
        let counts = ruleset.split("counter packets ").skip(1).map(|rest| {
            let count = rest.split_whitespace().next().expect("a count");
            count.parse::<u64>().expect("a count")
        });
        counts.sum()
    }

    /// The program ends with this code when it is started so.
    pub fn refuses(&self, code: i32, args: &[&str]) {
        let args = [&[PROGRAM], args].concat();
        let mut program = self.lab.host.start(&args);
        let status = program.wait();
        assert_eq!(status.code(), Some(code), "{}", args.join(" "));
    }
}

/// Adds a link with this name on the host, and an address to the client that the host
/// reaches by it, but that reaches an address on the host's `lo` by the first link.
pub fn add_way_back(lab: &Lab, name: &str) {
    let (host, client) = (&lab.host, &lab.client);
    link((host, name, (4, 1)), (client, "c2", (4, 2)));
    for (at, net) in [(host, 5), (client, 6)] {
        let (v4, v6) = (Family::V4.addr(net, 1), Family::V6.addr(net, 1));
        at.ip(&format!(
            "addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad"
        ));
    }
    for family in Family::BOTH {
        let [on_host, on_client] = [5, 6].map(|net| family.addr(net, 1));
        let (via_client, via_host) = (family.addr(4, 2), family.addr(1, 1));
        host.ip(&format!(
            "route add {on_client} via {via_client} dev {name}"
        ));
        client.ip(&format!(
            "route add {on_host} via {via_host} dev c0 src {on_client}"
        ));
    }
    for (at, names) in [(host, ["all", "h0"]), (client, ["all", "c2"])] {
        for name in names {
            at.sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0");
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // The cgroup can be removed once the servers are gone.
        self.servers.clear();
    }
}
