//! Random sessions, the same ones for the same seed.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use fastrand::Rng;

/// Seeds random sessions; by the clock when it is not set.
pub const SEED: &str = "PORTREDIR_TEST_SEED";

/// Bytes of a session: more than its packets are made of.
const LEN: usize = 4096;

/// The seed of this run.
pub fn seed() -> u64 {
    let seed = env::var(SEED).ok();
    let seed = seed.map(|seed| {
        seed.parse()
            .unwrap_or_else(|_| panic!("{SEED} is a number"))
    });
    seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        u64::from(now.expect("a clock after 1970").subsec_nanos())
    })
}

/// Session `number` of a run.
pub fn session(seed: u64, number: u64) -> Vec<u8> {
    // Neighbours have nothing in common, as the generator scrambles its seed.
    let mut rng = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes = vec![0; LEN];
    rng.fill(&mut bytes);
    bytes
}
