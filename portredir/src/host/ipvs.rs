//! Virtual services of IPVS, to which kube-proxy and keepalived send connections.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portredir_common::net::Protocol;

/// A virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The protocol.
    pub protocol: Protocol,
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
}

/// Reads `/proc/net/ip_vs`, as `ip_vs_info_seq_show` of net/netfilter/ipvs/ip_vs_ctl.c
/// writes it. Services by firewall mark have no port and are left out.
#[must_use]
pub fn parse(text: &str) -> Vec<Service> {
    text.lines().filter_map(service).collect()
}

fn service(line: &str) -> Option<Service> {
    let (protocol, rest) = line.split_once("  ")?;
    let protocol = match protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        _ => return None,
    };
    let (addr, port) = rest.split(' ').next()?.rsplit_once(':')?;
    let addr = match addr
        .strip_prefix('[')
        .and_then(|addr| addr.strip_suffix(']'))
    {
        Some(addr) => addr.parse::<Ipv6Addr>().ok()?.into(),
        None => Ipv4Addr::from(u32::from_str_radix(addr, 16).ok()?).into(),
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(Service {
        protocol,
        addr,
        port,
    })
}

/// The services of this network namespace. Without IPVS there are none.
#[must_use]
pub fn read() -> Vec<Service> {
    let text = fs::read_to_string("/proc/thread-self/net/ip_vs");
    parse(&text.unwrap_or_default())
}
