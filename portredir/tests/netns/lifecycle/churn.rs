//! Interfaces and addresses that come, go and change, at random and many times:
//! within a second exactly the right ones carry our programs, and in the end
//! nothing has piled up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::lab::process::{DEADLINE, note, slow, wait_for, wait_within};
use crate::lab::program::{Redirector, attached};
use crate::lab::{Family, Lab};
use crate::lifecycle::follow::{SOON, wait_for_loss};
use crate::lifecycle::oracle::{
    ALL, BridgeTracking, Selection, carriers, set_bridge_tracking, wait_for_carriers,
};
use crate::lifecycle::world::World;
use crate::peer::conn::answers;
use crate::peer::echo::EchoServer;
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    for selection in SELECTIONS {
        let name = format!("tc/churn_{}", selection.name);
        let changes = if selection.name == "all" { 200 } else { 60 };
        tests.add(name, &[], move || churn("tc", selection, changes));
    }
    for engine in ["tc-clsact", "xdp-generic"] {
        let name = format!("{engine}/churn_all");
        tests.add(name, &[], move || churn(engine, ALL, 60));
    }
}

/// Seeds the changes; by the clock when it is not set.
const SEED: &str = "PORTREDIR_TEST_SEED";

/// For runs of [`churn`] by TC.
const SELECTIONS: [Selection; 3] = [
    ALL,
    Selection {
        name: "glob",
        arg: "h*,br*,mv*",
        is_all: false,
        has: |name| {
            ["h", "br", "mv"]
                .iter()
                .any(|start| name.starts_with(start))
        },
    },
    Selection {
        name: "all_but",
        arg: "!ren*",
        is_all: true,
        has: |name| !name.starts_with("ren"),
    },
];

/// The seed of the changes, which a failed test names so that it can be repeated.
fn seed() -> u64 {
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).expect("a clock");
        u64::from(since.subsec_nanos())
    });
    note(&format!("the same again: {SEED}={seed}"));
    seed
}

fn churn(engine: &'static str, selection: Selection, changes: usize) {
    // The time that so many changes may take.
    DEADLINE.set(Some(Instant::now() + slow(Duration::from_secs(180))));
    let seed = seed();
    let cell = Cell {
        engine,
        is_offloaded: true,
        family: Family::V4,
    };
    let mut lab = Lab::new(&cell);
    lab.far = Some(lab.third());
    let tracking = [BridgeTracking::Off, BridgeTracking::On][usize::from(seed % 2 == 1)];
    set_bridge_tracking(&lab.host, tracking);
    let _server = EchoServer::start(&lab.host, 7778);
    let args = ["--iface", selection.arg, "--engine", engine];
    let args = [&args[..], &["7777:7778/both"]].concat();
    let redirector = Redirector::start(&lab.host, &args);
    wait_for_carriers(&lab, engine, selection);
    let before = attached(&lab.host);
    let mut world = World::new(&lab, seed);
    // Programs for interfaces without an Ethernet header are loaded when needed.
    if world.tun_comes_or_goes(0) {
        wait_for_carriers(&lab, engine, selection);
        world.tun_comes_or_goes(0);
        wait_for_carriers(&lab, engine, selection);
    }
    // A report comes when the program has dealt with all changes.
    redirector.fresh_report();
    let open_files = redirector.open_files();
    let mut memory = 0;
    for number in 0..changes {
        if number == changes / 5 {
            memory = redirector.memory_kib();
        }
        note(&format!("change {number}"));
        for _ in 0..=world.random.below(6) / 4 {
            world.change();
        }
        let start = Instant::now();
        wait_for_carriers(&lab, engine, selection);
        check_redirect(&mut world, &redirector, selection, start);
    }
    world.clear();
    wait_for_carriers(&lab, engine, selection);
    assert_eq!(attached(&lab.host), before);
    check_usage(&redirector, &open_files, memory);
    check_report(&redirector, &carriers(&lab.host, engine));
    let objects = redirector.kernel_objects();
    assert!(!objects.is_empty());
    redirector.finish(&lab);
    assert_eq!(attached(&lab.host), [""; 0]);
    wait_for("the kernel to free programs, maps and links", || {
        objects.iter().all(|object| !object.exists()).then_some(())
    });
}

/// Checks that a lost address is no longer redirected, or else that one of those
/// that are there is redirected soon after the changes of `start`.
fn check_redirect(
    world: &mut World<'_>,
    redirector: &Redirector,
    selection: Selection,
    start: Instant,
) {
    let lab = world.lab;
    if let Some((wire, lost)) = world.lost.take()
        && world.is_used(wire, selection)
    {
        wait_for_loss(lab, redirector, lost);
        return;
    }
    let reachable = world.reachable(selection);
    let (addr, proto) = reachable[world.random.below(reachable.len())];
    let to = SocketAddr::new(addr, 7777);
    let rest = SOON.saturating_sub(start.elapsed());
    wait_within(rest, &format!("a redirect of {to} by {proto:?}"), || {
        answers(&lab.client, proto, to).then_some(())
    });
}

/// Checks that as many files are open as before, and that memory has not grown.
fn check_usage(redirector: &Redirector, open_files: &BTreeMap<String, usize>, memory: u64) {
    let start = Instant::now();
    while start.elapsed() < SOON && redirector.open_files() != *open_files {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(redirector.open_files(), *open_files);
    let grown = redirector.memory_kib().saturating_sub(memory);
    assert!(
        grown < 4096,
        "memory grew by {grown} KiB since {memory} KiB"
    );
}

/// Checks that the report names the interfaces that carry our programs.
fn check_report(redirector: &Redirector, carriers: &BTreeSet<String>) {
    let report = redirector.fresh_report();
    let shown = report["interfaces"].as_array().expect("interfaces");
    let mut shown: BTreeSet<_> = shown
        .iter()
        .map(|one| one["name"].as_str().expect("a name").to_owned())
        .collect();
    shown.retain(|name| name != "lo" || carriers.contains("lo"));
    assert_eq!(shown, *carriers);
}
