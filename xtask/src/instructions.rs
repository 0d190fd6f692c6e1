//! The machine instructions that a packet takes on its way, as a limit that needs no quiet
//! machine: in a guest whose clock advances a nanosecond with each instruction
//! ([`Vm::counting`]), the times of `portredir bench` are numbers of instructions.

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::vm::Vm;
use crate::{cargo, tested};

/// The time limit of a run. A run takes some minutes on an idle host.
const LIMIT: Duration = Duration::from_secs(2 * 3600);

/// The arguments of the benchmark.
const BENCH: &str = "--topology forward --engine tc --tests udp,rr,crr,udp-new \
                     --against iptables-nft,nft-flowtable --seed 1";

/// The line before the report.
const MARK: &str = "--- report";

/// The variant without portredir: the host in the middle only forwards.
const ROUTE: &str = "route";

/// A limit for one test on one kernel.
struct Gate {
    /// The kernel's series.
    series: &'static str,
    /// The name of the test in the report.
    traffic: &'static str,
    most: Most,
}

/// The largest cost of portredir that passes.
#[derive(Clone, Copy)]
enum Most {
    /// Instructions above those of [`ROUTE`].
    Above(f64),
    /// The cost divided by that of [`ROUTE`].
    Ratio(f64),
}

/// The limit of a UDP packet is the goal of the design; the others are the measured figure
/// and as much as figures of two runs may differ.
const GATES: [Gate; 4] = [
    Gate {
        series: "6.12",
        traffic: "udp",
        most: Most::Above(1300.0),
    },
    Gate {
        series: "6.12",
        traffic: "udp-new",
        most: Most::Above(1770.0),
    },
    Gate {
        series: "6.12",
        traffic: "rr",
        most: Most::Ratio(1.075),
    },
    Gate {
        series: "6.12",
        traffic: "crr",
        most: Most::Ratio(1.100),
    },
];

/// The report of `portredir bench --json`.
#[derive(Deserialize)]
struct Report {
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct Test {
    traffic: String,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    variant: String,
    is_ours: bool,
    cost: Option<Cost>,
    to_direct: Option<Ratio>,
}

#[derive(Deserialize)]
struct Cost {
    median_ns: f64,
}

#[derive(Deserialize)]
struct Ratio {
    median: f64,
}

/// Counts on each kernel, prints the table, and compares with the limits. Without a program,
/// one is built.
pub fn test(kernels: &[String], program: Option<&Path>, record: bool) -> Result<ExitCode> {
    let program = match program {
        Some(program) => program.canonicalize().context("find the program")?,
        None => build()?,
    };
    let mut is_good = true;
    for series in kernels {
        let gates: Vec<_> = GATES.iter().filter(|gate| gate.series == series).collect();
        let known = GATES[0].series;
        ensure!(
            !gates.is_empty(),
            "no limits are known on {series}, only on {known}"
        );
        let vm = Vm::counting(series)?;
        let report = run(&vm, &program)?;
        let table = report.table();
        println!("\n{table}");
        for gate in gates {
            let verdict = report.verdict(gate)?;
            println!("{verdict}");
            is_good &= verdict.is_good();
        }
        if record {
            let release = vm.release();
            let text = format!(
                "Linux {release}, one emulated processor; `portredir bench {BENCH}`. Figures are machine \
                 instructions for each operation, of all hosts together.\n\n{table}"
            );
            tested::record(&format!("instructions on {series}"), &text)?;
        }
    }
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds portredir.
fn build() -> Result<PathBuf> {
    let args = ["build", "--release", "-p", "portredir", "--bin=portredir"];
    let program = cargo::build(&args)?.into_iter().next();
    Ok(program.context("find portredir after its build")?.path)
}

/// Runs the benchmark in a guest.
fn run(vm: &Vm, program: &Path) -> Result<Report> {
    // The report goes through a file: the benchmark prints another text.
    let script = format!(
        "\"$0\" bench {BENCH} --json \"$TMPDIR/report\" && echo '{MARK}' && cat \"$TMPDIR/report\""
    );
    let program = program.display().to_string();
    let words = ["sh", "-c", &script, &program];
    let mut command = vm.command(LIMIT, Path::new("/"), &[], &words)?;
    let qemu = command.stdout(Stdio::piped()).spawn();
    let mut qemu = qemu.context("start QEMU")?;
    let stdout = qemu.stdout.take().context("read the output of the guest")?;
    let mut report = None;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("read the output of the benchmark")?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        match &mut report {
            None if line == MARK => report = Some(String::new()),
            None => println!("{line}"),
            Some(report) => report.push_str(&line),
        }
    }
    qemu.wait().context("wait for QEMU")?;
    let Some(report) = report else {
        let words = vm.last_words();
        bail!("the benchmark did not end well; the last kernel messages:\n{words}");
    };
    serde_json::from_str(&report).context("read the report of the benchmark")
}

impl Report {
    /// The rows of a test: that of [`ROUTE`], and that of portredir.
    fn rows(&self, traffic: &str) -> Result<[&Row; 2]> {
        let test = self.tests.iter().find(|test| test.traffic == traffic);
        let test = test.with_context(|| format!("find the test {traffic}"))?;
        let route = test.rows.iter().find(|row| row.variant == ROUTE);
        let ours = test.rows.iter().find(|row| row.is_ours);
        let rows = route.zip(ours);
        let (route, ours) = rows.with_context(|| format!("find both rows of {traffic}"))?;
        Ok([route, ours])
    }

