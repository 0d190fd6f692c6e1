use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use portredir_common::map::targets::SLOTS;
use portredir_common::net::Port;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseResult;

use super::*;

mod history;
mod sequence;

fn no_slots() -> Vec<Slot> {
    vec![Slot::default(); SLOTS as usize]
}

fn endpoint(last: u8) -> Endpoint {
    Endpoint {
        host: Some([10, 0, 0, last].into()),
        port: Port::new(8080),
        range: None,
    }
}

fn wanted(key: &str, targets: &[(u8, u16)]) -> WantedService {
    let target = |&(last, weight): &(u8, u16)| WantedTarget {
        endpoint: endpoint(last),
        weight,
    };
    WantedService {
        key: key.to_owned(),
        rule: 7,
        affinity: Affinity::None,
        cut: false,
        targets: targets.iter().map(target).collect(),
        otherwise: Otherwise::Rests,
    }
}

fn selector(last: u8) -> Selector {
    format!("10.0.0.{last}").parse().expect("a selector")
}

fn down() -> Health {
    Health::Down {
        since: Timestamp::UNIX_EPOCH,
        why: "refused".to_owned(),
    }
}

/// The number of slots of each target.
fn held(slots: &[Slot]) -> BTreeMap<u16, usize> {
    let mut held = BTreeMap::new();
    for slot in slots {
        *held.entry(slot.0[0]).or_default() += 1;
    }
    held
}

/// Targets with distinct addresses, and their weights.
fn targets(most: usize) -> impl Strategy<Value = Vec<(u8, u16)>> {
    let target = (1..12_u8, 1..9_u16);
    vec(target, 1..=most).prop_map(|targets| {
        let targets: BTreeMap<_, _> = targets.into_iter().collect();
        targets.into_iter().collect()
    })
}

/// The shares of a service are exact within one slot.
fn shares_are_exact(service: &Service, slots: &[Slot]) -> TestCaseResult {
    let slots = &slots[service.region()];
    let held = held(slots);
    let shares = service.shares();
    let total: usize = shares.iter().map(|(_, weight)| usize::from(*weight)).sum();
    for (target, weight) in &shares {
        let has = held.get(target).copied().unwrap_or(0) * total;
        let exact = slots.len() * usize::from(*weight);
        prop_assert!(has.abs_diff(exact) < total, "{}: {:?}", target, held);
    }
    if shares.is_empty() {
        prop_assert_eq!(
            held.into_keys().collect::<Vec<_>>(),
            [service.last_resort()]
        );
    } else {
        let served: BTreeSet<_> = shares.iter().map(|(target, _)| *target).collect();
        prop_assert!(
            held.keys().all(|target| served.contains(target)),
            "{:?}",
            held
        );
    }
    Ok(())
}

#[test]
fn a_single_target_has_one_slot() {
    let mut slots = no_slots();
    let services = Services::default();
    let services = services.next(&[wanted("80", &[(5, 1)])], &mut slots);
    let services = services.expect("services");
    let service = services.of_key("80").expect("a service");
    assert_eq!((service.number, service.slots), (1, 1));
    assert_eq!(slots[0], Slot([1, 0, 0, 0]));
    let contents = services.map_contents();
    let expected = map::Service {
        first_slot: 0,
        mask: 0,
        flags: map::Service::USED,
    };
    assert_eq!(contents.services, [(1, expected)]);
    let expected = map::Target {
        addr: std::net::IpAddr::from([10, 0, 0, 5]).into(),
        port: Port::new(8080),
        first_dst_port: Port::new(8080),
        rule: 7,
        ..map::Target::default()
    };
    assert_eq!(contents.targets, [(1, expected)]);
}

