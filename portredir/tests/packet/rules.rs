//! Rules with conditions and ranges, rules that have changed, hidden targets,
//! and targets without a server.

use portredir_common::flow::{Flow, FlowKey, FlowTable};
use portredir_common::kernel::Socket;
use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::builder::{ACK, CLIENT_PORT, Packet};
use super::error::IcmpError;
use super::flows::{KINDS, Kind};
use super::mock::Tables;
use super::tcp::{syn, with_rule};
use super::{Case, Iface, seen};

/// A client port that was given on a collision.
const GIVEN: u16 = 50_123;

pub fn cases() -> Vec<Case> {
    KINDS
        .into_iter()
        .flat_map(|kind| {
            let parts = [
                conditions(kind),
                client_conditions(kind),
                ranges(kind),
                overlapping(kind),
                changed(kind),
                changed_flow_state(kind),
                hidden(kind),
                not_listening(kind),
            ];
            parts.into_iter().flatten()
        })
        .collect()
}

/// A packet that begins a flow.
fn first(kind: Kind, port: u16) -> Packet {
    match kind.protocol {
        Protocol::Tcp => syn(kind, port),
        Protocol::Udp => kind.packet(port),
    }
}

/// Most conditions at once; IPv4 and IPv6 alike.
const MANY: &[&str] = &[
    // The most general comes first and is taken last.
    "80:8080/both",
    "80:8081/both from 198.51.0.0/16",
    "80:8082/both from 198.51.100.0/24 on eth9",
    "80:8083/both from 198.51.100.0/28 on other",
    "192.0.2.2:80:8084/both",
    "192.0.2.2:80:8085/both from 198.51.100.7",
    "80:8086/both from 2001:db8::/32",
    "80:8087/both from 2001:db8:1::/48 on other,eth9",
    "80:8088/both from 0.0.0.0/0",
    "81:8081/both on other",
    "81:8082/both on lo",
    "82:8082/both from 198.51.100.0/24",
    "82:8083/both from 2001:db8:1::/64",
    "83:8083/both from 203.0.113.0/24",
    "83:8083/both from 2001:db8:ffff::/48",
    "84:8084/both from 198.51.100.6/31",
    "84:8085/both from 198.51.100.6",
    "84:8086/both from 2001:db8:1::6/127",
];

/// A packet that [`MANY`] rules, each with its condition, may redirect.
struct Conditional {
    kind: Kind,
    what: &'static str,
    packet: Packet,
    iface: Iface,
}

impl Conditional {
    fn case(&self) -> Case {
        let name = format!("{} conditions: {}", self.kind.name, self.what);
        let case = Case::ingress(name, &self.packet);
        case.rules(MANY).iface(self.iface)
    }

    /// The packet begins a flow to `target`.
    fn goes_to(self, target: u16) -> Case {
        let redirected = self.packet.clone().dst_port(target);
        self.case().redirected(&redirected).begins_flow()
    }

    /// The packet passes, for this reason.
    fn passes(self, reason: Reason) -> Case {
        self.case().unchanged(reason).leaves_state()
    }
}

fn conditions(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} conditions: {what}", kind.name);
    let new = |what, packet, iface| Conditional {
        kind,
        what,
        packet,
        iface,
    };
    let by = |v4, v6| if kind.is_ipv4 { v4 } else { v6 };
    let packet = |port| first(kind, port);
    vec![
        new("the longest prefix", packet(80), Iface::Lo).goes_to(by(8081, 8086)),
        new("and the interface", packet(80), Iface::Other).goes_to(by(8083, 8087)),
        new("one interface", packet(81), Iface::Other).goes_to(8081),
        new("another interface", packet(81), Iface::Lo).goes_to(8082),
        new("a prefix", packet(82), Iface::Lo).goes_to(by(8082, 8083)),
        new("no such client", packet(83), Iface::Lo).passes(Reason::NoMatch),
        new("within a narrow prefix", packet(84), Iface::Lo).goes_to(by(8084, 8086)),
        new("no rule at all", packet(85), Iface::Lo).passes(Reason::NoRule),
        // What some rule sends there goes on as before.
        Case::ingress(name("a target of others"), &kind.packet(8083))
            .rules(MANY)
            .unchanged(Reason::Direct),
        // A reply needs no condition, as its flow is known.
        Case::egress(name("a reply"), &kind.reply(8083))
            .rules(MANY)
            .flow(kind.table(), kind.key(8083), seen(80, 0))
            .restored(&kind.reply(80)),
    ]
}

