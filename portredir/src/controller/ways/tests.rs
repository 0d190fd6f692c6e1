use portredir_common::net::Port;

use super::*;
use crate::host::forwarding::{SavedSwitch, Switch};
use crate::plan::finding::{Finding, Severity};
use crate::plan::way::PlannedTarget;
use crate::rule::tests::rule;

const TARGET: &str = "10.0.0.5";

fn fault(what: &str) -> Finding {
    Finding {
        severity: Severity::Warning,
        check: "target-route",
        what: what.to_owned(),
        why: "packets go to it".to_owned(),
        fix: "look".to_owned(),
    }
}

fn way(interface: Option<&str>, neighbour: Option<Neighbour>) -> PresentWay {
    let findings = match (interface, neighbour) {
        (None, _) => vec![fault("no route")],
        (_, Some(Neighbour::Failed)) => vec![fault("nobody answers")],
        _ => Vec::new(),
    };
    PresentWay {
        target: PlannedTarget {
            addr: TARGET.parse().expect("an address"),
            port: Port::new(8080),
            interface: interface.map(str::to_owned),
            gateway: None,
            source: None,
            neighbour,
        },
        findings,
    }
}

fn out(interface: &str, neighbour: Neighbour) -> PresentWay {
    way(Some(interface), Some(neighbour))
}

/// The news that each of these ways is after the one before it.
fn story(ways: &[PresentWay]) -> Vec<Vec<String>> {
    let mut watch = Watch::default();
    let noted = ways.iter().map(|way| {
        let news = watch.note(std::slice::from_ref(way)).into_iter();
        news.map(|(_, news)| news.to_string()).collect()
    });
    noted.collect()
}

#[test]
fn routes_are_news_once() {
    let reachable = || out("br0", Neighbour::Reachable);
    let said = story(&[
        way(None, None),
        way(None, None),
        reachable(),
        out("br0", Neighbour::Stale),
        out("eth1", Neighbour::Stale),
        way(None, None),
    ]);
    let nothing: &[&str] = &[];
    let expected = [
        nothing,
        nothing,
        &["nothing is wrong with the way any more: by br0"],
        nothing,
        &["the way has changed: by eth1"],
        &["no route; look"],
    ];
    assert_eq!(said, expected);
}

#[test]
fn a_neighbour_that_is_asked_again_and_again_is_news_once() {
    let ask = [Neighbour::Incomplete, Neighbour::Failed, Neighbour::Unknown];
    let ask = ask.map(|state| out("br0", state));
    let mut ways = vec![out("br0", Neighbour::Reachable)];
    ways.extend(ask.clone());
    ways.extend(ask);
    ways.push(out("br0", Neighbour::Reachable));
    let said: Vec<_> = story(&ways).concat();
    let expected = [
        "nobody answers; look",
        "nothing is wrong with the way any more: by br0",
    ];
    assert_eq!(said, expected);
}

#[test]
fn a_failure_does_not_outlive_a_change_of_the_way() {
    let said = story(&[
        out("br0", Neighbour::Failed),
        out("eth1", Neighbour::Incomplete),
    ]);
    assert_eq!(said[1], ["nothing is wrong with the way any more: by eth1"]);
}

#[test]
fn a_neighbour_that_answers_is_known_to_the_checks() {
    let mut watch = Watch::default();
    let target: IpAddr = TARGET.parse().expect("an address");
    for (state, answers) in [
        (Neighbour::Reachable, true),
        (Neighbour::Failed, false),
        (Neighbour::Incomplete, false),
        (Neighbour::Stale, true),
    ] {
        watch.note(&[out("br0", state)]);
        assert_eq!(watch.answering(), [(target, answers)].into(), "{state:?}");
    }
}

#[test]
fn rules_without_an_address_are_not_followed() {
    assert!(addresses(&[rule("80:8080"), rule("81:8081,8082")]).is_empty());
    let rules = [rule("80:10.0.0.5:8080,8081"), rule("81:9")];
    assert_eq!(addresses(&rules).len(), 1);
}

/// An interface that does not forward.
fn off(name: &str, index: u32) -> Forwarder {
    Forwarder {
        switch: Switch::Ipv4(name.to_owned()),
        index,
        is_on: false,
    }
}

#[test]
fn only_interfaces_that_are_new_begin_to_forward() {
    let look = Look {
        ways: Vec::new(),
        forwarders: vec![
            Forwarder {
                is_on: true,
                ..off("eth0", 2)
            },
            off("br0", 3),
            off("br1", 4),
        ],
    };
    let names = |known: Option<&BTreeSet<Forwarder>>, saved: &Saved| {
        let switches = look.new_switches(known, saved).switches.into_iter();
        switches.map(|switch| switch.name()).collect::<Vec<_>>()
    };
    let (br0, br1) = (
        "net.ipv4.conf.br0.forwarding",
        "net.ipv4.conf.br1.forwarding",
    );
    // What somebody has switched off meanwhile stays off.
    let known = [off("br0", 3)].into();
    assert_eq!(names(Some(&known), &Saved::default()), [br1]);
    // The bridge was removed, and made anew.
    let known = [off("br0", 9), off("br1", 4)].into();
    assert_eq!(names(Some(&known), &Saved::default()), [br0]);
    // A watcher that begins knows what `up` has switched on.
    let saved = Saved {
        switches: vec![SavedSwitch {
            switch: Switch::Ipv4("br1".to_owned()),
            was_general_on: false,
        }],
        routers: Vec::new(),
    };
    assert_eq!(names(None, &saved), [br0]);
}
