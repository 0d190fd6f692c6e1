//! The targets of slots: shares by weight with the fewest moves, and the history of each
//! slot.

use std::collections::{BTreeMap, VecDeque};

use portredir_common::map::targets::Slot;

/// The targets that a slot has for new flows and had for earlier ones.
pub fn targets_of(slot: Slot) -> impl Iterator<Item = u16> {
    let is_target = |&number: &u16| number != Slot::RESTS && number != Slot::DROPS;
    slot.0.into_iter().filter(is_target)
}

/// The slot after its target for new flows changed: the one before comes first among the
/// earlier ones, and a target is never there twice.
#[must_use]
pub fn turned_to(slot: Slot, present: u16) -> Slot {
    let earlier = targets_of(slot).filter(|&target| target != present);
    let mut turned = Slot([Slot::RESTS; Slot::TARGETS]);
    for (place, target) in turned
        .0
        .iter_mut()
        .zip([present].into_iter().chain(earlier))
    {
        *place = target;
    }
    turned
}

/// Turns all slots to what is used while no target is up.
pub fn turn_all(slots: &mut [Slot], present: u16) {
    for slot in slots.iter_mut().filter(|slot| slot.0[0] != present) {
        *slot = turned_to(*slot, present);
    }
}

/// Removes from the slots the targets that are not `known`. A slot whose target for new
/// flows goes has none then.
pub fn retain(slots: &mut [Slot], known: impl Fn(u16) -> bool) {
    for slot in slots.iter_mut() {
        let [present, ..] = slot.0;
        let is_known = present == Slot::DROPS || known(present);
        let present = if is_known { present } else { Slot::RESTS };
        let mut left = Slot([present, Slot::RESTS, Slot::RESTS, Slot::RESTS]);
        let mut used = 1;
        for target in slot.0.into_iter().skip(1) {
            let is_new = target != Slot::RESTS && !left.0[..used].contains(&target);
            if is_new && known(target) {
                left.0[used] = target;
                used += 1;
            }
        }
        *slot = left;
    }
}

/// Turns as few slots as possible until each target has its share by weight, within one
/// slot. A slot prefers a target that it remembers.
///
/// **Shape**: `shares` has the number and the weight of each target, not empty; no weight
/// is 0.
pub fn balance(slots: &mut [Slot], shares: &[(u16, u16)]) {
    let mut held = BTreeMap::new();
    for slot in slots.iter() {
        *held.entry(slot.0[0]).or_insert(0_usize) += 1;
    }
    let quotas = quotas(slots.len(), shares, &held);
    let surplus = held.iter().map(|(&target, &held)| {
        let quota = quotas.get(&target).copied().unwrap_or(0);
        (target, held.saturating_sub(quota))
    });
    let mut surplus: BTreeMap<_, _> = surplus.collect();
    let missing = quotas.iter().map(|(&target, &quota)| {
        let held = held.get(&target).copied().unwrap_or(0);
        (target, quota.saturating_sub(held))
    });
    let mut missing: BTreeMap<_, _> = missing.filter(|(_, missing)| *missing > 0).collect();
    let mut spare = Vec::new();
    for (at, slot) in slots.iter_mut().enumerate() {
        let Some(left) = surplus.get_mut(&slot.0[0]).filter(|left| **left > 0) else {
            continue;
        };
        let mut earlier = targets_of(*slot).filter(|target| *target != slot.0[0]);
        let Some(back) = earlier.find(|target| missing.get(target).is_some_and(|n| *n > 0)) else {
            spare.push(at);
            continue;
        };
        *left -= 1;
        missing.entry(back).and_modify(|missing| *missing -= 1);
        *slot = turned_to(*slot, back);
    }
    // A slot that remembers little forgets nothing.
    spare.sort_by_key(|&at| targets_of(slots[at]).count());
    let mut takers: VecDeque<_> = missing.into_iter().filter(|(_, n)| *n > 0).collect();
    for at in spare {
        let Some(left) = surplus.get_mut(&slots[at].0[0]).filter(|left| **left > 0) else {
            continue;
        };
        let Some((taker, missing)) = takers.pop_front() else {
            break;
        };
        *left -= 1;
        slots[at] = turned_to(slots[at], taker);
        if missing > 1 {
            takers.push_back((taker, missing - 1));
        }
    }
}

/// The number of slots of each target. What the division leaves over goes to targets that
/// would have none, then to those that would lose a slot, then to those that lack most.
fn quotas(
    slots: usize,
    shares: &[(u16, u16)],
    held: &BTreeMap<u16, usize>,
) -> BTreeMap<u16, usize> {
    let total: usize = shares.iter().map(|(_, weight)| usize::from(*weight)).sum();
    let exact = |weight: u16| {
        let product = slots * usize::from(weight);
        (product / total, product % total)
    };
    let mut over: Vec<_> = shares.iter().filter(|(_, w)| exact(*w).1 > 0).collect();
    over.sort_by_key(|(target, weight)| {
        let (floor, rest) = exact(*weight);
        let loses = held.get(target).is_some_and(|held| *held > floor);
        (floor > 0, !loses, std::cmp::Reverse(rest), *target)
    });
    let whole = shares
        .iter()
        .map(|(target, weight)| (*target, exact(*weight).0));
    let mut quotas: BTreeMap<_, _> = whole.collect();
    let left = slots - quotas.values().sum::<usize>();
    for (target, _) in over.into_iter().take(left) {
        quotas.entry(*target).and_modify(|quota| *quota += 1);
    }
    quotas
}
