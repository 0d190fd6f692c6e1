//! Addresses, and links between hosts.

use std::net::Ipv4Addr;
use std::process::Command;

use crate::bench::load::request::Link;
use crate::bench::namespace::Namespace;
use crate::bench::variant::Ends;

/// The settings of every host. Buffers have a fixed size; otherwise the bulk tests would
/// show how each connection happened to tune its own.
pub(super) const SETTINGS: [(&str, &str); 6] = [
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/tcp_moderate_rcvbuf", "0"),
    ("ipv4/tcp_rmem", "4096 524288 524288"),
    ("ipv4/tcp_wmem", "4096 524288 524288"),
];

/// The lowest index of the client's interfaces. With one index on both sides the kernel
/// would take its time to notice that the link is up (`linkwatch_urgent_event` in
/// net/core/link_watch.c).
const FIRST_IFINDEX: u32 = 1000;

/// The addresses of a variant, by its number.
#[must_use]
pub const fn ends(number: u8) -> Ends {
    Ends {
        host: Ipv4Addr::new(198, 18, number, 2),
        behind: Ipv4Addr::new(198, 18, number | 0x80, 2),
    }
}

/// Makes the host behind a variant, and lets the variant forward.
pub(super) fn host_behind(namespace: &Namespace, number: u8) -> anyhow::Result<Namespace> {
    let behind = Namespace::new(format!("{}b", namespace.name))?;
    behind.sysctl(&SETTINGS)?;
    behind.sysctl(&[
        ("core/somaxconn", "65535"),
        ("ipv4/tcp_max_syn_backlog", "65535"),
    ])?;
    namespace.sysctl(&[("ipv4/conf/all/forwarding", "1")])?;
    let Ends { behind: addr, .. } = ends(number);
    let [a, b, c, _] = addr.octets();
    let router = Ipv4Addr::new(a, b, c, 1);
    let (mac, server_mac) = ([2, 0, 0, 0, 3, number], [2, 0, 0, 0, 4, number]);
    let (mac, server_mac) = (mac_text(mac), mac_text(server_mac));
    let peer = &behind.name;
    namespace.run(
        &mut ip(),
        &format!(
            "link add b0 address {mac} type veth peer name e0 address {server_mac} netns {peer}\n\
             addr add {router}/24 dev b0\n\
             link set b0 up\n\
             neigh replace {addr} lladdr {server_mac} dev b0 nud permanent\n"
        ),
    )?;
    behind.run(
        &mut ip(),
        &format!(
            "link set lo up\n\
             addr add {addr}/24 dev e0\n\
             link set e0 up\n\
             neigh replace {router} lladdr {mac} dev e0 nud permanent\n\
             route add default via {router}\n"
        ),
    )?;
    Ok(behind)
}

pub(super) fn link(number: u8) -> Link {
    Link {
        ifindex: FIRST_IFINDEX + u32::from(number),
        addr: Ipv4Addr::new(198, 18, number, 1),
        mac: [2, 0, 0, 0, 1, number],
        server_mac: [2, 0, 0, 0, 2, number],
    }
}

pub(super) fn ip() -> Command {
    let mut ip = Command::new("ip");
    ip.args(["-batch", "-"]);
    ip
}

pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
