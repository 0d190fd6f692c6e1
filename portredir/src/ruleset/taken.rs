//! Ports of this host whose packets another program takes before a socket gets them.

use portredir_common::net::{Port, Protocol};
use serde::{Deserialize, Serialize};

use crate::rule::Ports;

/// Ports that a rule of netfilter, or IPVS, sends elsewhere: no socket has to listen there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenPorts {
    /// The first and the last port of each range of TCP, in order.
    tcp: Vec<(u16, u16)>,
    /// The first and the last port of each range of UDP, in order.
    udp: Vec<(u16, u16)>,
}

impl TakenPorts {
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }

    /// The ranges, those of TCP first.
    pub fn iter(&self) -> impl Iterator<Item = (Protocol, Ports)> {
        let each = [(Protocol::Tcp, &self.tcp), (Protocol::Udp, &self.udp)];
        each.into_iter().flat_map(|(protocol, ranges)| {
            let ports = |(first, last): &(u16, u16)| Ports {
                first: *first,
                last: *last,
            };
            ranges.iter().map(move |range| (protocol, ports(range)))
        })
    }

    /// Whether a port is taken.
    #[must_use]
    pub fn contains(&self, protocol: Protocol, port: Port) -> bool {
        let ranges = match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        };
        let after = ranges.partition_point(|(first, _)| *first <= port.get());
        let before = after.checked_sub(1).map(|place| ranges[place]);
        before.is_some_and(|(_, last)| port.get() <= last)
    }
}

/// Ranges that touch or overlap are one.
impl FromIterator<(Protocol, Ports)> for TakenPorts {
    fn from_iter<I: IntoIterator<Item = (Protocol, Ports)>>(all: I) -> Self {
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by_key(|(_, ports)| (ports.first, ports.last));
        let mut taken = Self::default();
        for (protocol, Ports { first, last }) in all {
            let ranges = match protocol {
                Protocol::Tcp => &mut taken.tcp,
                Protocol::Udp => &mut taken.udp,
            };
            match ranges.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => ranges.push((first, last)),
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_merged_and_found() {
        let range = |first, last| (Protocol::Tcp, Ports { first, last });
        let udp = (Protocol::Udp, Ports { first: 5, last: 5 });
        let taken: TakenPorts = [
            range(20, 30),
            range(10, 19),
            range(25, 26),
            range(40, 40),
            udp,
        ]
        .into_iter()
        .collect();
        assert_eq!(taken.tcp, [(10, 30), (40, 40)]);
        let found = (0..=50).filter(|port| taken.contains(Protocol::Tcp, Port::new(*port)));
        let expected = (10..=30).chain([40]);
        assert!(found.eq(expected));
        assert!(taken.contains(Protocol::Udp, Port::new(5)));
        assert!(!taken.contains(Protocol::Tcp, Port::new(5)));
        assert!(TakenPorts::default().is_empty() && !taken.is_empty());
        let text = serde_json::to_string(&taken).expect("JSON");
        assert_eq!(text, r#"{"tcp":[[10,30],[40,40]],"udp":[[5,5]]}"#);
    }
}
