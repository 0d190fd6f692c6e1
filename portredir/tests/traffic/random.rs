//! Random sessions, the same ones for the same seed.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use fastrand::Rng;

/// Seeds random sessions; by the clock when it is not set.
pub const SEED: &str = "PORTREDIR_TEST_SEED";

/// Bytes of a session: more than its packets are made of.
const LEN: usize = 4096;

/// How many packets there are; by default a million.
const PACKETS: &str = "PORTREDIR_TEST_PACKETS";

/// The number of an environment variable.
fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

/// The seed of this run, which is printed.
pub fn seed() -> u64 {
    let seed = number(SEED).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        u64::from(now.expect("a clock after 1970").subsec_nanos())
    });
    println!("the same again: {SEED}={seed}");
    seed
}

/// How many packets there are to be.
pub fn packets() -> u64 {
    number(PACKETS).unwrap_or(1_000_000)
}

/// Session `number` of a run.
pub fn session(seed: u64, number: u64) -> Vec<u8> {
    // Neighbours have nothing in common, as the generator scrambles its seed.
    let mut rng = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes = vec![0; LEN];
    rng.fill(&mut bytes);
    bytes
}