/// Clients that rules name, and clients that they do not.
fn client_conditions(kind: Kind) -> Vec<Case> {
    let new = |what, packet, iface| Conditional {
        kind,
        what,
        packet,
        iface,
    };
    let packet = |port| first(kind, port);
    if !kind.is_ipv4 {
        let far = packet(80).from([0x2a00, 0, 0, 0, 0, 0, 0, 1].into(), CLIENT_PORT);
        return vec![new("not as an IPv4 client", far, Iface::Lo).goes_to(8080)];
    }
    let second = packet(80).to([192, 0, 2, 2].into());
    let other = second.clone().from([198, 51, 100, 8].into(), CLIENT_PORT);
    let far = packet(80).from([203, 0, 113, 9].into(), CLIENT_PORT);
    let far_84 = far.clone().dst_port(84);
    vec![
        new("an address, and a client", second, Iface::Other).goes_to(8085),
        new("an address before a prefix", other, Iface::Other).goes_to(8084),
        new("any IPv4 client", far, Iface::Lo).goes_to(8088),
        new("an address next to a prefix", far_84, Iface::Lo).passes(Reason::NoMatch),
    ]
}

const RANGES: &[&str] = &[
    "8000-8100:9000-9100/both",
    "7000-7100:9200/both",
    "1-1000:64536-65535/both from 198.51.100.0/24",
    "1-1000:64536-65535/both from 2001:db8:1::/64",
];

fn ranges(kind: Kind) -> Vec<Case> {
    let name = |what: String| format!("{} ranges: {what}", kind.name);
    let mut cases: Vec<_> = [
        (8000, 9000),
        (8042, 9042),
        (8100, 9100),
        (7000, 9200),
        (7100, 9200),
        (1, 64536),
        (1000, 65535),
    ]
    .into_iter()
    .flat_map(|(dialled, target)| {
        let packet = first(kind, dialled);
        let key = kind.key(target);
        [
            Case::ingress(name(format!("to {dialled}")), &packet)
                .rules(RANGES)
                .redirected(&packet.clone().dst_port(target)),
            Case::egress(name(format!("from {dialled}")), &kind.reply(target))
                .rules(RANGES)
                .flow(kind.table(), key, seen(dialled, 0))
                .restored(&kind.reply(dialled)),
        ]
    })
    .collect();
    for port in [7999, 8101, 6999, 7101, 1001] {
        cases.push(
            Case::ingress(name(format!("beside, {port}")), &first(kind, port))
                .rules(RANGES)
                .unchanged(Reason::NoRule),
        );
    }
    let icmp = if kind.is_ipv4 { 3 } else { 1 };
    for (dialled, target) in [(8042, 9042), (999, 65534)] {
        let error = IcmpError::new(icmp, 1, kind.reply(dialled));
        let translated = error.clone().ports(target, CLIENT_PORT).packet();
        cases.push(
            Case::ingress(name(format!("an error about {dialled}")), &error.packet())
                .rules(RANGES)
                .flow(kind.table(), kind.key(target), seen(dialled, 0))
                .becomes(Reason::IcmpTranslated, &translated),
        );
    }
    cases
}

/// Rules for the same ports: fewer ports win, but fewer clients before that.
const OVERLAPPING: &[&str] = &[
    "7000-7100:9300/both",
    "7010-7020:9301/both",
    "7015:9302/both",
    "8000:9303/both",
    "8000-8001:9304/both from 0.0.0.0/0",
];

fn overlapping(kind: Kind) -> Vec<Case> {
    let of_clients = if kind.is_ipv4 { 9304 } else { 9303 };
    [
        (7000, 9300),
        (7009, 9300),
        (7010, 9301),
        (7014, 9301),
        (7015, 9302),
        (7016, 9301),
        (7021, 9300),
        (8000, of_clients),
    ]
    .into_iter()
    .map(|(dialled, target)| {
        let packet = first(kind, dialled);
        let name = format!("{} overlapping ranges: to {dialled}", kind.name);
        Case::ingress(name, &packet)
            .rules(OVERLAPPING)
            .redirected(&packet.clone().dst_port(target))
    })
    .collect()
}

/// The rules that hold now, and below them the rules that held before.
const NOW: &[&str] = &["80:9090/both", "82:8082/both from 203.0.113.0/24"];
const BEFORE: &[&str] = &["80:8080/both", "81:8080/both", "82:8080/both"];

/// A packet that meets the rules of now.
fn after_change(kind: Kind, what: &str, packet: &Packet) -> Case {
    let name = format!("{} changed: {what}", kind.name);
    Case::ingress(name, packet).rules(NOW).earlier(BEFORE)
}

