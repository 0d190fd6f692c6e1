//! The datapath on this machine, without a kernel: the table of cases, and
//! properties of random packets. Sequences of packets are in `sequence` and
//! `model`, the socket engine is in
//! `sk_lookup`, `connect` and `peers`.

#[path = "packet/assign.rs"]
mod assign;
#[path = "packet/connect.rs"]
mod connect;
#[path = "packet/forwarding.rs"]
mod forwarding;
#[path = "../../fuzz/src/lib.rs"]
mod fuzz;
#[path = "traffic/million.rs"]
mod million;
#[path = "packet/model.rs"]
mod model;
mod packet;
#[path = "packet/partial.rs"]
mod partial;
#[path = "packet/peers.rs"]
mod peers;
#[path = "packet/random.rs"]
mod random;
mod reference;
#[path = "packet/sequence.rs"]
mod sequence;
#[path = "packet/sk_lookup.rs"]
mod sk_lookup;
mod traffic;

use std::fs;
use std::net::Ipv6Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use packet::builder::Packet;
use packet::mock::{Hex, Mock, Tables};
use packet::{Case, Hook, Iface, Out};
use portredir_common::flow::FlowKey;
use portredir_common::kernel::{Socket, Tables as _};
use portredir_common::net::Addr;
use portredir_common::verdict::Reason;
use portredir_common::wire::frame::Link;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestCaseResult;
use random::{Damage, RULES, Sample};

/// Runs one case and panics when anything is not as it should be.
fn check(case: &Case) {
    let mock = case.mock();
    let (reason, packet) = mock.run(case.hook, case.link, &case.packet);
    let tables = mock.tables.borrow();
    assert!(
        case.allows(reason),
        "reason {reason:?}, not {:?}",
        case.reason
    );
    let (expected, after) = case.expected(&tables);
    assert_eq!(Hex(&packet), Hex(&expected), "packet");
    if let Some(after) = after {
        tables.assert_is(&after, 0);
    }
    let replies = mock.replies.borrow();
    let replies: Vec<_> = replies
        .iter()
        .map(|hit| (hit.segments, hit.bytes))
        .collect();
    let restored = (reason == Reason::Restored).then_some((1, packet.len()));
    assert_eq!(replies, Vec::from_iter(restored), "counted replies");
    let hits = mock.hits.borrow();
    if reason != Reason::Redirected {
        assert_eq!(*hits, [], "counted packets");
        return;
    }
    let [hit] = hits[..] else {
        panic!("counted packets: {hits:?}");
    };
    assert_eq!((hit.segments, hit.bytes), (1, packet.len()), "{hit:?}");
    assert_eq!(
        hit.begins_flow(),
        case.is_new.unwrap_or(hit.begins_flow()),
        "{hit:?}"
    );
}

#[test]
fn table() {
    let cases = packet::table();
    let is_failed = |case: &&Case| {
        // The panic itself tells what is wrong.
        let result = catch_unwind(AssertUnwindSafe(|| check(case)));
        if result.is_err() {
            eprintln!("in case `{}`\n", case.name);
        }
        result.is_err()
    };
    let failed: Vec<_> = cases
        .iter()
        .filter(is_failed)
        .map(|case| &case.name)
        .collect();
    let (count, of) = (failed.len(), cases.len());
    assert!(
        failed.is_empty(),
        "{count} of {of} cases failed: {failed:#?}"
    );
}

/// The inputs that fuzzing found worth keeping.
#[test]
fn corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (target, check) in [
        ("rule", fuzz::rule as fn(&[u8])),
        ("config", fuzz::config),
        ("state", fuzz::state),
        ("packet", traffic::session::packet),
    ] {
        let files = fs::read_dir(corpus.join(target)).expect(target);
        let mut count = 0;
        for file in files {
            let path = file.expect("a file").path();
            let input = fs::read(&path).expect("bytes");
            let result = catch_unwind(|| check(&input));
            assert!(result.is_ok(), "{}", path.display());
            count += 1;
        }
        assert!(count >= 10, "{target} has {count} files");
    }
}

#[test]
fn table_has_all_reasons() {
    let cases = packet::table();
    let scenarios = packet::forward::scenarios();
    let of_scenarios = || {
        scenarios
            .iter()
            .flat_map(packet::scenario::Scenario::reasons)
    };
    for reason in Reason::ALL {
        // These need a host that is out of room, see `sequence`; or no packet,
        // see `sk_lookup`. The last ones are about sockets of local clients.
        if matches!(
            reason,
            Reason::NoFreePort
                | Reason::TableFull
                | Reason::WriteFailed
                | Reason::NoListener
                | Reason::BoundToLoopback
                | Reason::CannotReachIpv4
        ) {
            continue;
        }
        assert!(
            cases.iter().any(|case| case.reason == *reason)
                || of_scenarios().any(|of_scenario| of_scenario == *reason),
            "no case for {reason:?}"
        );
    }
}

