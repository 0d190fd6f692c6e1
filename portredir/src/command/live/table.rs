//! The tables of rules and of interfaces, which have their columns in common.

use ratatui_core::style::{Color, Style};
use ratatui_core::text::{Line, Span};

use super::model::{Model, Sort};
use super::number::{count, rate};
use super::rate::{HISTORY, Name, Quantity, Row};
use super::theme::Theme;
use crate::observe::attached::HookState;
use crate::observe::report::Report;

/// A column of numbers: its head, and the quantity that it shows.
#[derive(Clone, Copy, Debug)]
struct Column {
    head: &'static str,
    /// The order that this column stands for, which says what it shows.
    sort: Sort,
}

impl Column {
    const fn new(head: &'static str, sort: Sort) -> Self {
        Self { head, sort }
    }

    fn width(&self) -> usize {
        const NARROWEST: usize = 6;
        self.head.len().max(NARROWEST)
    }

    fn value(&self, row: &Row) -> Option<String> {
        match self.sort {
            Sort::Given => None,
            Sort::Rate(quantity) => row.rates.get(quantity).map(rate),
            Sort::Count(quantity) => row.counts.get(quantity).map(count),
        }
    }
}

const COLUMNS: [Column; 8] = [
    Column::new("IN-PKT/s", Sort::Rate(Quantity::PacketsIn)),
    Column::new("IN-B/s", Sort::Rate(Quantity::BytesIn)),
    Column::new("OUT-PKT/s", Sort::Rate(Quantity::PacketsOut)),
    Column::new("OUT-B/s", Sort::Rate(Quantity::BytesOut)),
    Column::new("FLOWS/s", Sort::Rate(Quantity::Flows)),
    Column::new("FLOWS", Sort::Count(Quantity::Flows)),
    // On a wide screen.
    Column::new("ACCEPTED", Sort::Count(Quantity::Accepted)),
    Column::new("REFUSED", Sort::Count(Quantity::Refused)),
];

/// The number of columns of a screen that is not wide.
const NARROW: usize = 6;

/// The least width of a wide screen.
const WIDE: usize = 100;

/// The form of both tables on a screen.
#[derive(Clone, Debug)]
pub struct Form {
    columns: Vec<Column>,
    name: usize,
    bars: usize,
    theme: Theme,
}

impl Form {
    /// Shares the width of the screen out. What no row counts has no column.
    #[must_use]
    pub fn new(model: &Model, width: usize, theme: Theme) -> Self {
        const FEWEST_BARS: usize = 8;
        let is_counted = |column: &&Column| {
            let quantity = column.sort.quantity();
            let mut counts = model.rows.iter().map(|row| &row.counts);
            quantity.is_some_and(|quantity| counts.any(|counts| counts.get(quantity).is_some()))
        };
        let most = if width < WIDE { NARROW } else { COLUMNS.len() };
        let columns = COLUMNS.iter().take(most).filter(is_counted);
        let columns: Vec<_> = columns.copied().collect();
        let numbers = columns.iter().map(|column| 1 + column.width());
        let rest = width.saturating_sub(numbers.sum());
        let cell = |row: &Row| cell(row, model.report.as_ref()).0.chars().count();
        let longest = model.rows.iter().map(cell).max().unwrap_or_default();
        let most = rest.saturating_sub(FEWEST_BARS + 1);
        let name = longest.max("INTERFACE".len()).min(most);
        Self {
            columns,
            name,
            bars: rest.saturating_sub(name + 1).min(HISTORY),
            theme,
        }
    }

    /// The line above the numbers of a table.
    #[must_use]
    pub fn head(&self, model: &Model, name: &str) -> Line<'static> {
        let style = self.theme.bold(Color::Cyan);
        let mut spans = vec![Span::styled(self.name(name), style)];
        for column in &self.columns {
            let space = 1 + column.width() - column.head.len();
            let is_order = column.sort == model.sort;
            let style = if is_order { style.reversed() } else { style };
            spans.push(Span::raw(" ".repeat(space)));
            spans.push(Span::styled(column.head, style));
        }
        let history = self.theme.cut("HISTORY", self.bars);
        let width = self.bars;
        spans.push(Span::styled(format!(" {history:>width$}"), style));
        Line::from(spans)
    }

    /// A line of a table.
    #[must_use]
    pub fn line(&self, model: &Model, row: &Row) -> Line<'static> {
        let (text, is_fault) = cell(row, model.report.as_ref());
        let style = match is_fault {
            true => self.theme.bold(Color::Red),
            false => Style::new(),
        };
        let mut spans = vec![Span::styled(self.name(&text), style)];
        for column in &self.columns {
            let width = column.width();
            let value = column.value(row).unwrap_or_else(|| "-".to_owned());
            spans.push(Span::raw(format!(" {value:>width$}")));
        }
        let history = model.meter.history(&row.name).rev().take(self.bars);
        let mut history: Vec<_> = history.collect();
        history.reverse();
        // The newest is at the right margin.
        let space = 1 + self.bars - history.len();
        spans.push(Span::raw(" ".repeat(space)));
        let bars = self.theme.bars(&history);
        spans.push(Span::styled(bars, self.theme.color(Color::Green)));
        Line::from(spans)
    }

    fn name(&self, text: &str) -> String {
        let width = self.name;
        format!("{:<width$}", self.theme.cut(text, width))
    }
}

/// The first cell, and whether it tells of a fault.
fn cell(row: &Row, report: Option<&Report>) -> (String, bool) {
    let name = match &row.name {
        Name::Rule(rule) => return (rule.clone(), false),
        Name::RuleOn(_, interface) => return (format!("  {interface}"), false),
        Name::Interface(name) => name,
    };
    let interfaces = report.map(|report| &report.interfaces);
    let interface = interfaces
        .into_iter()
        .flatten()
        .find(|at| at.report.name == *name);
    let Some(interface) = interface else {
        return (name.clone(), false);
    };
    let report = &interface.report;
    let way = format!("{} {}", report.engine, report.mode);
    // A foreground run may not read names, and the programs of portredir for other network
    // namespaces are none of others: an unknown program says nothing.
    let mut others = interface.hooks.iter().flat_map(|hook| &hook.others);
    match interface.state {
        None | Some(HookState::Attached | HookState::Unknown) => (format!("{name} {way}"), false),
        Some(HookState::Behind) if others.all(|other| other.name.is_none()) => {
            (format!("{name} {way}"), false)
        }
        Some(state) => (format!("{name} {state} {way}"), state.is_fault()),
    }
}
