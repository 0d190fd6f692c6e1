//! A million random packets through the datapath on this machine.

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::traffic::random::{self, SEED};
use crate::traffic::session::{Tally, on_host};

/// Each becomes, byte for byte, what the reference says.
#[test]
fn a_million_packets_are_as_the_reference_says() {
    let (seed, packets) = (random::seed(), random::packets());
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let total = Mutex::new(Tally::default());
    let work = || {
        while total.lock().expect("no thread panics with it").packets < packets {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let mut tally = Tally::default();
            let result = on_host(&random::session(seed, number), &mut tally);
            total.lock().expect("no thread panics with it").add(&tally);
            if let Err(error) = result {
                panic!("{SEED}={seed}, session {number}: {error}");
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    let total = total.into_inner().expect("no thread panics with it");
    println!("{total:?} in {:.1} s", start.elapsed().as_secs_f32());
    total.assert_all_reasons();
}
