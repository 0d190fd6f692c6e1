//! The programs in the kernel, one packet at a time (`BPF_PROG_TEST_RUN`).
//!
//! The table of cases of `tests/packet` and random packets run through every
//! program; verdict, bytes, counters and flow state must be what the same
//! datapath does on the host. Needs root.

mod compare;
mod differential;
mod life;
mod listeners;
mod load;
mod namespace;
#[expect(dead_code, reason = "some of it is for `tests/host.rs` alone")]
#[path = "../packet/mod.rs"]
mod packet;
mod program;
#[path = "../reference/mod.rs"]
mod reference;
mod rig;
mod table;
mod targets;
#[expect(dead_code, reason = "some of it is for `tests/host.rs` alone")]
#[path = "../traffic/mod.rs"]
mod traffic;

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::unistd::geteuid;

use table::Rigs;

/// One test at a time: they share maps.
static RIGS: Mutex<Option<Rigs>> = Mutex::new(None);

fn with_rigs<T>(run: impl FnOnce(&mut Rigs) -> T) -> T {
    // What a test leaves in the maps when it panics, the next one replaces.
    let mut rigs = RIGS.lock().unwrap_or_else(PoisonError::into_inner);
    run(rigs.get_or_insert_default())
}

/// Whether the machine is slow, so that a part of the tests has to do: every
/// program is in it.
fn is_subset() -> bool {
    std::env::var_os("TEST_SUBSET").is_some()
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for (name, cases) in table::series() {
        // One packet cut at each of its bytes: a third of the tests, and most of
        // the time.
        if is_subset() && name.starts_with("cut ") {
            continue;
        }
        let run = move || with_rigs(|rigs| table::run(rigs, &cases));
        trials.push(trial(name, run));
    }
    for (name, test) in [
        ("an old kernel is refused", load::preflight as fn(&mut Rigs)),
        ("every program loads", load::programs),
        (
            "a connection from its first packet to the last",
            life::connection,
        ),
        (
            "a connection that is being set up holds its port",
            life::request,
        ),
        ("a collision with a live direct connection", life::collision),
        ("no free port", life::no_free_port),
        ("a gro packet counts as its segments", life::segments),
        ("frames of many sizes", life::sizes),
        ("an address comes and goes", life::address),
        ("counters are kept per interface", life::interfaces),
        ("servers are registered once", listeners::one_by_one),
        ("a group of servers is registered", listeners::group),
        ("a server of each device is registered", listeners::devices),
        ("random packets", differential::run),
    ] {
        trials.push(trial(name, move || {
            with_rigs(test);
            Ok(Completion::Completed)
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test that only root can run.
fn trial(
    name: impl Into<String>,
    run: impl FnOnce() -> Result<Completion, Failed> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        if !geteuid().is_root() {
            return Ok(Completion::ignored_with("needs root"));
        }
        run()
    })
}
