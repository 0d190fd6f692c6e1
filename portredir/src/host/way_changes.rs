//! Notifications of the kernel that ways to other hosts may have changed.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::ready;
use futures_util::stream::BoxStream;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::netlink::HostError;

/// The groups of messages that a route, a neighbour or a link has changed. Over IPv4 a link
/// that goes down takes its routes with it, without a message about them.
const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// A netlink socket that receives these messages.
pub struct WayChanges {
    messages: BoxStream<'static, ()>,
    /// The first change since [`Self::changed`] last returned.
    changed_at: Option<Instant>,
    /// The reader of the socket, which would go on without end.
    _readers: JoinSet<()>,
}

impl WayChanges {
    /// Opens the socket in the current network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the socket. Must be called inside a runtime.
    pub fn open() -> Result<Self, HostError> {
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(HostError::Open)?;
        let mut readers = JoinSet::new();
        readers.spawn(connection);
        // The rest of a message does not matter, nor that some were lost: the kernel is asked
        // for the state after it.
        let messages = messages.filter(|(message, _)| ready(concerns_ways(message)));
        Ok(Self {
            messages: messages.map(|_| ()).boxed(),
            changed_at: None,
            _readers: readers,
        })
    }

    /// Waits until something has changed and then, for a moment, calmed down.
    ///
    /// A change is not lost when the wait is given up before its end.
    pub async fn changed(&mut self) {
        const CALM: Duration = Duration::from_millis(20);
        const LATEST: Duration = Duration::from_millis(100);
        let changed_at = match self.changed_at {
            Some(changed_at) => changed_at,
            None => match self.messages.next().await {
                Some(()) => *self.changed_at.insert(Instant::now()),
                // The connection is gone; no more notifications will come.
                None => return std::future::pending().await,
            },
        };
        let latest = changed_at + LATEST;
        let calm = || latest.min(Instant::now() + CALM);
        while let Ok(Some(())) = timeout_at(calm(), self.messages.next()).await {
            if Instant::now() >= latest {
                break;
            }
        }
        self.changed_at = None;
    }
}

/// Whether a message may concern the way to another host. An answer that a neighbour is
/// asked for is no change.
fn concerns_ways(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(message) => {
            !matches!(message, RouteNetlinkMessage::GetNeighbour(_))
        }
        _ => true,
    }
}