#[test]
fn flags_of_targets_and_services() {
    let mut slots = no_slots();
    let mut rule = wanted("8000-8100", &[(5, 1), (6, 1)]);
    rule.cut = true;
    rule.affinity = Affinity::Client;
    rule.targets[0].endpoint = Endpoint {
        host: None,
        port: Port::new(9000),
        range: Some(endpoint::Range {
            first_dst_port: Port::new(8000),
            last_port: Port::new(9100),
        }),
    };
    let services = Services::default().next(&[rule], &mut slots);
    let mut services = services.expect("services");
    assert!(services.set_health(1, &down(), &mut slots));
    assert!(!services.set_health(1, &down(), &mut slots), "no news");
    assert!(!services.set_health(9, &down(), &mut slots), "no target");
    let contents = services.map_contents();
    assert_eq!(contents.services[0].1.mask, 63);
    let flags = map::Service::USED | map::Service::AFFINITY;
    assert_eq!(contents.services[0].1.flags, flags);
    let own = contents.targets[0].1;
    assert_eq!(own.flags, map::Target::DEAD | 2 | 4 | 8);
    assert_eq!(own.port_of(Port::new(8042)), Port::new(9042));
    assert_eq!(contents.targets[1].1.flags, map::Target::CUT);
}

#[test]
fn when_all_are_down_the_rule_rests_or_drops_or_has_a_last_target() {
    let cases = [
        (Otherwise::Rests, Slot::RESTS),
        (Otherwise::Drops, Slot::DROPS),
        (Otherwise::Target(endpoint(9)), 3),
    ];
    for (otherwise, present) in cases {
        let mut slots = no_slots();
        let mut rule = wanted("80", &[(5, 1), (6, 1)]);
        rule.otherwise = otherwise;
        let services = Services::default().next(&[rule], &mut slots);
        let mut services = services.expect("services");
        let before = slots.clone();
        services.set_health(1, &down(), &mut slots);
        assert_eq!(
            services.drain(&selector(6), Timestamp::UNIX_EPOCH, &mut slots),
            [2]
        );
        assert_eq!(held(&slots[..64]), BTreeMap::from([(present, 64)]));
        let earlier = |slot: &Slot| slot.0[1] == 2 && (slot.0[2] == 1 || slot.0[2] == 0);
        assert!(slots[..64].iter().all(earlier), "the history stays");
        assert_eq!(services.undrain(&selector(6), &mut slots), [2]);
        services.set_health(1, &Health::default(), &mut slots);
        let differ = |(before, after): &(&Slot, &Slot)| before.0[0] != after.0[0];
        let moved = before.iter().zip(&slots).filter(differ).count();
        assert_eq!(moved, 0, "each slot has its target again");
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut slots = no_slots();
    let mut refused = |wanted: &[WantedService]| {
        let before = slots.clone();
        let error = Services::default()
            .next(wanted, &mut slots)
            .expect_err("refused");
        assert_eq!(before, slots);
        error
    };
    let twice = wanted("80", &[(5, 1), (5, 1)]);
    let endpoint = endpoint(5);
    let key = "80".to_owned();
    assert_eq!(
        refused(&[twice]),
        ServicesError::SameTarget { key, endpoint }
    );
    let same = [wanted("80", &[(5, 1)]), wanted("80", &[(6, 1)])];
    let key = "80".to_owned();
    assert_eq!(refused(&same), ServicesError::SameKey { key });
    let heavy = |at: usize| wanted(&at.to_string(), &[(5, 1000), (6, 1)]);
    let many: Vec<_> = (0..17).map(heavy).collect();
    let (key, needed) = ("16".to_owned(), 4096);
    assert_eq!(refused(&many), ServicesError::TooManySlots { key, needed });
    let many: Vec<_> = (0..4096).map(|at| wanted(&at.to_string(), &[])).collect();
    assert_eq!(refused(&many), ServicesError::TooManyServices);
    let three = |at: usize| wanted(&at.to_string(), &[(5, 1), (6, 1), (7, 1)]);
    let many: Vec<_> = (0..2047).map(three).collect();
    assert_eq!(refused(&many), ServicesError::TooManyTargets);
}

#[test]
fn numbers_of_what_is_gone_are_free_when_it_is_forgotten() {
    let mut slots = no_slots();
    let next = |services: &Services, wanted: &[WantedService], slots: &mut [Slot]| {
        services.next(wanted, slots).expect("services")
    };
    let services = Services::default();
    let rules = [wanted("80", &[(5, 1), (6, 1)]), wanted("81", &[(5, 1)])];
    let services = next(&services, &rules, &mut slots);
    let services = next(&services, &[wanted("80", &[(6, 1)])], &mut slots);
    let mut more = next(
        &services,
        &[wanted("80", &[(6, 1), (7, 1)]), wanted("82", &[(5, 1)])],
        &mut slots.clone(),
    );
    assert_eq!(more.of_key("80").expect("80").targets[1].number, 4);
    assert_eq!(more.of_key("82").expect("82").number, 3);
    assert_eq!(services.map_contents().targets.len(), 3);
    // Flows of target 1 go on, those of 3 have ended.
    more = services.clone();
    more.forget(|target| target == 1, &mut slots);
    assert_eq!(more.map_contents().services.len(), 1);
    assert_eq!(more.target(1).expect("remembered").1.endpoint, endpoint(5));
    assert!(more.target(3).is_none());
    assert_eq!(more.of_key("80").expect("80").slots, 1);
    let first = more.of_key("80").expect("80").region().start;
    assert_eq!(slots[first], Slot([2, 1, 0, 0]));
    more.forget(|_| false, &mut slots);
    assert!(more.target(1).is_none());
    let more = next(&more, &[wanted("80", &[(6, 1)])], &mut slots);
    assert_eq!(more.of_key("80").expect("80").slots, 1);
    let more = next(&more, &[wanted("80", &[(6, 1), (7, 1)])], &mut slots);
    assert_eq!(more.of_key("80").expect("80").targets[1].number, 1);
}

#[test]
fn the_numbers_of_removed_targets_are_used_again_when_no_other_is_left() {
    let mut slots = no_slots();
    let services = Services::default().next(&[wanted("80", &[(5, 1)])], &mut slots);
    let mut services = services.expect("services");
    let first = services.0[0].targets[0].clone();
    // All but one of the other numbers belong to targets that were removed.
    let removed = (2..4095).map(|number| Target {
        number,
        endpoint: Endpoint {
            port: Port::new(number),
            ..first.endpoint
        },
        ..first.clone()
    });
    services.0[0].removed = removed.collect();
    for (last, number) in [(6, 4095), (7, 2), (8, 3)] {
        services = services
            .next(&[wanted("80", &[(last, 1)])], &mut slots)
            .expect("services");
        assert_eq!(slots[0].0[0], number);
        assert!(services.is_sound());
    }
    assert_eq!(slots[0], Slot([3, 2, 4095, 1]));
    assert_eq!(
        services.target(1).expect("remembered").1.endpoint,
        endpoint(5)
    );
}

#[test]
fn a_service_reads_its_json_again() {
    let mut slots = no_slots();
    let mut rule = wanted("80", &[(5, 1), (6, 2)]);
    rule.otherwise = Otherwise::Target(endpoint(9));
    let services = Services::default().next(&[rule], &mut slots);
    let mut services = services.expect("services");
    services.set_health(1, &down(), &mut slots);
    services.drain(&selector(6), Timestamp::UNIX_EPOCH, &mut slots);
    let json = serde_json::to_string(&services).expect("JSON");
    assert_eq!(
        serde_json::from_str::<Services>(&json).expect(&json),
        services
    );
    assert!(services.is_sound());
    let broken = json.replace(r#""number":3"#, r#""number":1"#);
    let broken: Services = serde_json::from_str(&broken).expect("JSON");
    assert!(!broken.is_sound());
}
