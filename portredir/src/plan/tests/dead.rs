//! Rules that match nothing, and interfaces that do not exist yet.

use std::net::IpAddr;

use super::*;

fn warnings(snapshot: &Snapshot, text: &str) -> Vec<String> {
    let notes = plan(snapshot, text).notes.into_iter();
    notes
        .filter(|note| note.starts_with("warning: rule"))
        .collect()
}

fn bridged() -> Snapshot {
    let mut snapshot = snapshot([
        interface(1, "lo"),
        interface(2, "eth0"),
        on(kind(3, "eth0.7", "vlan"), 2),
        kind(4, "br0", "bridge"),
        port(kind(5, "veth0", "veth"), 4),
        kind(6, "red", "vrf"),
        port(kind(7, "br1", "bridge"), 6),
        port(kind(8, "veth1", "veth"), 7),
    ]);
    snapshot.local.add_route(IpAddr::from([10, 0, 0, 1]), 32);
    snapshot.local.add_route(IpAddr::from([10, 9, 0, 0]), 16);
    snapshot
}

#[test]
fn rule_that_can_match_has_no_warning() {
    for text in [
        "81:8080 on eth0",
        "81:8080 on br0",
        "81:8080 on red",
        "81:8080 on lo",
        "81:8080 on wg*",
        "--iface veth0 81:8080 on veth0",
        "10.0.0.1:81:8080",
        "10.9.8.7:81:8080",
        "127.0.0.1:81:8080",
    ] {
        let words: Vec<_> = text.split(" on ").collect();
        assert_eq!(found(&words), Vec::<String>::new(), "{text}");
    }
}

/// The warnings about one rule, whose words are kept together behind `on`.
fn found(words: &[&str]) -> Vec<String> {
    let (before, on) = (words[0], words.get(1));
    let (options, rule) = before.rsplit_once(' ').unwrap_or(("", before));
    let rule = on.map_or_else(|| rule.to_owned(), |on| format!("{rule} on {on}"));
    let mut settings = settings(options);
    settings.rules = vec![rule.parse().expect("a rule")];
    let snapshot = bridged();
    let plan = snapshot.plan(&settings, &features(), &BTreeMap::new(), &Others);
    let notes = plan.notes.into_iter();
    notes
        .filter(|note| note.starts_with("warning: rule"))
        .collect()
}

#[test]
fn rule_that_matches_nothing_is_said_with_the_reason() {
    for (words, expected) in [
        (
            ["81:8080", "veth0"],
            "matches nothing on veth0: port of bridge br0; br0 is used instead",
        ),
        (
            ["81:8080", "eth0.7"],
            "matches nothing on eth0.7: vlan on eth0, where its packets are redirected first",
        ),
        (
            ["--no-local 81:8080", "lo"],
            "matches nothing on lo: local clients are not redirected (--no-local)",
        ),
        (
            ["--iface br0 81:8080", "eth0"],
            "matches nothing on eth0: replies only; --iface does not select it",
        ),
        (
            ["81:8080", "eth7"],
            "interface `eth7` does not exist yet; the rule applies when it appears (did you mean \
             `eth0`?)",
        ),
    ] {
        let found = found(&words);
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{words:?}: {found:?}"
        );
    }
    let addr = warnings(&bridged(), "8.8.8.8:81:8080");
    assert!(
        addr[0].contains("8.8.8.8 is not an address of this host"),
        "{addr:?}"
    );
}

#[test]
fn interface_that_does_not_exist_yet_is_a_note() {
    let snapshot = bridged();
    let some = plan(&snapshot, "--iface eth0,ppp9,et0");
    assert_eq!(names(&some), ["eth0"]);
    assert_eq!(some.absent, ["ppp9", "et0"]);
    assert_eq!(
        some.notes,
        [
            "`ppp9` does not exist yet; it will be attached when it appears",
            "`et0` does not exist yet; it will be attached when it appears (did you mean `eth0`?)",
        ]
    );
    let excluded = plan(&snapshot, "--iface ppp9,eth0,!ppp*");
    assert_eq!(excluded.absent, Vec::<String>::new());
}

#[test]
fn interface_that_goes_down_keeps_its_programs() {
    let down = snapshot([
        Interface {
            is_up: false,
            ..interface(2, "eth0")
        },
        Interface {
            is_up: false,
            ..interface(3, "eth1")
        },
    ]);
    let plan = next_plan(&down, "", &[(2, SelectedBy::Pattern)]);
    assert_eq!(names(&plan), ["eth0"]);
    assert_eq!(
        skipped(&plan),
        [("eth1", "interface is down; attached when it comes up")]
    );
}
