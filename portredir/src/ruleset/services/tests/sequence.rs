//! Random sequences of changes.

use super::*;

/// A rule: its key, addresses and weights of its targets, and its last resort.
type Rule = (u8, Vec<(u8, u16)>, u8);

#[derive(Clone, Debug)]
enum Step {
    Next(Vec<Rule>),
    Health(u16, bool),
    Drain(u8),
    Undrain(u8),
    /// Forgets all targets but these: bits of their numbers.
    Forget(u64),
    /// The slots of a change that was not finished.
    Garbage(Index, [u16; 4]),
}

fn step() -> impl Strategy<Value = Step> {
    let service = (0..3_u8, targets(5), 0..3_u8);
    prop_oneof![
        3 => vec(service, 0..4).prop_map(Step::Next),
        4 => (1..20_u16, any::<bool>()).prop_map(|(number, is_up)| Step::Health(number, is_up)),
        1 => (1..12_u8).prop_map(Step::Drain),
        1 => (1..12_u8).prop_map(Step::Undrain),
        2 => any::<u64>().prop_map(Step::Forget),
        1 => (any::<Index>(), [0..9_u16, 0..9, 0..9, 0..9])
            .prop_map(|(at, slot)| Step::Garbage(at, slot)),
    ]
}

fn rules(list: &[Rule]) -> Vec<WantedService> {
    let rules: BTreeMap<_, _> = list
        .iter()
        .map(|(key, targets, otherwise)| {
            let mut rule = wanted(&key.to_string(), targets);
            rule.otherwise = match otherwise {
                0 => Otherwise::Rests,
                1 => Otherwise::Drops,
                _ => Otherwise::Target(endpoint(99)),
            };
            (*key, rule)
        })
        .collect();
    rules.into_values().collect()
}

/// Services and targets that are still wanted have the number that they had.
fn numbers_are_stable(before: &Services, after: &Services) -> TestCaseResult {
    for old in before.iter() {
        let Some(new) = after.of_key(&old.key) else {
            continue;
        };
        prop_assert_eq!(new.number, old.number);
        for target in old.all_targets() {
            let mut all = new.all_targets();
            let same = all.find(|new| new.endpoint == target.endpoint);
            // A number that no slot remembers may be free again after a sweep only.
            prop_assert_eq!(same.map(|new| new.number), Some(target.number));
        }
    }
    Ok(())
}

fn slots_are_right(services: &Services, slots: &[Slot]) -> TestCaseResult {
    let targets = services.map_contents().targets;
    let known: BTreeSet<_> = targets.iter().map(|(number, _)| *number).collect();
    for service in services.iter() {
        let own: BTreeSet<_> = service.all_targets().map(|target| target.number).collect();
        for slot in &slots[service.region()] {
            let [present, earlier @ ..] = slot.0;
            let has_none = present == Slot::RESTS || present == Slot::DROPS;
            prop_assert!(has_none || own.contains(&present) && known.contains(&present));
            let used = earlier.iter().take_while(|target| **target != 0).count();
            prop_assert!(
                earlier[used..].iter().all(|target| *target == 0),
                "{:?}",
                slot
            );
            let distinct: BTreeSet<_> = earlier[..used].iter().collect();
            prop_assert_eq!(distinct.len(), used, "{:?}", slot);
            prop_assert!(!distinct.contains(&present), "{:?}", slot);
            prop_assert!(earlier[..used].iter().all(|target| own.contains(target)));
        }
        if !service.is_removed {
            shares_are_exact(service, slots)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn no_sequence_breaks_slots_or_numbers(steps in vec(step(), 1..24)) {
        let mut slots = no_slots();
        let mut services = Services::default();
        for step in steps {
            let before = services.clone();
            match &step {
                Step::Next(list) => {
                    services = before.next(&rules(list), &mut slots).expect("services");
                    numbers_are_stable(&before, &services)?;
                }
                Step::Health(number, is_up) => {
                    let health = if *is_up { Health::default() } else { down() };
                    services.set_health(*number, &health, &mut slots);
                }
                Step::Drain(last) => {
                    services.drain(&selector(*last), Timestamp::UNIX_EPOCH, &mut slots);
                }
                Step::Undrain(last) => {
                    services.undrain(&selector(*last), &mut slots);
                }
                Step::Forget(alive) => {
                    let is_alive = |number: u16| alive >> (number % 64) & 1 == 1;
                    services.forget(is_alive, &mut slots);
                    let left = services.map_contents().targets;
                    let left: BTreeSet<_> = left.iter().map(|(number, _)| *number).collect();
                    for target in before.iter().flat_map(Service::all_targets) {
                        prop_assert!(left.contains(&target.number) || !is_alive(target.number));
                    }
                }
                Step::Garbage(at, slot) => {
                    slots[at.index(2048)] = Slot(*slot);
                    services.settle(&mut slots);
                }
            }
            prop_assert!(services.is_sound(), "{:?}: {:?}", step, services);
            slots_are_right(&services, &slots)?;
        }
    }
}
