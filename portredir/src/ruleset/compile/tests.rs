//! Compares the table with the words of the documentation.

use portredir_common::datapath::rule_match;
use portredir_common::flow::FlowKey;
use portredir_common::kernel::RuleMaps;
use portredir_common::map::rules::{AddrKey, Candidates, IfaceKey, PortEntry, SourceKey};
use portredir_common::net::{Addr, Port};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::rule::tests::arbitrary::{Probe, chosen, near_rule, probes};
use crate::rule::tests::rule;

/// The ifindex of every interface in these tests.
const IFINDEX: u32 = 7;

/// The maps of a table, for packets that come in on one interface.
struct Maps<'a> {
    table: &'a Table,
    iface: &'a str,
}

impl RuleMaps for Maps<'_> {
    fn addr_group(&self, key: &AddrKey) -> Option<u32> {
        self.table.addrs.get(key).copied()
    }

    /// Longest prefix first.
    fn candidates(&self, key: &SourceKey) -> Option<&Candidates> {
        (0..=128).rev().find_map(|length| {
            let key = SourceKey {
                client: Addr::new(cut(key.client.octets(), length)),
                ..*key
            };
            self.table.sources.get(&(SourceKey::PREFIX + length, key))
        })
    }

    fn iface_mask(&self, key: &IfaceKey) -> Option<u64> {
        assert_eq!((key.generation, key.ifindex), (0, IFINDEX));
        let is_on = |list: &[String]| {
            list.iter().any(|name| {
                glob::Pattern::new(name)
                    .expect("a glob")
                    .matches(self.iface)
            })
        };
        let lists = self.table.on_lists().iter().zip(1..);
        Some(lists.fold(0, |mask, (list, bit)| mask | u64::from(is_on(list)) << bit))
    }
}

/// The rule and target port for a packet, found as the programs find them.
fn look_up(table: &Table, packet: &Probe) -> Option<(u16, Port)> {
    let dst_port = packet.port;
    let entry = table.ports[PortEntry::index(packet.protocol, dst_port) as usize];
    if !entry.is_match() {
        return None;
    }
    if entry.set == 0 {
        return Some((entry.rule, entry.target));
    }
    let key = FlowKey {
        client: packet.client.into(),
        local: packet.local.into(),
        client_port: Port::default(),
        local_port: dst_port,
        protocol: packet.protocol as u8,
        version: if packet.client.is_ipv4() { 4 } else { 6 },
        pad: [0; 2],
    };
    let probe = rule_match::Probe {
        key: &key,
        dst_port,
        ifindex: IFINDEX,
    };
    let maps = Maps {
        table,
        iface: packet.iface,
    };
    let choice = rule_match::match_rule(&maps, entry, &probe)?;
    Some((choice.rule, choice.target))
}

/// The first bits of an address.
fn cut(addr: [u8; 16], length: u32) -> [u8; 16] {
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    (u128::from_be_bytes(addr) & mask).to_be_bytes()
}

