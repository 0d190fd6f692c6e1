//! The word that was probably meant.

/// The candidate that is nearest to a word, if one is near enough to be meant: equal but
/// for case and `_` in place of `-`, or with few letters wrong.
#[must_use]
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('_', "-");
    let most = word.chars().count().div_ceil(3).min(3);
    let near = candidates.into_iter().filter_map(|candidate| {
        let distance = distance(&word, candidate);
        (distance <= most).then_some((distance, candidate))
    });
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The number of letters to add, to remove, to replace, or to swap with the next one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<_>, Vec<_>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant() {
        let words = ["status", "rules", "save", "apply", "hide-target"];
        for (word, expected) in [
            ("stauts", Some("status")),
            ("Status", Some("status")),
            ("statsu", Some("status")),
            ("rule", Some("rules")),
            ("hide_target", Some("hide-target")),
            ("hidetarget", Some("hide-target")),
            ("completion", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(closest(word, words), expected, "{word}");
        }
    }
}
