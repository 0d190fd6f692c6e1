//! A case of the comparison with DNAT.

use super::site::Site;
use super::subject::{Layout, VARIANTS, Variant};
use crate::conformance::observe::Observation;
use crate::conformance::site::Offload;
use crate::lab::Family;

/// One stimulus, and how to see what comes of it.
#[derive(Clone, Copy)]
pub struct Case {
    /// The row in the document.
    pub number: u16,
    /// The name in the test.
    pub name: &'static str,
    /// For the document.
    pub stimulus: &'static str,
    pub families: &'static [Family],
    pub run: Run,
}

/// How a case runs.
#[derive(Clone, Copy)]
pub enum Run {
    /// Among others, on hosts that all of them use.
    Shared(fn(&Site, Family) -> Observation),
    /// On hosts of its own with this layout, on which nothing redirects yet.
    Own(Layout, fn(&mut Site, Family) -> Observation),
}

impl Case {
    /// Over IPv4 alone.
    pub const fn v4(self) -> Self {
        Self {
            families: &[Family::V4],
            ..self
        }
    }

    /// The kinds of hosts it runs on.
    pub fn variants(&self) -> Vec<Variant> {
        match self.run {
            Run::Shared(_) => VARIANTS.to_vec(),
            Run::Own(layout, _) => vec![Variant {
                layout,
                offload: Offload::Off,
            }],
        }
    }
}

/// A case on hosts that others use as well.
pub const fn shared(
    number: u16,
    name: &'static str,
    stimulus: &'static str,
    run: fn(&Site, Family) -> Observation,
) -> Case {
    Case {
        number,
        name,
        stimulus,
        families: &Family::BOTH,
        run: Run::Shared(run),
    }
}

/// A case with hosts of its own.
pub const fn own(
    number: u16,
    name: &'static str,
    stimulus: &'static str,
    (layout, run): (Layout, fn(&mut Site, Family) -> Observation),
) -> Case {
    Case {
        number,
        name,
        stimulus,
        families: &Family::BOTH,
        run: Run::Own(layout, run),
    }
}