fn numbered(rules: &[Rule]) -> Vec<(u16, Rule)> {
    (0..=u16::MAX).zip(rules.iter().cloned()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn the_most_specific_wins(rules in vec(near_rule(), 0..10)) {
        let table = Table::compile(&numbered(&rules), &History::default(), TableOptions::default(), |_| None);
        let table = match table {
            // There are few lists of interfaces here, but one port can have too many.
            Err(TableError::Candidates { .. }) => return Ok(()),
            table => table.expect("a table"),
        };
        for packet in probes() {
            let expected = chosen(&rules, &packet).map(|i| {
                (u16::try_from(i).expect("few"), rules[i].target_of(packet.port).expect("one target"))
            });
            prop_assert_eq!(look_up(&table, &packet), expected, "{:?}", packet);
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for port in (1..=200).map(Port::new) {
                let is_target = rules.iter().any(|rule| {
                    rule.protocols.each().contains(&protocol) && rule.is_own_target(port)
                });
                prop_assert_eq!(table.is_target(protocol, port), is_target, "{:?}", port);
            }
        }
    }
}

/// The table of rules, in which the services have the numbers from 1000 by their places.
fn compiled(rules: &[&str], history: &History, options: TableOptions) -> Table {
    let rules: Vec<_> = rules.iter().map(|text| rule(text)).collect();
    let numbers = |place: usize| u16::try_from(1000 + place).ok();
    Table::compile(&numbered(&rules), history, options, numbers).expect("a table")
}

fn flags(table: &Table, protocol: Protocol, port: u16) -> u16 {
    table.ports[index(protocol, Port::new(port))].flags
}

#[test]
fn a_service_is_found_by_its_number() {
    let none = TableOptions::default();
    let rules = ["80-81:10.0.0.5:8080", "443:8443", "81:9090/udp"];
    let table = compiled(&rules, &History::default(), none);
    let entry = |port| table.ports[index(Protocol::Tcp, Port::new(port))];
    for port in [80, 81] {
        assert_eq!(entry(port).flags, PortEntry::MATCH | PortEntry::FORWARD);
        assert_eq!(
            (entry(port).target, entry(port).rule, entry(port).set),
            (Port::new(1000), 0, 0)
        );
    }
    assert_eq!(entry(8080).flags, PortEntry::REMOTE);
    assert_eq!(
        (entry(443).flags, entry(443).target),
        (PortEntry::MATCH, Port::new(8443))
    );
    assert_eq!(entry(8443).flags, PortEntry::TARGET);
    // The other protocol has its own entries.
    assert_eq!(flags(&table, Protocol::Udp, 81), PortEntry::MATCH);
    assert_eq!(flags(&table, Protocol::Udp, 8080), 0);
}

#[test]
fn one_of_several_rules_is_a_service() {
    let rules = [
        "80:8080",
        "10.0.0.1:80:10.0.0.5,10.0.0.6",
        "80:7070 from 10.0.0.0/8",
    ];
    let options = TableOptions {
        if_listening: true,
        ..TableOptions::default()
    };
    let table = compiled(&rules, &History::default(), options);
    let entry = table.ports[index(Protocol::Tcp, Port::new(80))];
    assert_ne!(entry.set, 0);
    let all = PortEntry::MATCH | PortEntry::FORWARD | PortEntry::IF_LISTENING;
    // Port 80 is a port of the targets, too.
    assert_eq!(entry.flags, all | PortEntry::REMOTE);
    let candidates = table.sources.values().flat_map(|candidates| candidates.0);
    let mut found: Vec<_> = candidates
        .filter(|candidate| *candidate != Candidate::default())
        .map(|candidate| {
            (
                candidate.rule,
                candidate.target.port().get(),
                candidate.flags,
            )
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(
        found,
        [(0, 8080, 0), (1, 1001, Candidate::FORWARD), (2, 7070, 0)]
    );
    let alone = compiled(&["80:10.0.0.5"], &History::default(), options);
    assert_eq!(
        flags(&alone, Protocol::Tcp, 80),
        PortEntry::MATCH | PortEntry::FORWARD | PortEntry::REMOTE
    );
}

#[test]
fn each_target_port_of_a_service_is_marked() {
    let text = "8000-8010:10.0.0.5:9000-9010,8005,10.0.0.6:9500 else 7000";
    for hide_target in [false, true] {
        let options = TableOptions {
            hide_target,
            ..TableOptions::default()
        };
        let table = compiled(&[text], &History::default(), options);
        for port in 1..=u16::MAX {
            let flags = flags(&table, Protocol::Tcp, port);
            let is_target = matches!(port, 9000..=9010 | 8005 | 9500 | 7000);
            assert_eq!(flags & PortEntry::REMOTE != 0, is_target, "{port}");
            // Clients connect to 8005 itself, so only 7000 can be hidden.
            let is_hidden = hide_target && port == 7000;
            assert_eq!(flags & PortEntry::HIDDEN != 0, is_hidden, "{port}");
            assert_eq!(flags & PortEntry::TARGET, 0, "{port}");
        }
        let closed = flags(&table, Protocol::Tcp, 0);
        assert_eq!(closed & PortEntry::TARGET != 0, hide_target);
    }
    let beside = |text: &str| {
        let rule = rule(text);
        let parts = hidden_beside(&rule).map(|ports| ports.to_string());
        parts.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(beside("80:80,10.0.0.5"), "");
    assert_eq!(beside("80-90:85-95,10.0.0.5"), "91-95");
    assert_eq!(beside("80-90:70-80,10.0.0.5"), "70-79");
    assert_eq!(beside("1-65535:10.0.0.5,80"), "");
    assert_eq!(beside("80:8080,8081"), "8080 8081");
    assert_eq!(beside("80:8080"), "");
}

#[test]
fn a_service_in_place_of_one_port_keeps_its_flows() {
    let before = [rule("80:1000")];
    let after = [rule("80:10.0.0.5:8080")];
    let history = History::default().after(&before, &after, |_, _, _| false);
    // The number of the service, which is 1000 as well, is no port.
    let table = compiled(&["80:10.0.0.5:8080"], &history, TableOptions::default());
    let place = PortEntry::index(Protocol::Tcp, Port::new(80));
    assert_eq!(table.old[&place].target(0), Some(Port::new(1000)));
    assert_ne!(flags(&table, Protocol::Tcp, 80) & PortEntry::OLD, 0);
    assert_eq!(flags(&table, Protocol::Tcp, 1000), PortEntry::TARGET);
    // And back, while the flows of the first rule are alive.
    let back = [rule("80:2000")];
    let history = history.after(&after, &back, |_, _, _| true);
    let table = compiled(&["80:2000"], &history, TableOptions::default());
    assert_eq!(table.old[&place].target(0), Some(Port::new(1000)));
    assert_eq!(table.old[&place].target(1), None);
}

#[test]
fn a_service_without_a_number_is_refused() {
    let rules = numbered(&[rule("443:8443"), rule("80:10.0.0.5")]);
    for number in [None, Some(0)] {
        let table = Table::compile(&rules, &History::default(), TableOptions::default(), |_| {
            number
        });
        assert_eq!(table, Err(TableError::NoService { place: 1 }));
    }
}

fn refused(rules: impl IntoIterator<Item = String>) -> String {
    let rules: Vec<_> = rules.into_iter().map(|text| rule(&text)).collect();
    let table = Table::compile(
        &numbered(&rules),
        &History::default(),
        TableOptions::default(),
        |_| None,
    );
    table.expect_err("too many").to_string()
}

#[test]
fn limits_are_named() {
    let lists = (0..64).map(|i| format!("{}:8080 on eth{i}", i + 1));
    assert_eq!(
        refused(lists),
        "the rules use 64 different interface lists (`on …`); the maximum is 63"
    );
    let lists = (0..9).map(|i| format!("80:{} on eth{i}", 8080 + i));
    assert_eq!(
        refused(lists),
        "port 80: 9 rules with equal `from` differ only in `on`; the maximum is 8"
    );
    let addrs = (0..32_769).map(|i| format!("10.0.{}.{}:80:8080", i / 256, i % 256));
    assert_eq!(
        refused(addrs),
        "the rules need too many address entries; the maximum is 32768"
    );
    let nets = (0..300).map(|i| format!("1-65535:8080 from 10.{}.{}.0/24", i / 250, i % 250));
    let ports = (0..600).map(|i| format!("{}:9090", i + 1));
    assert_eq!(
        refused(nets.chain(ports)),
        "the rules need too many client network entries; the maximum is 131072"
    );
    let ports = (1..=u16::MAX)
        .filter(|port| *port != 8080)
        .flat_map(|port| {
            [
                format!("{port}:8080 on eth0"),
                format!("{port}:8080/udp on eth1"),
            ]
        });
    let ports: Vec<_> = ports.take(65_536).collect();
    assert_eq!(
        refused(ports),
        "the rules need too many different sets of rules per port; the maximum is 65535"
    );
}

#[test]
fn ports_that_others_take_need_no_listener() {
    let one = |port| (Protocol::Tcp, Ports::one(Port::new(port)));
    let taken = [one(30080), one(2005)].into_iter().collect();
    let rules = [
        "80:30080/both",
        "81:8081",
        "1000-1010:2000-2010",
        "82:30080 from 10.0.0.0/8",
        "82:8082",
    ];
    let waits = |options| {
        let table = compiled(&rules, &History::default(), options);
        let ports = [80, 81, 82, 1004, 1005, 1006];
        let mut waits = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let flags = |port: &u16| table.ports[index(protocol, Port::new(*port))].flags;
            let is_it = |port: &u16| flags(port) & PortEntry::IF_LISTENING != 0;
            waits.push(ports.into_iter().filter(is_it).collect::<Vec<_>>());
        }
        waits
    };
    let options = TableOptions {
        if_listening: true,
        taken: Some(&taken),
        ..TableOptions::default()
    };
    assert_eq!(waits(options), [vec![81, 1004, 1006], vec![80]]);
    let without = TableOptions {
        taken: None,
        ..options
    };
    assert_eq!(
        waits(without),
        [vec![80, 81, 82, 1004, 1005, 1006], vec![80]]
    );
}
