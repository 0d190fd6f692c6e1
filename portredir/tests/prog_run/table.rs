//! The table of cases in the kernel.

use std::collections::{BTreeMap, HashMap};

use libtest_mimic::{Completion, Failed};

use crate::compare::{Agreed, SLACK, compare};
use crate::namespace;
use crate::packet::mock::Hex;
use crate::packet::{Case, Iface, Setup, table};
use crate::program::{Program, programs};
use crate::rig::{Rig, SIZES, at_time};

/// The programs by their rules: loading them takes longer than running them.
#[derive(Default)]
pub struct Rigs(HashMap<Setup, Rig>);

impl Rigs {
    pub fn get(&mut self, rules: &'static [&'static str]) -> &mut Rig {
        self.at(Setup::of(rules))
    }

    /// The programs with this setup.
    pub fn at(&mut self, setup: Setup) -> &mut Rig {
        self.0
            .entry(setup)
            .or_insert_with(|| Rig::new(setup, SIZES))
    }
}

/// The cases by series.
pub fn series() -> BTreeMap<String, Vec<Case>> {
    let mut series = BTreeMap::<String, Vec<Case>>::new();
    for case in table() {
        let name = case.name.split(':').next().expect("a first part");
        series.entry(name.to_owned()).or_default().push(case);
    }
    series
}

/// Runs the cases in every program that they fit.
pub fn run(rigs: &mut Rigs, cases: &[Case]) -> Result<Completion, Failed> {
    let mut failures = Vec::new();
    let (mut runs, mut refused) = (0, 0);
    namespace::enter();
    for case in cases {
        if case.iface == Iface::Other || !case.sockets.is_empty() {
            namespace::enter();
        }
        if case.iface == Iface::Other {
            namespace::add_other();
        }
        let sockets = namespace::open(&case.sockets);
        for program in programs(case.hook, case.link) {
            let result = check(rigs.at(case.setup), program, case);
            match result {
                Ok(true) => runs += 1,
                Ok(false) => refused += 1,
                Err(error) => failures.push(format!("{}: {error}", case.name)),
            }
        }
        drop(sockets);
    }
    if refused > 0 {
        println!(
            "{}: {runs} runs, {refused} that the kernel refuses",
            cases[0].name
        );
    }
    if failures.is_empty() && runs == 0 {
        return Ok(Completion::ignored_with("the kernel takes no such packets"));
    }
    let count = failures.len();
    failures.truncate(10);
    if count > 0 {
        return Err(format!("{count} failures\n\n{}", failures.join("\n\n")).into());
    }
    Ok(Completion::Completed)
}

/// Whether the program ran and did what the case says.
fn check(rig: &mut Rig, program: Program, case: &Case) -> Result<bool, String> {
    let Some(agreed) = compare(rig, program, &case.mock(), &case.packet)? else {
        return Ok(false);
    };
    let Agreed {
        reason,
        outcome,
        now_ns,
    } = agreed;
    if !case.allows(reason) {
        return Err(format!(
            "{}: reason {reason:?}, not {:?}",
            program.name, case.reason
        ));
    }
    let (packet, after) = case.expected(&outcome.tables);
    if outcome.packet != packet {
        let (is, should) = (Hex(&outcome.packet), Hex(&packet));
        return Err(format!(
            "{}: packet\n  got      {is:?}\n  expected {should:?}",
            program.name
        ));
    }
    if let Some(after) = after {
        let after = at_time(&after, now_ns);
        if !outcome.tables.is(&after, SLACK) {
            let is = &outcome.tables;
            return Err(format!(
                "{}: flow state\n{is:?}is not\n{after:?}",
                program.name
            ));
        }
    }
    Ok(true)
}
