//! The slots of a service among those of all: how many there are, and where.

use std::collections::BTreeMap;
use std::ops::Range;

use portredir_common::map::targets::{SLOTS, Slot};

use super::balance::{targets_of, turned_to};

/// The slots of a service with several targets: at least, and at most.
const LEAST: u32 = 64;
const MOST: u32 = 4096;

/// The slots for each unit of weight.
const PER_WEIGHT: u32 = 32;

/// The number of slots for targets of these weights.
#[must_use]
pub fn slots_for(weights: &[u16]) -> u32 {
    if weights.len() <= 1 {
        return 1;
    }
    let weights = || weights.iter().map(|weight| u32::from(*weight));
    let divisor = weights().fold(0, gcd).max(1);
    // At most 4095 weights of 16 bits each: 33 bits with the factor.
    let total: u64 = weights().map(|weight| u64::from(weight / divisor)).sum();
    let wanted = (total * u64::from(PER_WEIGHT)).clamp(u64::from(LEAST), u64::from(MOST));
    u32::try_from(wanted.next_power_of_two()).unwrap_or(MOST)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The place of `count` unused slots, the lowest one.
#[must_use]
pub fn place_for(count: u32, used: &[Range<usize>]) -> Option<u32> {
    let mut used = used.to_vec();
    used.sort_by_key(|region| region.start);
    let mut first = 0;
    for region in used {
        if first + count as usize <= region.start {
            break;
        }
        first = first.max(region.end);
    }
    let fits = first + count as usize <= SLOTS as usize;
    u32::try_from(first).ok().filter(|_| fits)
}

/// The slots in another number: the slot of each client has what its slot had before. When
/// slots become fewer a slot may have more to remember than it can.
#[must_use]
pub fn resized(slots: &[Slot], count: u32) -> Vec<Slot> {
    let count = count as usize;
    let slot = |at: usize| {
        if count >= slots.len() {
            return slots[at & (slots.len() - 1)];
        }
        let folded = || slots.iter().skip(at).step_by(count);
        let mut presents = BTreeMap::new();
        for slot in folded() {
            *presents.entry(slot.0[0]).or_insert(0_usize) += 1;
        }
        // What comes last is turned to last, and so comes first.
        let earlier = folded().flat_map(|slot| slot.0.into_iter().skip(1));
        let mut order: Vec<_> = earlier.collect();
        let mut presents: Vec<_> = presents.into_iter().collect();
        presents.sort_by_key(|(_, often)| *often);
        order.extend(presents.into_iter().map(|(present, _)| present));
        let nothing = Slot([Slot::RESTS; Slot::TARGETS]);
        order.into_iter().fold(nothing, turned_to)
    };
    (0..count).map(slot).collect()
}

/// Whether the slot of each client still has all targets that its slot had before.
#[must_use]
pub fn remembers_all(before: &[Slot], after: &[Slot]) -> bool {
    let most = before.len().max(after.len());
    (0..most).all(|hash| {
        let slot = after[hash & (after.len() - 1)];
        let mut earlier = targets_of(before[hash & (before.len() - 1)]);
        earlier.all(|target| slot.0.contains(&target))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_by_weights() {
        let cases: [(&[u16], u32); 9] = [
            (&[], 1),
            (&[7], 1),
            (&[1, 1], 64),
            (&[1, 1, 1], 128),
            (&[300, 300, 300], 128),
            (&[3, 1, 1], 256),
            (&[65535, 1], 4096),
            (&[0, 5], 64),
            (&[0, 0], 64),
        ];
        for (weights, slots) in cases {
            assert_eq!(slots_for(weights), slots, "{weights:?}");
        }
    }

    #[test]
    fn the_lowest_gap_is_taken() {
        assert_eq!(place_for(64, &[]), Some(0));
        assert_eq!(place_for(64, &[64..128, 0..1]), Some(128));
        assert_eq!(place_for(63, &[64..128, 0..1]), Some(1));
        let nearly_all = [0..1, 1..SLOTS as usize - 1];
        assert_eq!(place_for(1, &nearly_all), Some(SLOTS - 1));
        assert_eq!(place_for(2, &nearly_all), None);
    }

    #[test]
    fn the_slot_of_a_client_keeps_its_targets() {
        let before = [Slot([1, 2, 0, 0]), Slot([3, 0, 0, 0])];
        let grown = resized(&before, 4);
        assert_eq!(grown, [before[0], before[1], before[0], before[1]]);
        assert!(remembers_all(&before, &grown));

        let folded = resized(&before, 1);
        assert_eq!(folded, [Slot([3, 1, 2, 0])]);
        assert!(remembers_all(&before, &folded));

        let many = [Slot([1, 2, 3, 0]), Slot([4, 5, 0, 0])];
        assert!(!remembers_all(&many, &resized(&many, 1)));
    }
}
