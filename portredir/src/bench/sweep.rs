//! Removes what a killed run left behind.

use std::fs;
use std::process::Command;

use crate::bench::namespace::{self, Namespace};
use crate::host::features::Features;

/// Removes what a killed run left behind, and reports it.
pub fn sweep() {
    for name in namespace::left_behind() {
        eprintln!("removing network namespace {name}, left by a run that was killed");
        let last = |namespace: &Namespace| end_what_was_left(namespace);
        if let Err(error) = namespace::adopt_and_delete(&name, last) {
            log::warn!("{error:#}");
        }
    }
    for path in namespace::stale(&std::env::temp_dir()) {
        let _ = fs::remove_dir_all(path);
    }
    if let Some(root) = Features::read(None).cgroup {
        for path in namespace::stale(&root) {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Detaches and unpins portredir in a namespace: only `up` leaves something outside of
/// it, its pins.
fn end_what_was_left(namespace: &Namespace) {
    let mut down = Command::new("/proc/self/exe");
    // Usually nothing is active there.
    let _ = namespace.run(down.args(["down", "--force"]), "");
}
