//! From slices to figures: what variants cost, how they compare, and which
//! differences mean something.
//!
//! A slice gives the cost of one operation. Slices of one cycle are milliseconds
//! apart, so what disturbs the machine for longer disturbs all of them, and their
//! ratio is steady where they are not. Everything is therefore compared cycle by
//! cycle, and by medians.

use serde::Serialize;

/// The costs of a variant: for each repetition, for each cycle, nanoseconds per
/// operation.
pub type Costs = Vec<Vec<f64>>;

/// How much a ratio varies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The median of the repetitions' medians.
    pub median: f64,
    /// The tenth percentile of all cycles.
    pub p10: f64,
    /// The ninetieth percentile of all cycles.
    pub p90: f64,
    /// The least of the repetitions' medians.
    pub min: f64,
    /// The greatest of the repetitions' medians.
    pub max: f64,
}

impl Ratio {
    /// The cost of `one` by that of `other`, of every cycle that has both.
    #[must_use]
    pub fn of(one: &Costs, other: &Costs) -> Option<Self> {
        let repetitions: Vec<Vec<f64>> = one
            .iter()
            .zip(other)
            .map(|(one, other)| ratios(one, other))
            .filter(|ratios| !ratios.is_empty())
            .collect();
        let medians = sorted(repetitions.iter().map(|ratios| quantile(ratios, 0.5)));
        let all = sorted(repetitions.iter().flatten().copied());
        Some(Self {
            median: quantile(&medians, 0.5),
            p10: quantile(&all, 0.1),
            p90: quantile(&all, 0.9),
            min: *medians.first()?,
            max: *medians.last()?,
        })
    }
}

/// How far two variants may differ that are the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Noise {
    /// The largest difference between equal variants; a part of 1.
    pub deviation: f64,
}

impl Noise {
    /// From the costs of variants that are the same; `None` of less than two. Where
    /// memory happens to lie makes namespaces differ, so two say little, and medians
    /// may agree by chance, so the interval that holds the median with 95 % counts
    /// as well.
    #[must_use]
    pub fn of(twins: &[&Costs]) -> Option<Self> {
        let mut deviation: Option<f64> = None;
        for (i, one) in twins.iter().enumerate() {
            for other in &twins[..i] {
                let all = one.iter().zip(*other);
                let all = sorted(all.flat_map(|(one, other)| ratios(one, other)));
                let (low, high) = median_interval(&all);
                for ratio in [Ratio::of(one, other)?.median, low, high] {
                    let difference = ratio.max(1.0 / ratio) - 1.0;
                    deviation = Some(deviation.map_or(difference, |d| d.max(difference)));
                }
            }
        }
        deviation.map(|deviation| Self { deviation })
    }

    /// Ratios that are nearer to 1 than this mean nothing.
    #[must_use]
    pub fn floor(self) -> f64 {
        2.0 * self.deviation
    }

    /// Whether a ratio says that there is a difference.
    #[must_use]
    pub fn is_difference(self, ratio: f64) -> bool {
        // A ratio and its inverse are the same difference.
        ratio.max(1.0 / ratio) - 1.0 > self.floor()
    }
}

/// The least cost and the median.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// The cost in the slice that was disturbed least, in nanoseconds per operation.
    pub best_ns: f64,
    /// The median cost of all slices, in nanoseconds per operation.
    pub median_ns: f64,
}

impl Cost {
    /// The cost from all slices that gave one.
    #[must_use]
    pub fn of(costs: &Costs) -> Option<Self> {
        let all = sorted(
            costs
                .iter()
                .flatten()
                .copied()
                .filter(|cost| is_cost(*cost)),
        );
        Some(Self {
            best_ns: *all.first()?,
            median_ns: quantile(&all, 0.5),
        })
    }
}

/// The median of what is not empty.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let values = sorted(values);
    (!values.is_empty()).then(|| quantile(&values, 0.5))
}

fn is_cost(cost: f64) -> bool {
    cost.is_finite() && cost > 0.0
}

