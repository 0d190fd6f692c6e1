//! Routes of type `local`: the destinations whose packets the kernel delivers to this host.
//! Addresses of interfaces are among them, and so is what `ip route add local` adds:
//! forwarded addresses of cloud load balancers, and whole networks (AnyIP).

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::sys::netlink::{NetlinkError, ask};

/// The constant `RT_TABLE_LOCAL` of include/uapi/linux/rtnetlink.h.
pub(super) const LOCAL_TABLE: u32 = 255;

/// Reads the destinations of the `local` routes in some tables, with the lengths of their
/// prefixes.
///
/// Only the local table and the tables of VRFs decide about every packet. A `local` route in
/// another table is for packets that a policy rule chose, as TPROXY needs it.
///
/// # Errors
///
/// [`NetlinkError`], for a family that this kernel has.
pub(super) fn local_destinations(
    tables: &BTreeSet<u32>,
) -> Result<BTreeSet<(IpAddr, u8)>, NetlinkError> {
    let mut destinations = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for &table in tables {
            let routes = match dump(family, table) {
                Ok(routes) => routes,
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(error),
            };
            let found = routes.iter().filter(|route| is_local_in(route, tables));
            destinations.extend(found.filter_map(destination));
        }
    }
    Ok(destinations)
}

/// Whether a message tells of a route that may change what is local. Other routes come and
/// go by thousands.
pub(super) fn is_local(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Local
}

/// The one address that a route in the local table makes local.
pub(super) fn local_addr(route: &RouteMessage) -> Option<IpAddr> {
    let (addr, prefix_len) = destination(route)?;
    let is_host = prefix_len == if addr.is_ipv4() { 32 } else { 128 };
    let is_its = is_local(route) && table(route) == LOCAL_TABLE;
    (is_its && is_host && !addr.is_loopback() && !addr.is_multicast()).then_some(addr)
}

/// The interface by which packets to an address leave; `None` without a route.
#[must_use]
pub fn way_to(addr: IpAddr) -> Option<u32> {
    let question = [RouteAttribute::Destination(addr.into())];
    let route = look_up(&question, RouteFlags::empty()).ok()?;
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}

/// A packet that comes in.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    /// The source address.
    pub src: IpAddr,
    /// The destination address.
    pub dst: IpAddr,
    /// The ifindex of the interface.
    pub index: u32,
    /// The number of the IP protocol.
    pub protocol: u8,
    /// The source port and the destination port.
    pub ports: (u16, u16),
}

/// Whether the kernel delivers a packet to this host.
///
/// # Errors
///
/// [`NetlinkError::Kernel`]: the kernel refuses the packet, by its filter of source
/// addresses among others.
pub fn of_incoming(incoming: &Incoming) -> Result<bool, NetlinkError> {
    let question = [
        RouteAttribute::Destination(incoming.dst.into()),
        RouteAttribute::Source(incoming.src.into()),
        RouteAttribute::Iif(incoming.index),
        RouteAttribute::IpProto(incoming.protocol),
        RouteAttribute::Sport(incoming.ports.0),
        RouteAttribute::Dport(incoming.ports.1),
    ];
    let route = look_up(&question, RouteFlags::empty())?;
    Ok(is_local(&route))
}

/// Asks the kernel for the route of one packet.
pub(super) fn look_up(
    attributes: &[RouteAttribute],
    flags: RouteFlags,
) -> Result<RouteMessage, NetlinkError> {
    let mut route = RouteMessage::default();
    route.header.flags = flags;
    for attribute in attributes {
        let (is_v4, is_dst) = match attribute {
            RouteAttribute::Destination(addr) => (matches!(addr, RouteAddress::Inet(_)), true),
            RouteAttribute::Source(addr) => (matches!(addr, RouteAddress::Inet(_)), false),
            _ => continue,
        };
        let (family, len) = if is_v4 {
            (AddressFamily::Inet, 32)
        } else {
            (AddressFamily::Inet6, 128)
        };
        route.header.address_family = family;
        if is_dst {
            route.header.destination_prefix_length = len;
        } else {
            route.header.source_prefix_length = len;
        }
    }
    route.attributes = attributes.to_vec();
    let answers = ask(
        NETLINK_ROUTE,
        RouteNetlinkMessage::GetRoute(route).into(),
        NLM_F_ACK,
    )?;
    let mut routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    routes
        .next()
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound).into())
}

fn is_local_in(route: &RouteMessage, tables: &BTreeSet<u32>) -> bool {
    // Kernels that do not filter send everything.
    is_local(route) && tables.contains(&table(route))
}

fn dump(family: AddressFamily, table: u32) -> Result<Vec<RouteMessage>, NetlinkError> {
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.kind = RouteType::Local;
    match u8::try_from(table) {
        Ok(table) => route.header.table = table,
        Err(_) => {
            route.header.table = RouteHeader::RT_TABLE_UNSPEC;
            route.attributes.push(RouteAttribute::Table(table));
        }
    }
    let answers = ask(
        NETLINK_ROUTE,
        RouteNetlinkMessage::GetRoute(route).into(),
        NLM_F_DUMP,
    )?;
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    Ok(routes.collect())
}

/// Whether the kernel lacks the family, or nobody has added a route to the table yet.
fn is_absent(error: &NetlinkError) -> bool {
    let NetlinkError::Kernel { source, .. } = error else {
        return false;
    };
    let absent = [libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
    source
        .raw_os_error()
        .is_some_and(|errno| absent.contains(&errno))
}

fn table(route: &RouteMessage) -> u32 {
    let mut attributes = route.attributes.iter();
    let attribute = attributes.find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or_else(|| route.header.table.into())
}

/// The address of an attribute.
pub(super) const fn ip(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(addr) => Some(IpAddr::V4(*addr)),
        RouteAddress::Inet6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

/// The destination of a route, with the length of its prefix.
pub(super) fn destination(route: &RouteMessage) -> Option<(IpAddr, u8)> {
    let mut attributes = route.attributes.iter();
    let addr = attributes.find_map(|attribute| match attribute {
        RouteAttribute::Destination(addr) => ip(addr),
        _ => None,
    });
    let prefix_len = route.header.destination_prefix_length;
    // A default route has no destination.
    let default = match route.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let addr = addr.or_else(|| (prefix_len == 0).then_some(default))?;
    Some((addr, prefix_len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_table_holds_loopback() {
        let destinations = local_destinations(&BTreeSet::from([LOCAL_TABLE])).expect("routes");
        let loopback = (IpAddr::from([127, 0, 0, 0]), 8);
        assert!(destinations.contains(&loopback), "{destinations:?}");
    }

    #[test]
    fn table_that_does_not_exist_is_empty() {
        let destinations = local_destinations(&BTreeSet::from([4_000_000])).expect("routes");
        assert_eq!(destinations, BTreeSet::new());
    }
}
