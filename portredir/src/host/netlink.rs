//! Reading interfaces and addresses of this network namespace, with rtnetlink.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::tc::TcHandle;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use portredir_common::abi::{LOOPBACK_IFINDEX, local};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use thiserror::Error;
use tokio::time::Instant;

use crate::host::link;
use crate::host::snapshot::Snapshot;
use crate::sys::addr::to_bytes;
use crate::sys::netdev;

/// `TC_H_CLSACT`, as include/uapi/linux/pkt_sched.h has it.
const CLSACT_PARENT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff1,
};

/// The host cannot be asked for its interfaces and addresses, or refuses a change.
#[derive(Debug, Error)]
pub enum HostError {
    /// The kernel refuses the socket.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refuses a request, or its answer cannot be read.
    #[error("{action}")]
    Request {
        /// The request.
        action: &'static str,
        /// The error of the library, with that of the kernel.
        #[source]
        source: rtnetlink::Error,
    },
    /// No interface can have this index.
    #[error("interface index {0} is out of range")]
    Index(u32),
}

fn failed(action: &'static str) -> impl Fn(rtnetlink::Error) -> HostError {
    move |source| HostError::Request { action, source }
}

fn signed(index: u32) -> Result<i32, HostError> {
    i32::try_from(index).map_err(|_| HostError::Index(index))
}

/// A netlink socket that also receives notifications of changes.
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// Notifications, with the index of an interface that was removed.
    changes: futures_util::stream::BoxStream<'static, Option<u32>>,
    left: BTreeSet<u32>,
    /// The time of the first change since [`Self::changed`] last returned.
    changed_at: Option<Instant>,
}

impl Netlink {
    /// Opens the socket in the current network namespace.
    ///
    /// # Errors
    ///
    /// [`HostError::Open`]. Must be called inside a runtime.
    pub fn open() -> Result<Self, HostError> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])
        .map_err(HostError::Open)?;
        tokio::spawn(connection);
        // The rest of a message does not matter, also that messages were lost: the state
        // is read again after each.
        Ok(Self {
            handle,
            changes: messages.map(|(message, _)| left(&message)).boxed(),
            left: BTreeSet::new(),
            changed_at: None,
        })
    }

    /// Whether an interface has a clsact qdisc.
    ///
    /// # Errors
    ///
    /// [`HostError::Request`].
    pub async fn has_clsact(&self, index: u32) -> Result<bool, HostError> {
        let mut qdiscs = self.handle.qdisc().get().index(signed(index)?).execute();
        while let Some(qdisc) = qdiscs.try_next().await.map_err(failed("list qdiscs"))? {
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
    /// [`HostError::Request`]: the interface is gone, or the kernel refuses.
    pub async fn remove_clsact(&self, index: u32) -> Result<(), HostError> {
        let index = signed(index)?;
        let ingress = self.handle.traffic_filter(index).get().ingress().execute();
        let egress = self.handle.traffic_filter(index).get().egress().execute();
        let mut filters = ingress
            .try_collect::<Vec<_>>()
            .await
            .map_err(failed("list filters"))?;
        filters.extend(
            egress
                .try_collect::<Vec<_>>()
                .await
                .map_err(failed("list filters"))?,
        );
        if !filters.is_empty() {
            return Ok(());
        }
        let mut request = self.handle.qdisc().del(index);
        request.message_mut().header.parent = CLSACT_PARENT;
        let removed = request.execute().await;
        removed.map_err(failed("remove the clsact qdisc"))
    }

    /// Waits until something changed, and then until there was no change for a moment.
    ///
    /// No change is lost when the future is dropped before it is ready.
    pub async fn changed(&mut self) {
        const CALM: Duration = Duration::from_millis(20);
        const LATEST: Duration = Duration::from_millis(200);
        let changed_at = match self.changed_at {
            Some(changed_at) => changed_at,
            None => {
                match self.changes.next().await {
                    Some(left) => self.left.extend(left),
                    // The connection is closed; no notification will come.
                    None => std::future::pending().await,
                }
                *self.changed_at.insert(Instant::now())
            }
        };
        let calm = async {
            while let Ok(Some(left)) = tokio::time::timeout(CALM, self.changes.next()).await {
                self.left.extend(left);
            }
        };
        // A link that flaps must not delay the reaction for ever.
        let _ = tokio::time::timeout_at(changed_at + LATEST, calm).await;
        self.changed_at = None;
    }

    /// Returns the interfaces that were removed since the last call. By now they may be
    /// back, or others may have their indexes; programs that were attached to them are gone.
    pub fn take_left(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.left)
    }

    /// Reads all interfaces and addresses.
    ///
    /// # Errors
    ///
    /// [`HostError::Request`].
    pub async fn snapshot(&self) -> Result<Snapshot, HostError> {
        let mut snapshot = Snapshot::default();
        let xdp_features = netdev::xdp_features().unwrap_or_else(|error| {
            log::debug!("cannot list XDP features of devices: {error}");
            BTreeMap::new()
        });
        let are_all_tracked = are_bridges_tracked();
        let mut links = self.handle.link().get().execute();
        while let Some(message) = links.try_next().await.map_err(failed("list interfaces"))? {
            let mut interface = link::interface(&message);
            interface.xdp_features = xdp_features.get(&interface.index).copied();
            let is_bridge = interface.kind.as_deref() == Some("bridge");
            interface.is_tracked_bridge |= is_bridge && are_all_tracked;
            snapshot.interfaces.insert(interface.index, interface);
        }
        let mut addrs = self.handle.address().get().execute();
        while let Some(message) = addrs.try_next().await.map_err(failed("list addresses"))? {
            let mut addr = None;
            for attribute in &message.attributes {
                match attribute {
                    // On point-to-point links `Address` is the address of the peer.
                    AddressAttribute::Local(local) => addr = Some(*local),
                    AddressAttribute::Address(address) if addr.is_none() => addr = Some(*address),
                    _ => {}
                }
            }
            if let Some(addr) = addr.filter(|addr| !addr.is_multicast()) {
                let reach = if message.header.index == LOOPBACK_IFINDEX && addr.is_loopback() {
                    local::LOOPBACK
                } else {
                    local::ANYWHERE
                };
                snapshot.addrs.insert(to_bytes(addr), reach);
            }
        }
        Ok(snapshot)
    }
}

/// Whether `br_netfilter` is loaded and enabled for all bridges of this namespace.
fn are_bridges_tracked() -> bool {
    ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"]
        .into_iter()
        .filter_map(|name| std::fs::read_to_string(format!("/proc/sys/net/bridge/{name}")).ok())
        .any(|value| value.trim() != "0")
}

/// The interface that was removed from this network namespace, if a message says so.
fn left(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<u32> {
    match &message.payload {
        // A bridge sends such a message about a port that leaves the bridge.
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
            if link.header.interface_family != AddressFamily::Bridge =>
        {
            Some(link.header.index)
        }
        _ => None,
    }
}