/// A client port that is given on a collision is any, but not a privileged one.
#[test]
fn any_random_number_gives_a_port() {
    for case in packet::table() {
        if !matches!(case.out, Out::Remapped(_)) {
            continue;
        }
        for random in [0, 1, 64_511, 64_512, 0x7fff_ffff, u32::MAX] {
            let mock = case.mock();
            mock.random.set(random);
            let (_, packet) = mock.run(case.hook, case.link, &case.packet);
            let tables = mock.tables.borrow();
            assert_eq!(packet, case.expected(&tables).0, "{}", case.name);
            let port = tables
                .new_client_port(&case.before)
                .expect("a new port")
                .get();
            assert!(port >= 1024, "{}: {port}", case.name);
        }
    }
}

#[test]
fn addresses_reach_as_far_as_they_should() {
    let lo = Mock::new(&[], &packet::local_addrs());
    let other = Mock {
        iface: Iface::Other,
        ..lo.clone()
    };
    for (addr, on_lo, elsewhere) in [
        (Addr::v4([192, 0, 2, 1]), true, true),
        (Addr::v4([127, 0, 0, 1]), true, false),
        (Addr::v4([127, 255, 1, 2]), true, false),
        (Addr::v4([126, 0, 0, 1]), false, false),
        (Addr::new(Ipv6Addr::LOCALHOST.octets()), true, false),
        (Addr::new([127; 16]), false, false),
    ] {
        assert_eq!(lo.is_local(&addr), on_lo, "{addr:?}");
        assert_eq!(other.is_local(&addr), elsewhere, "{addr:?}");
    }
}

/// A host in the middle of something.
fn host() -> impl Strategy<Value = Mock> {
    let socket = select(vec![Socket::None, Socket::TimeWait, Socket::Connection]);
    let sockets = vec((any::<Index>(), socket), 0..3);
    let is_draining = prop::bool::weighted(0.2);
    (
        random::tables(),
        sockets,
        any::<u32>(),
        any::<bool>(),
        is_draining,
    )
        .prop_map(|(tables, sockets, random, is_on_lo, is_draining)| {
            let mut mock = Mock::new(RULES, &packet::local_addrs());
            let keys: Vec<FlowKey> = tables
                .tcp
                .keys()
                .chain(tables.syn.keys())
                .copied()
                .collect();
            for (at, socket) in sockets {
                if !keys.is_empty() {
                    mock.sockets.insert(keys[at.index(keys.len())], socket);
                }
            }
            mock.tables.replace(tables);
            mock.random.set(random);
            mock.iface = if is_on_lo { Iface::Lo } else { Iface::Other };
            if is_draining { mock.draining() } else { mock }
        })
}

fn hook_and_sample() -> impl Strategy<Value = (Hook, Sample)> {
    random::hook().prop_flat_map(|hook| (Just(hook), random::sample(hook)))
}

const fn is_rewrite(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Redirected | Reason::Restored | Reason::DirectRemapped | Reason::IcmpTranslated
    )
}

/// How many bytes may change: two ports and a checksum.
const fn limit(reason: Reason) -> usize {
    if is_rewrite(reason) { 6 } else { 0 }
}

fn ports_at(frame: &[u8], at: usize) -> (u16, u16) {
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (port(at), port(at + 2))
}

