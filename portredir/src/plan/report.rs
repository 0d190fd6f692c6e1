//! A plan in a form for people and programs.

use std::fmt;

use clap::ValueEnum as _;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::{Firewall, Plan, Planned, Refused, Rejected, Skipped};

/// The version of the layout; raised when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// The object that `portredir plan --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct PlanReport<'a> {
    /// The version of this layout.
    pub schema: u32,
    /// The engine that was asked for.
    pub engine: String,
    /// Canonical texts of the rules.
    pub rules: &'a [String],
    /// Every interface that was looked at, by index.
    pub interfaces: Vec<InterfacePlan<'a>>,
    /// The ports that a firewall on this host must allow.
    pub firewall: &'a Firewall,
    /// Notes on the plan as a whole.
    pub notes: &'a [String],
}

/// The plan for one interface.
#[derive(Clone, Debug, Serialize)]
pub struct InterfacePlan<'a> {
    /// The name.
    pub name: &'a str,
    /// The index.
    pub ifindex: u32,
    /// The action on the interface.
    pub action: Action,
    /// The engine; also the one that is impossible, none where it is skipped.
    pub engine: Option<&'static str>,
    /// The hook of that engine, where it is possible.
    pub hook: Option<&'static str>,
    /// Whether only replies are restored there, and nothing that comes in is redirected.
    pub replies_only: bool,
    /// The reason for this action and engine.
    pub why: &'a str,
    /// The engines that were considered first.
    pub rejected: &'a [Rejected],
    /// Notes on this interface.
    pub notes: &'a [String],
}

/// The action on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Packets are redirected.
    Attach,
    /// The interface gets no programs.
    Skip,
    /// The engine that was asked for is impossible.
    Refuse,
}

impl Plan {
    /// The plan as `--json` prints it.
    #[must_use]
    pub fn report(&self) -> PlanReport<'_> {
        let attach = self.attach.values().map(Planned::report);
        let skip = self.skip.iter().map(Skipped::report);
        let refuse = self.refuse.iter().map(Refused::report);
        let mut interfaces: Vec<_> = attach.chain(skip).chain(refuse).collect();
        interfaces.sort_by_key(|interface| interface.ifindex);
        PlanReport {
            schema: SCHEMA,
            engine: self
                .choice
                .to_possible_value()
                .map(|value| value.get_name().to_owned())
                .unwrap_or_default(),
            rules: &self.rules,
            interfaces,
            firewall: &self.firewall,
            notes: &self.notes,
        }
    }
}

impl Planned {
    fn report(&self) -> InterfacePlan<'_> {
        InterfacePlan {
            name: &self.interface.name,
            ifindex: self.interface.index,
            action: Action::Attach,
            engine: Some(self.engine.name()),
            hook: Some(self.hook),
            replies_only: self.is_egress_only,
            why: &self.why,
            rejected: &self.rejected,
            notes: &self.notes,
        }
    }
}

impl Skipped {
    fn report(&self) -> InterfacePlan<'_> {
        InterfacePlan {
            name: &self.name,
            ifindex: self.index,
            action: Action::Skip,
            engine: None,
            hook: None,
            replies_only: false,
            why: &self.why,
            rejected: &[],
            notes: &[],
        }
    }
}

impl Refused {
    fn report(&self) -> InterfacePlan<'_> {
        InterfacePlan {
            name: &self.name,
            ifindex: self.index,
            action: Action::Refuse,
            engine: Some(self.engine.name()),
            hook: None,
            replies_only: false,
            why: &self.why,
            rejected: &[],
            notes: &[],
        }
    }
}

impl InterfacePlan<'_> {
    fn row(&self) -> [String; 4] {
        let hook = match self.action {
            Action::Refuse => "unavailable",
            Action::Attach | Action::Skip => self.hook.unwrap_or("-"),
        };
        [
            self.name.to_owned(),
            self.engine.unwrap_or("-").to_owned(),
            hook.to_owned(),
            self.why.to_owned(),
        ]
    }
}

/// Writes one line, for an interface that comes later.
impl fmt::Display for InterfacePlan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.row().join("  "))?;
        self.notes
            .iter()
            .try_for_each(|note| write!(f, "\n{}: {note}", self.name))
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report().fmt(f)
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report().fmt(f)
    }
}

/// Writes the table, then notes; every line ends with a line break.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report();
        if !report.interfaces.is_empty() {
            let mut table = Table::new();
            table
                .load_style(presets::NOTHING)
                .set_content_arrangement(ContentArrangement::Disabled)
                .set_header(["INTERFACE", "ENGINE", "HOOK", "WHY"])
                .add_rows(report.interfaces.iter().map(InterfacePlan::row));
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
            writeln!(f, "{}", table.trim_fmt())?;
        }
        for interface in &report.interfaces {
            for note in interface.notes {
                writeln!(f, "{}: {note}", interface.name)?;
            }
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        if !self.attach.is_empty() && !self.firewall.open.is_empty() {
            writeln!(f, "{}", self.firewall)?;
        }
        Ok(())
    }
}

impl fmt::Display for Firewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// More of them would fill the screen; `--json` has them all.
        const MOST: usize = 20;
        let shown = &self.open[..self.open.len().min(MOST)];
        write!(f, "firewall: allow {}", shown.join(", "))?;
        if shown.len() < self.open.len() {
            let more = self.open.len() - shown.len();
            write!(f, " and {more} more, which `plan --json` lists")?;
        }
        write!(f, " ({})", self.why)
    }
}
