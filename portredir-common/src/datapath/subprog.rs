//! The parts of the datapath that are BPF functions of their own: the bodies of
//! [`Subprograms`].

use crate::datapath::rule_match::choose;
use crate::datapath::{conntrack, own_flow, unmatched};
use crate::flow::{Admitted, FlowKey, Original};
use crate::kernel::{Admission, Route, Socket, Subprograms, Tables};
use crate::map::rules::{Choice, PortEntry, PreviousTargets};
use crate::net::{Flags, Protocol};
use crate::packed::Packed;
use crate::verdict::Reason;

/// **Shape**, from the lowest bit: target port 16, rule 16, whether a rule redirects
/// the packet, whether it leads to a service.
impl Packed for Route {
    #[inline(always)]
    fn pack(self) -> u64 {
        let choice = Choice {
            target: self.target,
            rule: self.rule,
            is_forward: self.is_forward,
        };
        let is_match = if self.is_match { Self::MATCH } else { 0 };
        choice.pack() | is_match
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        let Choice {
            target,
            rule,
            is_forward,
        } = Choice::unpack(word);
        Self {
            target,
            rule,
            is_match: word & Self::MATCH != 0,
            is_forward,
        }
    }
}

impl Route {
    const MATCH: u64 = 1 << 32;
}

/// The body of [`Subprograms::find_route`].
///
/// # Errors
///
/// The reason why the packet is not redirected.
#[inline(always)]
pub fn find_route<T: Tables + Subprograms>(
    tables: &T,
    key: &mut FlowKey,
    entry: PortEntry,
    flags: Flags,
) -> Result<Route, Reason> {
    let protocol = key.protocol()?;
    let dst_port = key.local_port;
    let original = Original {
        dst_port,
        client_port: key.client_port,
        rule: entry.rule,
    };
    if entry.is_old() {
        let previous = tables.previous_targets(entry, protocol, dst_port);
        for i in 0..PreviousTargets::COUNT {
            let Some(target) = previous.target(i) else {
                break;
            };
            key.local_port = target;
            if let Some(rule) = tables.has_begun(key, original, flags) {
                return Ok(Route {
                    target,
                    rule,
                    is_match: true,
                    is_forward: false,
                });
            }
        }
    }
    let Some(choice) = choose(tables, entry, key, dst_port) else {
        key.local_port = dst_port;
        return direct_route(tables, key, entry, flags);
    };
    // One word, as the BPF stack is small.
    let word = choice.pack() | Route::MATCH;
    if choice.is_forward {
        key.local_port = dst_port;
        return Ok(Route::unpack(word));
    }
    key.local_port = choice.target;
    if entry.is_if_listening() && !tables.is_served(key) {
        let has_begun =
            protocol == Protocol::Tcp && tables.has_begun(key, original, flags).is_some();
        if !has_begun {
            return Err(Reason::NotListening);
        }
    }
    Ok(Route::unpack(word))
}

/// The route of a packet that no rule redirects and that may be for its destination port
/// as for a target port. Not inlined: the BPF stack is small.
#[inline(never)]
fn direct_route<T: Tables>(
    tables: &T,
    key: &FlowKey,
    entry: PortEntry,
    flags: Flags,
) -> Result<Route, Reason> {
    if !entry.is_target() {
        return Err(unmatched(entry));
    }
    if entry.is_hidden() && !tables.came_in_on_loopback() {
        let has_begun = match key.protocol()? {
            Protocol::Tcp => !flags.is_syn() || tables.socket(key) == Socket::Connection,
            Protocol::Udp => own_flow::is_live_udp(tables, key),
        };
        if !has_begun {
            return Ok(Route::CLOSED);
        }
    }
    Ok(Route {
        target: key.local_port,
        rule: entry.rule,
        is_match: false,
        is_forward: false,
    })
}

/// The body of [`Subprograms::has_begun`].
#[inline(always)]
pub fn has_begun<T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    original: Original,
    flags: Flags,
) -> Option<u16> {
    conntrack::has_begun(tables, key, original, flags)
}

