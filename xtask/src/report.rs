//! A reader of what test programs print. The output of rustc's harness and of
//! libtest-mimic is nearly the same.

use std::collections::BTreeMap;
use std::fmt;

/// The numbers of tests by outcome, and the tests that did not pass.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
    /// `name: reason` of each skipped test.
    pub skips: Vec<String>,
    /// The names of the failed tests.
    pub failures: Vec<String>,
    /// The names of the tests that failed once and then passed.
    pub unsteady: Vec<String>,
    /// The names of the tests that passed.
    pub passes: Vec<String>,
    /// The observations of tests, by the names of the tests: lines that begin with `seen` and a tab.
    pub seen: BTreeMap<String, String>,
}

impl Counts {
    /// Reads a line, and returns whether this line ends the tests of a program.
    pub fn read(&mut self, line: &str) -> bool {
        if let Some(result) = line.strip_prefix("test result: ") {
            for part in result.split(['.', ';']) {
                let Some((number, what)) = part.trim().split_once(' ') else {
                    continue;
                };
                let number = number.parse().unwrap_or(0);
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.skipped += number,
                    _ => {}
                }
            }
            return true;
        }
        if let Some(seen) = line.strip_prefix("seen\t") {
            let (name, what) = seen.split_once('\t').unwrap_or((seen, ""));
            self.seen.insert(name.to_owned(), what.to_owned());
        }
        let test = line.strip_prefix("test ").unwrap_or_default();
        if let Some((name, outcome)) = test.split_once(" ... ") {
            // libtest-mimic pads names to one width.
            let name = name.trim();
            if outcome == "ok" {
                self.passes.push(name.to_owned());
            } else if outcome.starts_with("FAILED") {
                self.failures.push(name.to_owned());
            } else if let Some(reason) = outcome.strip_prefix("ignored") {
                self.skips.push(format!("{name}: {}", trim_reason(reason)));
            }
        }
        false
    }

    /// Adds other tests.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.skips.extend(other.skips);
        self.failures.extend(other.failures);
        self.unsteady.extend(other.unsteady);
        self.passes.extend(other.passes);
        self.seen.extend(other.seen);
    }
}

/// The reason of a skipped test: rustc's harness writes `, reason`, libtest-mimic
/// ` (reason)`.
fn trim_reason(reason: &str) -> &str {
    let in_brackets = reason.strip_prefix(" (").and_then(|r| r.strip_suffix(')'));
    let reason = in_brackets.or(reason.strip_prefix(", ")).unwrap_or(reason);
    if reason.is_empty() {
        "no reason given"
    } else {
        reason
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
            ..
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Counts {
        let mut counts = Counts::default();
        let ends = text.lines().filter(|line| counts.read(line)).count();
        assert_eq!(ends, 1);
        counts
    }

    #[test]
    fn reads_the_harness_of_rustc() {
        let counts = read(
            "running 4 tests\n\
             test csum::tests::fold ... ok\n\
             test a::slow ... ignored, takes an hour\n\
             test a::other ... ignored\n\
             test b::wrong ... FAILED\n\n\
             test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        );
        let expected = Counts {
            passed: 1,
            failed: 1,
            skipped: 2,
            skips: vec![
                "a::slow: takes an hour".into(),
                "a::other: no reason given".into(),
            ],
            failures: vec!["b::wrong".into()],
            passes: vec!["csum::tests::fold".into()],
            ..Counts::default()
        };
        assert_eq!(counts, expected);
    }

    #[test]
    fn reads_libtest_mimic() {
        let counts = read(
            "seen\ttcp_v4\t3 segments\n\
             test tcp_v4       ... ok\n\
             test tcx (links)  ... ignored (needs kernel 6.6 (TCX))\n\n\
             test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s",
        );
        assert_eq!(counts.to_string(), "12 passed, 0 failed, 1 skipped");
        assert_eq!(counts.passes, ["tcp_v4"]);
        assert_eq!(counts.seen["tcp_v4"], "3 segments");
        assert_eq!(counts.skips, ["tcx (links): needs kernel 6.6 (TCX)"]);
    }
}
