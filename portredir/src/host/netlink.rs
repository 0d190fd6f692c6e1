//! Network interfaces and addresses of this network namespace, by netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::ready;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoVrf, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    LinkXdp,
};
use netlink_packet_route::tc::TcHandle;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use portredir_common::map::local;
use portredir_common::net::{Addr, LOOPBACK_IFINDEX};
use portredir_common::wire::frame::Link;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::routes;
use super::snapshot::{Interface, Snapshot};
use crate::sys::netlink::NetlinkError;
use crate::sys::{netdev, xfrm};

/// The constant `TC_H_CLSACT` of include/uapi/linux/pkt_sched.h.
const CLSACT_PARENT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff1,
};

/// An error of netlink: the host cannot be asked or changed.
#[derive(Debug, Error)]
pub enum HostError {
    /// The socket cannot be opened.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refuses a request.
    #[error("{action}")]
    Ask {
        /// The request that was made.
        action: &'static str,
        /// The kernel's error.
        #[source]
        source: rtnetlink::Error,
    },
    /// The routes of type `local` cannot be listed.
    #[error("list local routes")]
    Routes(#[from] NetlinkError),
}

impl HostError {
    const fn ask(action: &'static str) -> impl FnOnce(rtnetlink::Error) -> Self {
        move |source| Self::Ask { action, source }
    }
}

/// A netlink socket that also receives notifications of changes.
pub struct Netlink {
    handle: rtnetlink::Handle,
    changes: futures_util::stream::BoxStream<'static, Message>,
    left: BTreeSet<u32>,
    /// The first change since [`Self::changed`] last returned.
    changed_at: Option<Instant>,
    /// The switch of `br_netfilter` in the last snapshot. A sysctl makes no message.
    are_bridges_tracked: AtomicBool,
    /// The readers of the sockets, which would go on without end.
    _readers: JoinSet<()>,
}

impl Netlink {
    /// Opens the socket in the current network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the socket. Must be called inside a runtime.
    pub fn open() -> Result<Self, HostError> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])
        .map_err(HostError::Open)?;
        let mut readers = JoinSet::new();
        readers.spawn(connection);
        // A socket of their own: where a router has its routes from BGP, they may overflow
        // it, and answers to questions must not be lost with them.
        let (connection, _, routes) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])
        .map_err(HostError::Open)?;
        readers.spawn(connection);
        let routes = routes.filter(|(message, _)| ready(may_be_local(message)));
        let messages = stream::select(messages, routes);
        // The rest of a message does not matter, nor that some were lost: only the state
        // after it counts.
        let messages = messages.map(|(message, _)| Message::of(&message));
        Ok(Self {
            handle,
            changes: stream::select(messages, policy_changes()).boxed(),
            left: BTreeSet::new(),
            changed_at: None,
            are_bridges_tracked: AtomicBool::new(are_bridges_tracked()),
            _readers: readers,
        })
    }

    /// Whether an interface has a clsact qdisc.
    ///
    /// # Errors
    ///
    /// When qdiscs cannot be listed.
    pub async fn has_clsact(&self, index: u32) -> Result<bool, HostError> {
        let mut qdiscs = self
            .handle
            .qdisc()
            .get()
            .index(index.cast_signed())
            .execute();
        while let Some(qdisc) = qdiscs
            .try_next()
            .await
            .map_err(HostError::ask("list qdiscs"))?
        {
            if qdisc.header.parent == CLSACT_PARENT && qdisc.header.index.cast_unsigned() == index {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the clsact qdisc of an interface, unless it has filters.
    ///
    /// # Errors
    ///
    /// When the interface is gone, or the kernel refuses.
    pub async fn remove_clsact(&self, index: u32) -> Result<(), HostError> {
        let index = index.cast_signed();
        let ingress = self.handle.traffic_filter(index).get().ingress().execute();
        let egress = self.handle.traffic_filter(index).get().egress().execute();
        let mut filters = ingress
            .try_collect::<Vec<_>>()
            .await
            .map_err(HostError::ask("list filters"))?;
        filters.extend(
            egress
                .try_collect::<Vec<_>>()
                .await
                .map_err(HostError::ask("list filters"))?,
        );
        if !filters.is_empty() {
            return Ok(());
        }
        let mut request = self.handle.qdisc().del(index);
        request.message_mut().header.parent = CLSACT_PARENT;
        request
            .execute()
            .await
            .map_err(HostError::ask("remove the clsact qdisc"))
    }

    /// Waits until the host changed and then, for a moment, calmed down. An address that
    /// arrives is reported at once: until then connections to it are refused.
    ///
    /// A change is not lost when the wait is given up before its end.
    pub async fn changed(&mut self) -> HostChange {
        const CALM: Duration = Duration::from_millis(20);
        const LATEST: Duration = Duration::from_millis(200);
        let changed_at = match self.changed_at {
            Some(changed_at) => changed_at,
            None => {
                tokio::select! {
                    change = self.changes.next() => match change {
                        Some(message) => {
                            let changed_at = *self.changed_at.insert(Instant::now());
                            if let Some(arrived) = self.take(message) {
                                return arrived;
                            }
                            changed_at
                        }
                        // The connection is gone; no more notifications will come.
                        None => std::future::pending().await,
                    },
                    () = tracking_switched(self.are_bridges_tracked.load(Relaxed)) => {
                        *self.changed_at.insert(Instant::now())
                    }
                }
            }
        };
        // A link that flaps forever must not keep us from acting.
        let latest = changed_at + LATEST;
        loop {
            let calm = latest.min(Instant::now() + CALM);
            match tokio::time::timeout_at(calm, self.changes.next()).await {
                Ok(Some(message)) => {
                    if let Some(arrived) = self.take(message) {
                        return arrived;
                    }
                }
                Ok(None) | Err(_) => break,
            }
            if Instant::now() >= latest {
                break;
            }
        }
        self.changed_at = None;
        HostChange::Settled
    }

    fn take(&mut self, message: Message) -> Option<HostChange> {
        match message {
            Message::Left(index) => self.left.insert(index),
            Message::Arrived(addr) => return Some(HostChange::Arrived(addr)),
            Message::Other => false,
        };
        None
    }

    /// Returns the interfaces that left since the last call. By now they may be back, or
    /// others may have their indexes; the programs that were attached to them are gone.
    pub fn take_left(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.left)
    }

    /// Reads all interfaces and addresses.
    ///
    /// # Errors
    ///
    /// When a dump fails.
    pub async fn snapshot(&self) -> Result<Snapshot, HostError> {
        let mut snapshot = Snapshot::default();
        let xdp_features = netdev::xdp_features().unwrap_or_else(|error| {
            log::debug!("cannot list XDP features of devices: {error}");
            BTreeMap::new()
        });
        let are_all_tracked = are_bridges_tracked();
        self.are_bridges_tracked.store(are_all_tracked, Relaxed);
        let mut tables = BTreeSet::from([routes::LOCAL_TABLE]);
        let mut links = self.handle.link().get().execute();
        while let Some(message) = links
            .try_next()
            .await
            .map_err(HostError::ask("list interfaces"))?
        {
            let mut interface = interface(message.header.index, &message);
            tables.extend(vrf_table(&message));
            interface.xdp_features = xdp_features.get(&interface.index).copied();
            let is_bridge = interface.kind.as_deref() == Some("bridge");
            interface.is_tracked_bridge |= is_bridge && are_all_tracked;
            snapshot.interfaces.insert(interface.index, interface);
        }
        let mut addrs = self.handle.address().get().execute();
        while let Some(message) = addrs
            .try_next()
            .await
            .map_err(HostError::ask("list addresses"))?
        {
            snapshot.local.addrs.extend(unicast(&message));
        }
        for (addr, prefix_len) in routes::local_destinations(&tables)? {
            snapshot.local.add_route(addr, prefix_len);
        }
        snapshot.policies = xfrm::policies().unwrap_or_else(|error| {
            log::debug!("cannot list IPsec policies: {error}");
            Vec::new()
        });
        Ok(snapshot)
    }
}

/// A message for each change of IPsec policies; none where they cannot be followed.
fn policy_changes() -> impl futures_util::Stream<Item = Message> + Send + 'static {
    let changes = xfrm::Changes::open().map_err(|error| {
        log::debug!("cannot follow IPsec policies: {error}");
    });
    stream::unfold(changes.ok(), |changes| async {
        let changes = changes?;
        changes.next().await;
        Some((Message::Other, Some(changes)))
    })
}

