//! Hosts and the links between them.
//!
//! ```text
//!   client c0 ---- h0 host h1 ---- f0 far     Far::BehindHost
//!   far f0 ---- c1 client c0 ---- h0 host     Far::BehindClient, a narrow link
//! ```

pub mod capture;
pub mod cgroup;
pub mod checksum;
pub mod committed;
pub mod esp;
pub mod extent;
pub mod flap;
pub mod foreign;
pub mod message;
pub mod namespace;
pub mod process;
pub mod program;
pub mod python;
pub mod schema;
pub mod terminal;
pub mod unprivileged;
pub mod usage;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use self::namespace::{Namespace, PREFIX};
use self::process::wait_for;
use crate::Cell;
use crate::peer::conn;

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Both versions.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// An address of the lab: host 1 and client 2 in net 1, and so on.
    pub fn addr(self, net: u8, host: u8) -> IpAddr {
        match self {
            Self::V4 => IpAddr::from([10, 9, net, host]),
            Self::V6 => IpAddr::from([0xfd09, 0, 0, net.into(), 0, 0, 0, host.into()]),
        }
    }

    /// The host's address on the link to the client, with a port.
    pub fn host(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.addr(1, 1), port)
    }
}

/// Where a third host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Far {
    /// Behind the host, which forwards.
    BehindHost,
    /// Behind the client, which forwards over a link of this MTU.
    BehindClient(u16),
}

/// A directory that is deleted when dropped.
pub struct Dir(pub PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Two or three hosts.
pub struct Lab {
    pub client: Namespace,
    pub host: Namespace,
    pub far: Option<Namespace>,
    pub dir: Dir,
}

impl Lab {
    /// Namespaces without links.
    pub fn unlinked() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{number}", std::process::id());
        let dir = Dir(std::env::temp_dir().join(&prefix));
        fs::create_dir(&dir.0).expect("create a directory");
        Self {
            client: Namespace::new(&prefix, "c", &dir.0),
            host: Namespace::new(&prefix, "h", &dir.0),
            far: None,
            dir,
        }
    }

    /// Client and host, linked as the cell says.
    pub fn new(cell: &Cell) -> Self {
        let lab = Self::unlinked();
        link((&lab.host, "h0", (1, 1)), (&lab.client, "c0", (1, 2)));
        if !cell.is_offloaded {
            lab.client.run(&["ethtool", "-K", "c0", "tx", "off"]);
            lab.host.run(&["ethtool", "-K", "h0", "tx", "off"]);
        }
        lab.wait_for_link();
        lab
    }

    /// Makes the hosts of [`Self::new`], and a third one.
    pub fn with_far(cell: &Cell, far: Far) -> Self {
        let mut lab = Self::new(cell);
        let far_ns = lab.third();
        let (gateway, port, other, way) = match far {
            Far::BehindHost => (&lab.host, "h1", &lab.client, 1),
            Far::BehindClient(_) => (&lab.client, "c1", &lab.host, 2),
        };
        link((gateway, port, (2, 1)), (&far_ns, "f0", (2, 2)));
        gateway.sysctl("ipv4/ip_forward", "1");
        gateway.sysctl("ipv6/conf/all/forwarding", "1");
        far_ns.ip("route add default via 10.9.2.1\nroute add default via fd09:0:0:2::1");
        other.ip(&format!(
            "route add default via 10.9.1.{way}\nroute add default via fd09:0:0:1::{way}"
        ));
        if let Far::BehindClient(mtu) = far {
            gateway.ip(&format!("link set {port} mtu {mtu}"));
        }
        if !cell.is_offloaded {
            gateway.run(&["ethtool", "-K", port, "tx", "off"]);
            far_ns.run(&["ethtool", "-K", "f0", "tx", "off"]);
        }
        for family in [Family::V4, Family::V6] {
            wait_for_route(&far_ns, family.host(1));
        }
        lab.far = Some(far_ns);
        lab
    }

    /// A third host, without links.
    pub fn third(&self) -> Namespace {
        self.another("f")
    }

    /// A host whose name ends with a letter that no other's does.
    pub fn another(&self, letter: &str) -> Namespace {
        Namespace::new(self.prefix(), letter, &self.dir.0)
    }

    /// The prefix of the names of all namespaces of this lab.
    pub fn prefix(&self) -> &str {
        self.host.name.trim_end_matches("-h")
    }

    /// The third host.
    pub fn far(&self) -> &Namespace {
        self.far.as_ref().expect("a lab with a third host")
    }

    /// Waits until client and host reach each other.
    pub fn wait_for_link(&self) {
        for family in [Family::V4, Family::V6] {
            wait_for_route(&self.client, family.host(1));
        }
    }

    /// No host got a packet with a bad checksum.
    pub fn check_checksums(&self) {
        for namespace in [Some(&self.client), Some(&self.host), self.far.as_ref()] {
            let Some(namespace) = namespace else { continue };
            checksum::check(namespace);
        }
    }
}

/// One end of a veth pair: its host, its name, and `(net, host)` of its addresses.
pub type LinkEnd<'a> = (&'a Namespace, &'a str, (u8, u8));

/// Adds a veth pair between two hosts.
pub fn link((a, a_name, a_addr): LinkEnd<'_>, (b, b_name, b_addr): LinkEnd<'_>) {
    let b_netns = &b.name;
    // With one index on both sides the kernel would take its time to notice
    // that the link is up (`linkwatch_urgent_event` in net/core/link_watch.c).
    let index = 10 * a_addr.0 + a_addr.1;
    a.ip(&format!(
        "link add {a_name} index {index} type veth peer name {b_name} netns {b_netns}"
    ));
    add_addrs(a, a_name, a_addr);
    add_addrs(b, b_name, b_addr);
}

/// Gives an interface its addresses and sets it up.
pub fn add_addrs(namespace: &Namespace, name: &str, (net, host): (u8, u8)) {
    let (v4, v6) = (Family::V4.addr(net, host), Family::V6.addr(net, host));
    namespace.ip(&format!(
        "link set {name} up\n\
         addr add {v4}/24 brd + dev {name}\n\
         addr add {v6}/64 dev {name} nodad"
    ));
}

/// Waits until a host refuses a datagram for a port on which nothing listens.
pub fn wait_for_route(from: &Namespace, to: SocketAddr) {
    wait_for(&format!("a way to {to}"), || {
        conn::is_refused(from, conn::Proto::Udp, to).then_some(())
    });
}
