//! One change of a service: how many slots move, and what each remembers.

use super::*;

/// The fewest slots that have to change: the best of all ways to round the shares.
fn fewest_moves(before: &[Slot], shares: &[(u16, u16)]) -> usize {
    let held = held(before);
    let total: usize = shares.iter().map(|(_, weight)| usize::from(*weight)).sum();
    let ways = (0..1_u32 << shares.len()).filter_map(|way| {
        let mut sum = 0;
        let mut stay = 0;
        for (at, (target, weight)) in shares.iter().enumerate() {
            let exact = before.len() * usize::from(*weight);
            let is_up = way >> at & 1 == 1;
            if is_up && exact.is_multiple_of(total) {
                return None;
            }
            let quota = exact / total + usize::from(is_up);
            sum += quota;
            stay += quota.min(held.get(target).copied().unwrap_or(0));
        }
        (sum == before.len()).then_some(before.len() - stay)
    });
    ways.min().expect("a way to round")
}

fn moves(before: &[Slot], after: &[Slot]) -> usize {
    let pairs = before.iter().zip(after);
    pairs
        .filter(|(before, after)| before.0[0] != after.0[0])
        .count()
}

/// Each slot that changed has the target before as the first of its earlier ones.
fn history_is_right(before: &[Slot], after: &[Slot]) -> TestCaseResult {
    for (before, after) in before.iter().zip(after) {
        if before.0[0] == after.0[0] {
            prop_assert_eq!(before, after);
            continue;
        }
        let present = after.0[0];
        let mut expected = vec![present];
        expected.extend(before.0.iter().filter(|&&t| t != 0 && t != present));
        expected.resize(expected.len().max(4), 0);
        prop_assert_eq!(&expected[..4], after.0);
    }
    Ok(())
}

/// The targets that are marked as down, by the last number of their addresses.
fn dead(services: &Services) -> Vec<u8> {
    let targets = services.map_contents().targets.into_iter();
    let dead = targets.filter(|(_, target)| target.has(map::Target::DEAD));
    dead.map(|(number, _)| {
        let (_, target) = services.target(number).expect("a target");
        match target.endpoint.host {
            Some(std::net::IpAddr::V4(addr)) => addr.octets()[3],
            other => panic!("{other:?}"),
        }
    })
    .collect()
}

#[test]
fn removed_targets_that_have_ended_are_down_until_a_rule_has_them_again() {
    let mut slots = no_slots();
    let mut become_ended = |services: &Services, targets: &[(u8, u16)]| {
        let mut next = services
            .next(&[wanted("53", targets)], &mut slots)
            .expect("services");
        next.end_removed(Timestamp::UNIX_EPOCH);
        next
    };
    let first = become_ended(&Services::default(), &[(1, 1), (2, 1)]);
    assert!(dead(&first).is_empty());
    let second = become_ended(&first, &[(2, 1), (3, 1)]);
    assert_eq!(dead(&second), [1]);
    // A rule that is gone keeps its service while there are flows, without weights.
    let gone = become_ended(&second, &[(2, 0), (3, 0)]);
    let gone = become_ended(&gone, &[(2, 0), (3, 0)]);
    assert_eq!(dead(&gone), [2, 3, 1]);
    let back = become_ended(&gone, &[(3, 1)]);
    assert_eq!(dead(&back), [2, 1]);
    let all = back.next(&[], &mut slots).expect("services");
    assert_eq!(dead(&all), [2, 1]);
    let cut = WantedService {
        cut: true,
        ..wanted("53", &[(4, 1)])
    };
    let mut cut = all.next(&[cut], &mut slots).expect("services");
    cut.end_removed(Timestamp::UNIX_EPOCH);
    assert!(!dead(&cut).contains(&3), "its connections would be cut");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn no_slot_moves_needlessly(
        targets in targets(5),
        outages in vec((any::<Index>(), any::<bool>()), 1..12),
    ) {
        let mut slots = no_slots();
        let services = Services::default().next(&[wanted("80", &targets)], &mut slots);
        let mut services = services.expect("services");
        for (which, is_up) in outages {
            let region = services.of_key("80").expect("80").region();
            let before = slots[region.clone()].to_vec();
            let number = u16::try_from(which.index(targets.len()) + 1).expect("small");
            let health = if is_up { Health::default() } else { down() };
            services.set_health(number, &health, &mut slots);
            let service = services.of_key("80").expect("80");
            let after = &slots[region];
            shares_are_exact(service, &slots)?;
            history_is_right(&before, after)?;
            let shares = service.shares();
            if !shares.is_empty() {
                prop_assert_eq!(moves(&before, after), fewest_moves(&before, &shares));
            }
        }
    }

    #[test]
    fn a_drained_target_that_returns_has_most_of_its_slots_again(
        targets in targets(6),
        which in any::<Index>(),
    ) {
        let mut slots = no_slots();
        let services = Services::default().next(&[wanted("80", &targets)], &mut slots);
        let mut services = services.expect("services");
        let before = slots.clone();
        let (last, _) = targets[which.index(targets.len())];
        let now = Timestamp::UNIX_EPOCH;
        prop_assert_eq!(services.drain(&selector(last), now, &mut slots).len(), 1);
        prop_assert_eq!(services.drain(&selector(last), now, &mut slots).len(), 0);
        shares_are_exact(services.of_key("80").expect("80"), &slots)?;
        prop_assert_eq!(services.undrain(&selector(last), &mut slots).len(), 1);
        shares_are_exact(services.of_key("80").expect("80"), &slots)?;
        // Shares are rounded to slots in another way.
        prop_assert!(moves(&before, &slots) < targets.len());
    }

    /// Other targets and weights, and so mostly another number of slots: the slot of each
    /// client has what its slot had before, but for the oldest one of four.
    #[test]
    fn the_slot_of_a_client_remembers_its_targets(lists in vec(targets(6), 2..6)) {
        let mut slots = no_slots();
        let mut services = Services::default();
        let mut before: Vec<Slot> = Vec::new();
        for list in &lists {
            services = services.next(&[wanted("80", list)], &mut slots).expect("services");
            let service = services.of_key("80").expect("80");
            shares_are_exact(service, &slots)?;
            let slots = &slots[service.region()];
            let of_client = |client: usize| slots[client & (slots.len() - 1)];
            let after: Vec<_> = (0..4096).map(of_client).collect();
            for (before, after) in before.iter().zip(&after) {
                let mut recent = before.0[..3].iter();
                prop_assert!(recent.all(|t| *t == 0 || after.0.contains(t)), "{:?}", after);
            }
            before = after;
        }
    }
}