fn ratios(one: &[f64], other: &[f64]) -> Vec<f64> {
    let pairs = one.iter().zip(other);
    sorted(
        pairs
            .filter(|(one, other)| is_cost(**one) && is_cost(**other))
            .map(|(one, other)| one / other),
    )
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Between the two nearest values, in proportion; of nothing, not a number.
fn quantile(sorted: &[f64], quantile: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = quantile * last as f64;
    let (below, above) = (index(at.floor()).min(last), index(at.ceil()).min(last));
    sorted[below] + (sorted[above] - sorted[below]) * at.fract()
}

/// The order statistics between which the median of what was drawn from lies with
/// 95 %: the count of draws below it has a binomial distribution, here as a normal
/// one.
fn median_interval(sorted: &[f64]) -> (f64, f64) {
    let Some(last) = sorted.len().checked_sub(1) else {
        return (f64::NAN, f64::NAN);
    };
    let count = sorted.len() as f64;
    let below = (count / 2.0 - 0.98 * count.sqrt()).max(0.0);
    let below = index(below.floor()).min(last);
    (sorted[below], sorted[last - below])
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a whole number that is not negative and, in the caller, less than a length"
)]
fn index(value: f64) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let values = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 0.5), 3.0);
        assert_eq!(quantile(&values, 1.0), 8.0);
        assert_eq!(quantile(&[5.0], 0.9), 5.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_disturbance_of_a_cycle_is_not_in_the_ratio() {
        let original = vec![vec![100.0, 170.0, 100.0], vec![100.0, 100.0, 160.0]];
        let twice = vec![vec![200.0, 340.0, 200.0], vec![200.0, 200.0, 320.0]];
        let ratio = Ratio::of(&twice, &original).expect("cycles");
        let two = Ratio {
            median: 2.0,
            p10: 2.0,
            p90: 2.0,
            min: 2.0,
            max: 2.0,
        };
        assert_eq!(ratio, two);
    }

    #[test]
    fn cycles_without_a_cost_are_left_out() {
        let one = vec![vec![2.0, f64::NAN, 0.0, 6.0]];
        let other = vec![vec![1.0, 1.0, 1.0, f64::INFINITY]];
        assert_eq!(Ratio::of(&one, &other).expect("a cycle").median, 2.0);
        assert_eq!(Ratio::of(&vec![vec![f64::NAN]], &other), None);
        assert_eq!(Cost::of(&vec![vec![], vec![f64::NAN]]), None);
    }

    #[test]
    fn repetitions_show_in_min_and_max() {
        let one = vec![vec![1.0; 9], vec![1.2; 9], vec![1.1; 9]];
        let ratio = Ratio::of(&one, &vec![vec![1.0; 9]; 3]).expect("cycles");
        assert_eq!((ratio.min, ratio.median, ratio.max), (1.0, 1.1, 1.2));
    }

    #[test]
    fn twins_that_agree_by_chance_still_have_noise() {
        // The median is 1, but half of the cycles are off by a tenth.
        let twin: Vec<_> = (0..40)
            .map(|cycle| match cycle % 4 {
                0 => 0.9,
                1 => 1.1,
                _ => 1.0,
            })
            .collect();
        let noise = Noise::of(&[&vec![twin], &vec![vec![1.0; 40]]]).expect("cycles");
        assert!(noise.deviation < 0.1, "{noise:?}");
        let few = Noise::of(&[&vec![vec![1.0, 1.0, 1.1]], &vec![vec![1.0; 3]]]).expect("cycles");
        assert!((few.deviation - 0.1).abs() < 1e-9, "{few:?}");
    }

    #[test]
    fn the_two_that_differ_most_are_the_noise() {
        let costs = [1.0, 1.02, 0.98].map(|cost| vec![vec![cost; 20]; 2]);
        let [a, b, c] = &costs;
        let noise = Noise::of(&[a, b, c]).expect("cycles");
        assert!(
            (noise.deviation - (1.02 / 0.98 - 1.0)).abs() < 1e-9,
            "{noise:?}"
        );
        assert_eq!(Noise::of(&[a]), None);
    }

    #[test]
    fn less_than_twice_the_deviation_is_no_difference() {
        let noise = Noise { deviation: 0.015 };
        assert!(!noise.is_difference(1.0299));
        assert!(!noise.is_difference(1.0 / 1.0299));
        assert!(noise.is_difference(1.031));
        assert!(noise.is_difference(1.0 / 1.031));
    }

    proptest! {
        #[test]
        fn a_ratio_is_ordered(costs in prop::collection::vec((1.0..1e6_f64, 1.0..1e6_f64), 1..50)) {
            let (one, other) = costs.into_iter().unzip();
            let ratio = Ratio::of(&vec![one], &vec![other]).expect("cycles");
            prop_assert!(ratio.p10 <= ratio.median && ratio.median <= ratio.p90);
            prop_assert!(ratio.min <= ratio.median && ratio.median <= ratio.max);
        }
    }
}