/// Whether `br_netfilter` is loaded and on for all bridges of this namespace.
fn are_bridges_tracked() -> bool {
    ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"]
        .into_iter()
        .filter_map(|name| std::fs::read_to_string(format!("/proc/sys/net/bridge/{name}")).ok())
        .any(|value| value.trim() != "0")
}

/// Waits until `br_netfilter` is switched, for all bridges of this namespace.
async fn tracking_switched(before: bool) {
    const PERIOD: Duration = Duration::from_secs(1);
    while are_bridges_tracked() == before {
        tokio::time::sleep(PERIOD).await;
    }
}

/// A change of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostChange {
    /// An address arrived, of which more is to be read when the host calms down.
    Arrived(LocalAddr),
    /// The host calmed down after some change.
    Settled,
}

/// A local address and where it can be reached from: one of [`local`].
pub type LocalAddr = ([u8; 16], u8);

/// A netlink message, as far as it matters before the state after it is read.
#[derive(Clone, Copy, Debug)]
enum Message {
    /// This interface left the network namespace.
    Left(u32),
    Arrived(LocalAddr),
    Other,
}

impl Message {
    fn of(message: &NetlinkMessage<RouteNetlinkMessage>) -> Self {
        let NetlinkPayload::InnerMessage(message) = &message.payload else {
            return Self::Other;
        };
        match message {
            // A bridge sends the same message about a port that is no longer one.
            RouteNetlinkMessage::DelLink(link)
                if link.header.interface_family != AddressFamily::Bridge =>
            {
                Self::Left(link.header.index)
            }
            RouteNetlinkMessage::NewAddress(addr) => {
                unicast(addr).map_or(Self::Other, Self::Arrived)
            }
            RouteNetlinkMessage::NewRoute(route) => match routes::local_addr(route) {
                Some(addr) => Self::Arrived((Addr::from(addr).octets(), local::ANYWHERE)),
                None => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// The address that a message is about, unless it is a multicast address.
fn unicast(message: &AddressMessage) -> Option<LocalAddr> {
    let mut addr = None;
    for attribute in &message.attributes {
        match attribute {
            // On point-to-point links `Address` is the other end.
            AddressAttribute::Local(local) => addr = Some(*local),
            AddressAttribute::Address(address) if addr.is_none() => addr = Some(*address),
            _ => {}
        }
    }
    let addr = addr.filter(|addr| !addr.is_multicast())?;
    let is_loopback = message.header.index == LOOPBACK_IFINDEX && addr.is_loopback();
    let reach = if is_loopback {
        local::LOOPBACK
    } else {
        local::ANYWHERE
    };
    Some((Addr::from(addr).octets(), reach))
}

/// Whether a message about a route may change which addresses are local, or says that such
/// messages were lost.
fn may_be_local(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => routes::is_local(route),
        _ => true,
    }
}

/// The routing table of a VRF, which has the local routes of its ports.
fn vrf_table(message: &LinkMessage) -> Option<u32> {
    let infos = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vrf(vrf)) => vrf.iter().find_map(|attribute| match attribute {
            InfoVrf::TableId(table) => Some(*table),
            _ => None,
        }),
        _ => None,
    })
}