    /// Compares portredir with a limit.
    fn verdict(&self, gate: &Gate) -> Result<Verdict> {
        let [route, ours] = self.rows(gate.traffic)?;
        let cost = |row: &Row| row.cost.as_ref().map(|cost| cost.median_ns);
        let missing = || format!("{} has no figure of portredir", gate.traffic);
        let figure = match gate.most {
            Most::Above(_) => cost(ours)
                .zip(cost(route))
                .map(|(ours, route)| ours - route),
            Most::Ratio(_) => ours.to_direct.as_ref().map(|ratio| ratio.median),
        };
        Ok(Verdict {
            traffic: gate.traffic,
            figure: figure.with_context(missing)?,
            most: gate.most,
        })
    }

    /// The figures as a table for a document.
    fn table(&self) -> String {
        let mut text = String::from(
            "| test | variant | instructions | above route | to route |\n|---|---|---|---|---|\n",
        );
        for test in &self.tests {
            let route = test.rows.iter().find(|row| row.variant == ROUTE);
            let route = route.and_then(|row| row.cost.as_ref());
            for row in &test.rows {
                let Some(cost) = &row.cost else { continue };
                let above = route.map(|route| cost.median_ns - route.median_ns);
                let ratio = row.to_direct.as_ref().map(|ratio| ratio.median);
                text += &format!(
                    "| {} | {} | {:.0} | {:.0} | {:.3} |\n",
                    test.traffic,
                    row.variant,
                    cost.median_ns,
                    above.unwrap_or(f64::NAN),
                    ratio.unwrap_or(f64::NAN)
                );
            }
        }
        text
    }
}

/// A figure beside its limit.
struct Verdict {
    traffic: &'static str,
    figure: f64,
    most: Most,
}

impl Verdict {
    /// Whether the figure is within the limit. A figure that is not a number is not.
    fn is_good(&self) -> bool {
        let (Most::Above(most) | Most::Ratio(most)) = self.most;
        self.figure <= most
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = if self.is_good() { "ok" } else { "FAILED" };
        let Self {
            traffic, figure, ..
        } = self;
        match self.most {
            Most::Above(most) => write!(
                f,
                "{outcome}: {traffic}: {figure:.0} instructions above {ROUTE}, at most {most:.0}"
            ),
            Most::Ratio(most) => write!(
                f,
                "{outcome}: {traffic}: {figure:.3} times the instructions of {ROUTE}, at most {most:.3}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"schema": 1, "tests": [{"traffic": "udp", "title": "", "rows": [
        {"variant": "route", "is_ours": false, "cost": {"best_ns": 1, "median_ns": 6000.0},
            "to_direct": {"median": 1.0}},
        {"variant": "route 2", "is_ours": false, "cost": {"best_ns": 1, "median_ns": 6001.0},
            "to_direct": {"median": 1.0}},
        {"variant": "nft-flowtable", "is_ours": false, "failure": "x", "cost": null,
            "to_direct": null},
        {"variant": "portredir tc", "is_ours": true, "cost": {"best_ns": 1, "median_ns": 7200.0},
            "to_direct": {"median": 1.2}}]}]}"#;

    fn verdict(traffic: &'static str, most: Most) -> Result<Verdict> {
        let report: Report = serde_json::from_str(REPORT).expect("a report");
        report.verdict(&Gate {
            series: "6.12",
            traffic,
            most,
        })
    }

    #[test]
    fn a_figure_above_its_limit_fails() {
        for (most, is_good) in [
            (Most::Above(1200.0), true),
            (Most::Above(1199.0), false),
            (Most::Ratio(1.2), true),
            (Most::Ratio(1.19), false),
        ] {
            assert_eq!(verdict("udp", most).expect("figures").is_good(), is_good);
        }
    }

    #[test]
    fn a_test_that_is_missing_is_an_error() {
        assert!(verdict("rr", Most::Ratio(2.0)).is_err());
    }

    #[test]
    fn the_table_has_each_variant_that_was_measured() {
        let report: Report = serde_json::from_str(REPORT).expect("a report");
        let table = report.table();
        assert_eq!(table.lines().count(), 5, "{table}");
        assert!(
            table.ends_with("| udp | portredir tc | 7200 | 1200 | 1.200 |\n"),
            "{table}"
        );
    }
}
