//! The order of turns: every variant has one turn in each cycle, in an order that is
//! drawn anew, so that no variant always comes after the same other one.

use std::time::Duration;

use fastrand::Rng;

/// A source of load on variants.
pub trait Load {
    /// Puts load on a variant for about this long; returns nanoseconds per
    /// operation.
    ///
    /// # Errors
    ///
    /// The error of the variant, which then gets no further turn.
    fn slice(&mut self, variant: usize, length: Duration) -> anyhow::Result<f64>;
}

/// The results of all cycles.
#[derive(Debug)]
pub struct Outcome {
    /// The costs by variant, then by cycle; not a number where there was no turn.
    pub costs: Vec<Vec<f64>>,
    /// The error of each variant.
    pub failures: Vec<Option<String>>,
}

/// The number of cycles that are not counted, in which caches and connections get warm.
pub const WARM_UP: usize = 2;

/// The number and the length of turns.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// The number of variants.
    pub variants: usize,
    /// The number of cycles that are counted.
    pub cycles: usize,
    /// The length of a turn, about.
    pub length: Duration,
}

/// Runs the cycles; calls `on_cycle` after each.
pub fn run(
    load: &mut dyn Load,
    schedule: Schedule,
    rng: &mut Rng,
    mut on_cycle: impl FnMut(),
) -> Outcome {
    let Schedule {
        variants,
        cycles,
        length,
    } = schedule;
    let mut order: Vec<_> = (0..variants).collect();
    let mut outcome = Outcome {
        costs: vec![vec![f64::NAN; cycles]; variants],
        failures: vec![None; variants],
    };
    for cycle in 0..WARM_UP + cycles {
        rng.shuffle(&mut order);
        for &variant in &order {
            if outcome.failures[variant].is_some() {
                continue;
            }
            match load.slice(variant, length) {
                Ok(cost) if cycle >= WARM_UP => outcome.costs[variant][cycle - WARM_UP] = cost,
                Ok(_) => {}
                Err(error) => outcome.failures[variant] = Some(format!("{error:#}")),
            }
            // This lets other processes have the processor, and shows the kernel that a
            // real-time process is not stuck (RLIMIT_RTTIME).
            std::thread::sleep(Duration::from_micros(20));
        }
        on_cycle();
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A load that writes down the turns; the cost is the number of the turn.
    struct Turns {
        turns: Vec<usize>,
        failing: Option<usize>,
    }

    impl Load for Turns {
        fn slice(&mut self, variant: usize, _: Duration) -> anyhow::Result<f64> {
            self.turns.push(variant);
            anyhow::ensure!(self.failing != Some(variant), "out of order");
            Ok(1.0)
        }
    }

    fn turns(failing: Option<usize>, seed: u64) -> (Vec<usize>, Outcome) {
        let mut load = Turns {
            turns: Vec::new(),
            failing,
        };
        let mut rng = Rng::with_seed(seed);
        let schedule = Schedule {
            variants: 4,
            cycles: 20,
            length: Duration::ZERO,
        };
        let outcome = run(&mut load, schedule, &mut rng, || {});
        (load.turns, outcome)
    }

    #[test]
    fn every_cycle_has_every_variant_once() {
        let (turns, outcome) = turns(None, 1);
        for cycle in turns.chunks_exact(4) {
            let mut cycle = cycle.to_vec();
            cycle.sort_unstable();
            assert_eq!(cycle, [0, 1, 2, 3]);
        }
        assert_eq!(turns.len(), 4 * (WARM_UP + 20));
        assert!(outcome.costs.iter().all(|costs| costs == &[1.0; 20]));
    }

    #[test]
    fn orders_differ_and_a_seed_repeats_them() {
        let (first, _) = turns(None, 1);
        let (again, _) = turns(None, 1);
        let (other, _) = turns(None, 2);
        assert_eq!(first, again);
        assert_ne!(first, other);
        let cycles: Vec<_> = first.chunks_exact(4).collect();
        assert!(cycles.iter().any(|cycle| *cycle != cycles[0]));
    }

    #[test]
    fn who_fails_gets_no_further_turn() {
        let (turns, outcome) = turns(Some(2), 1);
        assert_eq!(turns.iter().filter(|&&variant| variant == 2).count(), 1);
        assert_eq!(outcome.failures[2].as_deref(), Some("out of order"));
        assert!(outcome.costs[2].iter().all(|cost| cost.is_nan()));
        assert!(outcome.costs[3].iter().all(|cost| cost.is_finite()));
    }
}