fn interface(index: u32, message: &LinkMessage) -> Interface {
    let link = match message.header.link_layer_type {
        LinkLayerType::Ether | LinkLayerType::Loopback => Link::Ethernet,
        _ => Link::Ip,
    };
    let mut interface = Interface {
        is_up: message.header.flags.contains(LinkFlags::Up),
        ..Interface::new(index, link)
    };
    let mut is_lower_elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Controller(master) => interface.master = Some(*master),
            LinkAttribute::Link(lower) if *lower != 0 && *lower != index => {
                interface.lower = Some(*lower);
            }
            LinkAttribute::LinkNetNsId(_) => is_lower_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => read_info(infos, &mut interface),
            LinkAttribute::Xdp(attributes) => interface.xdp = attached_xdp(attributes),
            _ => {}
        }
    }
    // The other end of a veth is not a lower device, wherever it is.
    if is_lower_elsewhere || interface.kind.as_deref() == Some("veth") {
        interface.lower = None;
    }
    interface.driver = crate::sys::ethtool::driver(&interface.name);
    interface
}

/// Reads the kind of a virtual device, and whether a bridge has `br_netfilter` on.
fn read_info(infos: &[LinkInfo], interface: &mut Interface) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => interface.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Bridge(attributes)) => {
                interface.is_tracked_bridge = attributes.iter().any(|attribute| {
                    matches!(
                        attribute,
                        InfoBridge::NfCallIpTables(true) | InfoBridge::NfCallIp6Tables(true)
                    )
                });
            }
            _ => {}
        }
    }
}

/// The ID of the XDP program that is attached, in whatever mode.
pub(super) fn attached_xdp(attributes: &[LinkXdp]) -> Option<u32> {
    let mut ids = attributes.iter().filter_map(|attribute| match attribute {
        LinkXdp::ProgId(id)
        | LinkXdp::DrvProgId(id)
        | LinkXdp::SkbProgId(id)
        | LinkXdp::HwProgId(id) => Some(*id),
        _ => None,
    });
    ids.rfind(|id| *id != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readers_of_the_sockets_end_with_it() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let opened = Netlink::open().expect("a socket");
            tokio::task::yield_now().await;
            let alive = || {
                tokio::runtime::Handle::current()
                    .metrics()
                    .num_alive_tasks()
            };
            assert!(alive() >= 2, "nobody reads the sockets");
            drop(opened);
            tokio::task::yield_now().await;
            assert_eq!(alive(), 0);
        });
    }
}
