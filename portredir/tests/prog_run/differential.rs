//! Random packets in random states: the programs and the host must agree.
//!
//! `PORTREDIR_SEED` repeats a run. A packet on which they differ is made
//! smaller until it is the smallest that does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use portredir_common::abi::Protocol;
use portredir_common::flow::Socket;
use portredir_common::verdict::Reason;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use crate::cases::flows::KINDS;
use crate::cases::host::Mock;
use crate::cases::packet::CLIENT_PORT;
use crate::cases::random::{self, RULES};
use crate::cases::{Iface, Setup, local_addrs};
use crate::compare::compare;
use crate::namespace;
use crate::rig::programs;
use crate::table::Rigs;

const PACKETS: u32 = 24_000;

pub fn run(rigs: &mut Rigs) {
    let seed = match env::var("PORTREDIR_SEED") {
        Ok(seed) => seed.parse().expect("PORTREDIR_SEED is a number"),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs()),
    };
    println!("random packets: PORTREDIR_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&u64::to_le_bytes(seed));
    let config = Config {
        cases: if crate::is_subset() {
            PACKETS / 12
        } else {
            PACKETS
        },
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);

    namespace::enter();
    namespace::add_other();
    // Direct connections, and one with a server on the dialled port.
    let sockets: Vec<_> = KINDS
        .into_iter()
        .filter(|kind| kind.protocol == Protocol::Tcp)
        .flat_map(|kind| {
            [
                kind.key_from(CLIENT_PORT + 1, 8080),
                kind.key_from(8080, 80),
            ]
        })
        .map(|key| (key, Socket::Connection))
        .collect();
    let held = namespace::open(&sockets);
    let mut host = Mock::new(RULES, &local_addrs());
    host.sockets = sockets.into_iter().collect();

    let rigs = RefCell::new(rigs);
    let reasons = RefCell::new(BTreeMap::<&str, u32>::new());
    let hook_and_sample = random::hook().prop_flat_map(|hook| (Just(hook), random::sample(hook)));
    let plain = Setup::of(RULES);
    let hiding = Setup {
        is_hiding: true,
        ..plain
    };
    let setups = [plain, plain, hiding, plain.draining()];
    let strategy = (
        random::tables(),
        hook_and_sample,
        random::damage(),
        any::<bool>(),
        prop::sample::select(setups.to_vec()),
    );
    let start = Instant::now();
    let result = runner.run(
        &strategy,
        |(tables, (hook, sample), damage, is_on_lo, setup)| {
            let mut packet = sample.bytes();
            damage.iter().for_each(|damage| damage.apply(&mut packet));
            let mut host = host.clone();
            host.tables.replace(tables);
            host.iface = if is_on_lo { Iface::Lo } else { Iface::Other };
            (host.setup, host.table) = (setup, setup.table());
            let mut rigs = rigs.borrow_mut();
            let rig = rigs.at(host.setup);
            for program in programs(hook, sample.packet().link) {
                let agreed = compare(rig, program, &host, &packet);
                let what = match agreed.map_err(TestCaseError::fail)? {
                    Some(agreed) => agreed.reason.label(),
                    None => "too short for the kernel",
                };
                *reasons.borrow_mut().entry(what).or_default() += 1;
            }
            Ok(())
        },
    );
    drop(held);
    if let Err(error) = result {
        panic!("PORTREDIR_SEED={seed}: {error}");
    }
    let reasons = reasons.into_inner();
    let runs: u32 = reasons.values().sum();
    println!(
        "{PACKETS} packets, {runs} runs in {:.1} s: {reasons:?}",
        start.elapsed().as_secs_f32()
    );
    for reason in Reason::ALL {
        // A free port is always found, there is room for all entries, and no
        // packet needs a listener.
        let is_rare = matches!(
            reason,
            Reason::NoFreePort
                | Reason::TableFull
                | Reason::WriteFailed
                | Reason::NoListener
                | Reason::NotListening
        );
        assert!(
            is_rare || reasons.contains_key(reason.label()),
            "{reason:?} was never met"
        );
    }
}
