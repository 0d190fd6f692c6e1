//! Where portredir may differ from netfilter, and why: `differences.toml`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::cases;
use super::site::SUBJECTS;

/// An allowed difference.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Names of cases.
    pub cases: Vec<String>,
    /// Names of engines.
    pub engines: Vec<String>,
    /// The outcome that differs from the expected one.
    pub outcome: String,
    /// Why that is allowed; in the file, the name of a reason.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    reasons: BTreeMap<String, String>,
    difference: Vec<Difference>,
}

/// The names that a file of differences may use.
pub struct Known {
    pub cases: Vec<&'static str>,
    pub engines: Vec<&'static str>,
}

/// All of them.
pub fn read() -> Vec<Difference> {
    let known = Known {
        cases: cases().map(|case| case.name).collect(),
        engines: SUBJECTS[1..].iter().map(|s| s.name()).collect(),
    };
    parse(include_str!("differences.toml"), &known)
}

/// The differences in a file: each has a reason, and each reason is used.
pub fn parse(text: &str, known: &Known) -> Vec<Difference> {
    let mut file: File = toml::from_str(text).expect("differences.toml");
    let mut unused: Vec<_> = file.reasons.keys().collect();
    for difference in &mut file.difference {
        unused.retain(|name| **name != difference.reason);
        let reason = file.reasons.get(&difference.reason);
        reason
            .unwrap_or_else(|| panic!("differences.toml: no reason `{}`", difference.reason))
            .clone_into(&mut difference.reason);
        for case in &difference.cases {
            let is_known = known.cases.contains(&case.as_str());
            assert!(is_known, "differences.toml: no case `{case}`");
        }
        for engine in &difference.engines {
            let is_known = known.engines.contains(&engine.as_str());
            assert!(is_known, "differences.toml: no engine `{engine}`");
        }
    }
    assert!(unused.is_empty(), "differences.toml: no use of {unused:?}");
    file.difference
}

/// The one for a case and an engine.
pub fn find<'a>(all: &'a [Difference], case: &str, engine: &str) -> Option<&'a Difference> {
    let mut found = all.iter().filter(|difference| {
        let has = |names: &[String], name: &str| names.iter().any(|n| n == name);
        has(&difference.cases, case) && has(&difference.engines, engine)
    });
    let first = found.next();
    assert!(
        found.next().is_none(),
        "differences.toml has two for {case} by {engine}"
    );
    first
}
