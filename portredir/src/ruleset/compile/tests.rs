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