/// Has etherparse find the headers of a packet, and judge their checksum.
fn assert_valid(link: Link, frame: &[u8]) -> TestCaseResult {
    let parsed = match link {
        Link::Ethernet => SlicedPacket::from_ethernet(frame),
        Link::Ip => SlicedPacket::from_ip(frame),
    };
    // It insists on the order of extension headers that RFC 8200 recommends.
    let Ok(packet) = parsed else {
        return Ok(());
    };
    let (found, computed) = match (packet.transport, packet.net) {
        (Some(TransportSlice::Tcp(tcp)), Some(NetSlice::Ipv4(ip))) => {
            let ip = ip.header();
            (
                tcp.checksum(),
                tcp.calc_checksum_ipv4(ip.source(), ip.destination()),
            )
        }
        (Some(TransportSlice::Tcp(tcp)), Some(NetSlice::Ipv6(ip))) => {
            let ip = ip.header();
            (
                tcp.checksum(),
                tcp.calc_checksum_ipv6(ip.source(), ip.destination()),
            )
        }
        (Some(TransportSlice::Udp(udp)), Some(NetSlice::Ipv4(ip))) => {
            let header = udp.to_header();
            let sum = header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
            (header.checksum, sum)
        }
        (Some(TransportSlice::Udp(udp)), Some(NetSlice::Ipv6(ip))) => {
            let header = udp.to_header();
            let sum = header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload());
            (header.checksum, sum)
        }
        // ICMP, fragments, and what etherparse does not follow.
        _ => return Ok(()),
    };
    prop_assert!(
        found == 0 || Ok(found) == computed,
        "{found:#06x}, not {computed:x?}"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(8192) })]

    /// After a rewrite the packet is the one that etherparse builds with the
    /// new ports; otherwise not a byte has changed.
    #[test]
    fn only_ports_and_checksums_change(mock in host(), (hook, sample) in hook_and_sample()) {
        let before = sample.bytes();
        let link = sample.packet().link;
        let (reason, after) = mock.run(hook, link, &before);
        if !is_rewrite(reason) {
            prop_assert_eq!(Hex(&after), Hex(&before));
            return Ok(());
        }
        let (src, dst) = ports_at(&after, sample.ports_at());
        prop_assert_eq!(Hex(&after), Hex(&sample.with_ports(src, dst).bytes()));
        assert_valid(link, &after)?;
        let was = ports_at(&before, sample.ports_at());
        match reason {
            Reason::Redirected => prop_assert_ne!(was.1, dst),
            Reason::Restored => prop_assert_ne!(was, (src, dst)),
            Reason::DirectRemapped => prop_assert!(was.0 != src && was.1 == dst),
            _ => {}
        }
    }

    /// The answer to a redirected packet reaches the client as if the port it
    /// dialled had sent it.
    #[test]
    fn reply_undoes_original(mock in host(), packet in random::packet(Hook::Ingress)) {
        let (reason, redirected) = mock.run(Hook::Ingress, packet.link, &packet.bytes());
        if !matches!(reason, Reason::Redirected | Reason::DirectRemapped) {
            return Ok(());
        }
        let (client, target) = ports_at(&redirected, packet.transport());
        let reply = packet.clone().ports(client, target).reply();
        let (reason, restored) = mock.run(Hook::Egress, packet.link, &reply.bytes());
        prop_assert_eq!(reason, Reason::Restored);
        prop_assert_eq!(Hex(&restored), Hex(&packet.reply().bytes()));
    }

    /// Two packets of one flow are treated alike.
    #[test]
    fn a_second_packet_is_treated_alike(mock in host(), packet in random::packet(Hook::Ingress)) {
        let first = mock.run(Hook::Ingress, packet.link, &packet.bytes());
        let tables = mock.tables.borrow().clone();
        let second = mock.run(Hook::Ingress, packet.link, &packet.bytes());
        prop_assert_eq!(first, second);
        mock.tables.borrow().assert_is(&tables, 0);
    }

    /// Damaged packets: no panic, and no more than two ports and a checksum
    /// change.
    #[test]
    fn damage_is_survived(
        mock in host(),
        (hook, sample) in hook_and_sample(),
        damage in vec(random::one_damage(), 1..4),
    ) {
        let mut before = sample.bytes();
        damage.iter().for_each(|damage| damage.apply(&mut before));
        let (reason, after) = mock.run(hook, sample.packet().link, &before);
        let changed = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        prop_assert_eq!(before.len(), after.len());
        prop_assert!(changed <= limit(reason), "{} bytes changed", changed);
    }

    /// A packet that was cut anywhere before its end is left alone.
    #[test]
    fn a_cut_packet_is_left_alone(
        mock in host(),
        (hook, sample) in hook_and_sample(),
        at in any::<Index>(),
    ) {
        let packet = Packet { padding: 0, ..sample.packet() };
        let whole = packet.bytes();
        let cut = &whole[..at.index(whole.len())];
        let (reason, after) = mock.run(hook, packet.link, cut);
        prop_assert!(!is_rewrite(reason), "{:?}", reason);
        prop_assert_eq!(Hex(&after), Hex(cut));
    }

    /// Bytes that are no packet at all.
    #[test]
    fn noise_is_survived(
        mock in host(),
        (hook, link) in (random::hook(), select(vec![Link::Ethernet, Link::Ip])),
        // A likely EtherType and version, to get further than the first check.
        start in select(vec![(0x0800, 0x45), (0x86dd, 0x60), (0x8100, 0x46), (0, 0x45), (0, 0x60)]),
        mut bytes in vec(any::<u8>(), 0..200),
    ) {
        let (ethertype, version): (u16, u8) = start;
        if let (Link::Ethernet, Some(header)) = (link, bytes.get_mut(12..15)) {
            header[..2].copy_from_slice(&ethertype.to_be_bytes());
            header[2] = version;
        } else if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        let (reason, after) = mock.run(hook, link, &bytes);
        let changed = bytes.iter().zip(&after).filter(|(a, b)| a != b).count();
        prop_assert!(changed <= limit(reason), "{} bytes changed", changed);
    }

    /// Without rules nothing changes, and nothing is remembered.
    #[test]
    fn without_rules_nothing_happens(
        (hook, sample) in hook_and_sample(),
        damage in random::damage(),
    ) {
        let mock = Mock::new(&[], &packet::local_addrs());
        let mut packet = sample.bytes();
        damage.iter().for_each(|damage: &Damage| damage.apply(&mut packet));
        let (reason, after) = mock.run(hook, sample.packet().link, &packet);
        prop_assert!(!is_rewrite(reason));
        prop_assert_eq!(Hex(&after), Hex(&packet));
        mock.tables.borrow().assert_is(&Tables::default(), 0);
    }
}