/// The body of [`Subprograms::admit`], for what a look at the flow tables does not
/// settle.
///
/// # Errors
///
/// [`Reason::ForeignFlow`], [`Reason::NoFreePort`], [`Reason::TableFull`].
#[inline(always)]
pub fn admit<T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    request: &Admission,
) -> Result<Admitted, Reason> {
    let original = Original {
        dst_port: request.dst_port,
        client_port: key.client_port,
        rule: request.route.rule,
    };
    match key.protocol()? {
        Protocol::Udp => conntrack::admit_udp(tables, key, original),
        Protocol::Tcp if request.route.is_match => {
            conntrack::redirect_tcp(tables, key, original, request.segment)
        }
        Protocol::Tcp => conntrack::direct_tcp(tables, key, original, request.segment),
    }
}

#[cfg(test)]
mod tests {
    use core::fmt::Debug;

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::flow::{Epoch, Flow, FlowTable};
    use crate::map::entry::{Connection, Entry};
    use crate::map::hash::Hash;
    use crate::net::{Port, Version};
    use crate::wire::headers::{MAX_OFFSET, Packet, Payload};

    fn assert_roundtrip<T: Packed + Copy + PartialEq + Debug>(value: T) {
        assert_eq!(T::unpack(value.pack()), value);
    }

    fn packet(offsets: (usize, usize), payload: Payload, is_v6: bool, is_fragment: bool) -> Packet {
        Packet {
            version: if is_v6 { Version::V6 } else { Version::V4 },
            network: offsets.0,
            transport: offsets.1,
            payload,
            is_fragment,
        }
    }

    const PAYLOADS: [Payload; 3] = [
        Payload::Ports(Protocol::Tcp),
        Payload::Ports(Protocol::Udp),
        Payload::Icmp,
    ];

    proptest! {
        #[test]
        fn roundtrip(
            (ports, rule, offsets) in
                (any::<(u16, u16)>(), any::<u16>(), (0..=MAX_OFFSET, 0..=MAX_OFFSET)),
            (flags, set, seen) in any::<(u16, u16, u16)>(),
            (is_set, is_v6, hash) in any::<(bool, bool, u64)>(),
            (payload, reason, table) in
                (select(&PAYLOADS[..]), select(Reason::ALL), select(&FlowTable::ALL[..])),
        ) {
            let (dst_port, client_port) = (Port::new(ports.0), Port::new(ports.1));
            let route = Route { target: dst_port, rule, is_match: is_set, is_forward: is_v6 };
            let choice = Choice { target: client_port, rule, is_forward: is_v6 };
            let some_choice = is_set.then_some(choice).filter(|choice| choice.target != Port::new(0));
            let packet = packet(offsets, payload, is_v6, is_set);
            let flow = Flow { dst_port, client_port, rule, seen: Epoch(seen) };
            let entry = Entry::new(Hash(hash), &flow);
            let entry = if is_set { entry.remapped() } else { entry };
            let admitted = if is_set {
                Admitted::inserted(client_port)
            } else {
                Admitted::established(client_port)
            };
            assert_roundtrip(dst_port);
            assert_roundtrip(rule);
            assert_roundtrip(offsets.0);
            assert_roundtrip(route);
            assert_roundtrip(choice);
            assert_roundtrip(packet);
            assert_roundtrip(admitted);
            assert_roundtrip(flow);
            assert_roundtrip(table);
            assert_roundtrip(PortEntry { target: dst_port, rule, flags, set });
            assert_roundtrip(is_set.then_some(rule));
            assert_roundtrip(is_set.then_some(dst_port));
            assert_roundtrip(some_choice);
            assert_roundtrip(entry);
            // There is no entry that is all zero.
            assert_roundtrip(is_set.then_some(entry).filter(|entry| entry.pack() != 0));
            assert_roundtrip(Connection::new(FlowTable::Tcp, entry));
            assert_roundtrip(Some(Connection::new(FlowTable::Syn, entry)));
            for result in [Ok(route), Err(reason)] {
                assert_roundtrip(result);
            }
            for result in [Ok(packet), Err(reason)] {
                assert_roundtrip(result);
            }
            for result in [Ok(admitted), Err(reason)] {
                assert_roundtrip(result);
            }
            for result in [Ok(offsets.1), Err(reason)] {
                assert_roundtrip(result);
            }
        }
    }
}
