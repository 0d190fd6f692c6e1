//! The part of a node's state that fits into its object. The API server refuses larger ones,
//! and then nothing at all would be known of the node.

use serde::Serialize;

use super::crd::{RedirectState, RuleState};

/// The largest list of PortRedirects, in bytes of JSON. etcd takes 1.5 MiB for an object, in
/// which the server also notes the manager of each field: up to twice as much again.
pub const MOST_BYTES: usize = 400 << 10;

/// The longest message of a rule in a list that is cut, in characters.
const LONGEST_MESSAGE: usize = 200;

/// The numbers of what a list leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlisted {
    /// The rules of listed PortRedirects.
    pub rules: usize,
    /// The PortRedirects, with all their rules.
    pub redirects: usize,
}

/// Cuts a list to a size. Younger objects lose first: of each the rules in force are counted
/// instead of listed, then all rules but the first that is not in force, then the object.
pub fn fit(redirects: &mut Vec<RedirectState>, most: usize) -> Unlisted {
    let mut total = redirects.iter().map(size).sum::<usize>();
    let cuts: [fn(&mut RedirectState); 2] = [
        |redirect| keep(redirect, |_, rule| !rule.programmed),
        |redirect| {
            keep(redirect, |place, _| place == 0);
            for rule in &mut redirect.rules {
                shorten(&mut rule.message);
            }
        },
    ];
    for cut in cuts {
        for redirect in redirects.iter_mut().rev() {
            if total <= most {
                break;
            }
            total -= size(redirect);
            cut(redirect);
            total += size(redirect);
        }
    }
    let mut left = Unlisted::default();
    while total > most
        && let Some(redirect) = redirects.pop()
    {
        total -= size(&redirect);
        left.redirects += 1;
    }
    let unlisted = redirects.iter().map(|redirect| redirect.unlisted);
    left.rules = unlisted
        .filter_map(|count| usize::try_from(count).ok())
        .sum();
    left
}

/// Keeps some of the rules of an object, and counts the others.
fn keep(redirect: &mut RedirectState, mut keeps: impl FnMut(usize, &RuleState) -> bool) {
    let before = redirect.rules.len();
    let mut place = 0;
    redirect.rules.retain(|rule| {
        place += 1;
        keeps(place - 1, rule)
    });
    let gone = before - redirect.rules.len();
    redirect.unlisted += i32::try_from(gone).unwrap_or(i32::MAX);
}

fn shorten(message: &mut String) {
    if let Some((end, _)) = message.char_indices().nth(LONGEST_MESSAGE) {
        message.truncate(end);
        message.push('…');
    }
}

/// The size of a part of the list, with its comma.
fn size(part: &impl Serialize) -> usize {
    serde_json::to_vec(part).map_or(0, |text| text.len() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state of an object with so many rules, of which those after a place are refused.
    fn state(name: &str, (count, good): (usize, usize)) -> RedirectState {
        let rule = |place| RuleState {
            name: format!("r{place}"),
            programmed: place < good,
            reason: "Programmed".to_owned(),
            message: if place < good {
                String::new()
            } else {
                "why ".repeat(100)
            },
            rules: vec!["20000:8080".to_owned()],
        };
        RedirectState {
            name: name.to_owned(),
            generation: 1,
            rules: (0..count).map(rule).collect(),
            unlisted: 0,
        }
    }

    fn bytes(list: &[RedirectState]) -> usize {
        list.iter().map(size).sum()
    }

    /// The list cut to a size: for each object its rules and those not listed.
    fn cut(list: &[RedirectState], most: usize) -> (Vec<(usize, i32)>, Unlisted) {
        let mut list = list.to_vec();
        let left = fit(&mut list, most);
        assert!(bytes(&list) <= most, "{}", bytes(&list));
        let counts = list.iter().map(|one| (one.rules.len(), one.unlisted));
        (counts.collect(), left)
    }

    #[test]
    fn younger_objects_lose_rules_in_force_first_then_the_rest() {
        let list = ["a", "b", "c"].map(|name| state(name, (10, 8)));
        let all = bytes(&list);
        let left = |rules, redirects| Unlisted { rules, redirects };
        let whole = vec![(10, 0); 3];
        assert_eq!(cut(&list, all), (whole, left(0, 0)));
        let one = vec![(10, 0), (10, 0), (2, 8)];
        assert_eq!(cut(&list, all - 1), (one, left(8, 0)));
        let short = bytes(&["a", "b", "c"].map(|name| state(name, (2, 0))));
        let (counts, _) = cut(&list, short + 100);
        assert_eq!(counts, [(2, 8), (2, 8), (2, 8)]);
        let (counts, counted) = cut(&list, short - 100);
        assert_eq!(
            (&counts[..], counted),
            (&[(2, 8), (2, 8), (1, 9)][..], left(25, 0))
        );
        let (counts, counted) = cut(&list, 500);
        assert_eq!((&counts[..], counted), (&[(1, 9)][..], left(9, 2)));
        assert_eq!(cut(&list, 0), (vec![], left(0, 3)));
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let mut text = "ä".repeat(201);
        shorten(&mut text);
        assert_eq!(text, "ä".repeat(200) + "…");
    }
}
