//! Where portredir may differ from DNAT, and why: `differences.toml`.

use super::cases;
use super::subject::SUBJECTS;
use crate::conformance::differences::{Difference, Known, parse};

/// All of them.
pub fn read() -> Vec<Difference> {
    let known = Known {
        cases: cases().map(|case| case.name).collect(),
        engines: SUBJECTS[1..].iter().map(|s| s.name()).collect(),
    };
    let mut names = known.cases.clone();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), known.cases.len(), "two cases have one name");
    parse(include_str!("differences.toml"), &known)
}