fn changed(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} changed: {what}", kind.name);
    let case = |what, packet: &Packet| after_change(kind, what, packet);
    let known = |what, dialled: u16, rule| {
        let packet = kind.packet(dialled);
        let flow = with_rule(seen(dialled, 0), rule);
        case(what, &packet)
            .flow(kind.table(), kind.key(8080), flow)
            .socket_if(kind, Socket::Connection)
            .redirected(&packet.clone().dst_port(8080))
            .continues_flow()
            .leaves_state()
    };
    let icmp = if kind.is_ipv4 { 3 } else { 1 };
    let error = IcmpError::new(icmp, 1, kind.reply(80));
    let translated = |target| error.clone().ports(target, CLIENT_PORT).packet();
    vec![
        known("an old flow goes on", 80, 0),
        known("an old flow of a rule that is gone", 81, 1),
        known("an old flow of a rule that has a condition now", 82, 2),
        case("a new flow", &first(kind, 80))
            .redirected(&first(kind, 80).dst_port(9090))
            .begins_flow(),
        case("a new flow by a rule that is gone", &first(kind, 81))
            .unchanged(Reason::Draining)
            .leaves_state(),
        case("a remapped flow goes on", &kind.packet(80))
            .flow(kind.table(), kind.key_from(GIVEN, 8080), seen(80, 0))
            .remap(kind.key(80), GIVEN)
            .redirected(&kind.packet(8080).src_port(GIVEN))
            .continues_flow()
            .leaves_state(),
        case("a new flow goes on", &kind.packet(80))
            .flow(kind.table(), kind.key(9090), seen(80, 0))
            .redirected(&kind.packet(9090))
            .continues_flow()
            .leaves_state(),
        Case::egress(name("a reply of an old flow"), &kind.reply(8080))
            .rules(NOW)
            .earlier(BEFORE)
            .flow(kind.table(), kind.key(8080), seen(81, 0))
            .restored(&kind.reply(81)),
        case("an error about an old flow", &error.packet())
            .flow(kind.table(), kind.key(8080), seen(80, 0))
            .becomes(Reason::IcmpTranslated, &translated(8080))
            .leaves_state(),
        case("an error about a new flow", &error.packet())
            .flow(kind.table(), kind.key(9090), seen(80, 0))
            .becomes(Reason::IcmpTranslated, &translated(9090))
            .leaves_state(),
    ]
}

/// Flows whose entries are old, idle or lost when the rules change.
fn changed_flow_state(kind: Kind) -> Vec<Case> {
    let case = |what, packet: &Packet| after_change(kind, what, packet);
    let key = kind.key(8080);
    if kind.protocol == Protocol::Udp {
        let idle = case("an idle old flow", &kind.packet(80))
            .flow(FlowTable::Udp, key, seen(80, 130))
            .redirected(&kind.packet(9090));
        return vec![idle];
    }
    let ack = |port| kind.packet(port).flags(ACK);
    vec![
        case("a new connection from the same port", &first(kind, 80))
            .flow(FlowTable::Tcp, key, seen(80, 0))
            .redirected(&first(kind, 80).dst_port(9090))
            .begins_flow(),
        case("an old flow whose entry was lost", &ack(80))
            .socket(key, Socket::Connection)
            .redirected(&ack(8080))
            .continues_flow(),
    ]
}

fn hidden(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} hidden: {what}", kind.name);
    let case =
        |what, packet: &Packet, iface| Case::ingress(name(what), packet).hiding().iface(iface);
    let packet = first(kind, 8080);
    let mut cases = vec![
        case("from another host", &packet, Iface::Other).becomes(Reason::Hidden, &first(kind, 0)),
        case("from this host", &packet, Iface::Lo).unchanged(Reason::Direct),
        case("by the rule", &first(kind, 80), Iface::Other).redirected(&packet),
        case("another port", &first(kind, 8081), Iface::Other).unchanged(Reason::NoRule),
        case("a target that is gone", &packet, Iface::Other)
            .rules(&["81:8081/both"])
            .earlier(super::RULES)
            .unchanged(Reason::Direct),
    ];
    if kind.protocol == Protocol::Tcp {
        let ack = kind.packet(8080).flags(ACK);
        cases.push(
            case("an older connection", &ack, Iface::Other)
                .socket(kind.key(8080), Socket::Connection)
                .unchanged(Reason::Direct),
        );
        cases.push(
            case("its SYN again", &packet, Iface::Other)
                .socket(kind.key(8080), Socket::Connection)
                .unchanged(Reason::Direct),
        );
    }
    cases
}

/// To ports on which no test listens.
const UNSERVED: &[&str] = &["80:8099/both", "90:8080/udp"];

fn not_listening(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} unserved: {what}", kind.name);
    let case = |what, packet: &Packet| {
        Case::ingress(name(what), packet)
            .rules(UNSERVED)
            .if_listening()
            .unserved()
    };
    let mut cases = vec![
        case("a new flow", &first(kind, 80))
            .unchanged(Reason::NotListening)
            .leaves_state(),
    ];
    if kind.protocol == Protocol::Tcp {
        let key: FlowKey = kind.key(8099);
        let flow: Flow = seen(80, 0);
        cases.push(
            case("a connection", &kind.packet(80))
                .flow(FlowTable::Tcp, key, flow)
                .socket(key, Socket::Connection)
                .redirected(&kind.packet(8099))
                .leaves(Tables::default().flow(FlowTable::Tcp, key, flow)),
        );
    } else {
        cases.push(
            case("a flow whose server has gone", &kind.packet(80))
                .flow(FlowTable::Udp, kind.key(8099), seen(80, 0))
                .unchanged(Reason::NotListening)
                .leaves_state(),
        );
        cases.push(Case {
            is_unserved: false,
            ..case("a server", &kind.packet(90)).redirected(&kind.packet(8080))
        });
    }
    cases
}
