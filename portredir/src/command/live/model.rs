//! The state of the live view: what it shows, and what keys do to it. It knows no terminal.

use std::cmp::Ordering;

use jiff::Timestamp;

use super::key::Key;
use super::rate::{Identity, Meter, Name, Quantity, Row};
use crate::command::lines::Line;
use crate::observe::report::Report;

/// A report, and the redirect that it is about.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The redirect.
    pub identity: Identity,
    /// The first line: the version, and the process that answers.
    pub title: String,
    /// The counters.
    pub report: Report,
}

/// The command that the view belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// `portredir top`, which only reads.
    Top,
    /// The foreground run, which ends the redirect when it ends.
    Run,
}

/// The order of rules and of interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// The order of the configuration.
    Given,
    /// The largest increase in a second first.
    Rate(Quantity),
    /// The largest count first.
    Count(Quantity),
}

impl Sort {
    /// All orders, in the order of the key `s`.
    const ALL: [Self; 7] = [
        Self::Given,
        Self::Rate(Quantity::PacketsIn),
        Self::Rate(Quantity::BytesIn),
        Self::Rate(Quantity::PacketsOut),
        Self::Rate(Quantity::BytesOut),
        Self::Rate(Quantity::Flows),
        Self::Count(Quantity::Flows),
    ];

    /// The quantity that decides.
    #[must_use]
    pub const fn quantity(self) -> Option<Quantity> {
        match self {
            Self::Given => None,
            Self::Rate(quantity) | Self::Count(quantity) => Some(quantity),
        }
    }

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self);
        at.map_or(self, |at| Self::ALL[(at + 1) % Self::ALL.len()])
    }

    /// The smaller row comes first; rows without a value come last.
    fn compare(self, a: &Row, b: &Row) -> Ordering {
        match self {
            Self::Given => Ordering::Equal,
            Self::Count(quantity) => b.counts.get(quantity).cmp(&a.counts.get(quantity)),
            Self::Rate(quantity) => {
                let rate = |row: &Row| row.rates.get(quantity).unwrap_or(-1.0);
                rate(b).total_cmp(&rate(a))
            }
        }
    }
}

/// The body of the screen: all but the two first lines and the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// The tables, and the newest lines.
    Tables,
    /// The lines alone.
    Lines,
}

/// The request of a key to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing, or something that the view does by itself.
    None,
    /// The whole screen anew.
    Redraw,
    /// The end of the view.
    Quit,
}

/// All that the view shows.
#[derive(Debug)]
pub struct Model {
    /// The command that the view belongs to.
    pub owner: Owner,
    /// The first line of the newest sample.
    pub title: String,
    /// The time of the newest sample.
    pub time: Option<Timestamp>,
    /// The reason why no samples come, in place of the title.
    pub trouble: Option<String>,
    /// The work that goes on.
    pub work: Option<String>,
    /// The lines for people, the newest last.
    pub lines: Vec<Line>,
    /// The counters, and those before.
    pub meter: Meter,
    /// The numbers, as they were when the view was paused.
    pub rows: Vec<Row>,
    /// The report that they belong to.
    pub report: Option<Report>,
    /// The order.
    pub sort: Sort,
    /// Whether the order is the other way round.
    pub is_reversed: bool,
    /// Only rules and interfaces with this text in their names are shown.
    pub filter: String,
    /// Whether keys go to the filter.
    pub is_typing: bool,
    /// Whether the numbers stand still.
    pub is_paused: bool,
    /// Whether each rule has a row for each interface.
    pub has_interfaces: bool,
    /// The content of the screen.
    pub page: Page,
    /// The number of rows above the screen.
    pub scroll: usize,
}

impl Model {
    /// A view without a sample.
    #[must_use]
    pub fn new(owner: Owner) -> Self {
        Self {
            owner,
            title: format!("portredir {}", env!("CARGO_PKG_VERSION")),
            time: None,
            trouble: None,
            work: None,
            lines: Vec::new(),
            meter: Meter::default(),
            rows: Vec::new(),
            report: None,
            sort: Sort::Given,
            is_reversed: false,
            filter: String::new(),
            is_typing: false,
            is_paused: false,
            has_interfaces: true,
            page: Page::Tables,
            scroll: 0,
        }
    }

    /// Takes a sample. A paused view goes on measuring, for its rates afterwards.
    pub fn take(&mut self, sample: Sample) {
        let Sample {
            identity,
            title,
            report,
        } = sample;
        let time = report.time;
        let rows = self.meter.take(identity, report);
        self.title = title;
        self.trouble = None;
        if !self.is_paused {
            self.time = Some(time);
            self.rows = rows;
            self.report = self.meter.report().cloned();
        }
    }

    /// Notes that no sample came.
    pub fn lose(&mut self, trouble: String) {
        self.trouble = Some(trouble);
    }

    /// Does what a key asks for.
    pub fn press(&mut self, key: Key) -> Wish {
        if self.is_typing {
            self.type_filter(key);
            return Wish::None;
        }
        match key {
            Key::Char('q') => return Wish::Quit,
            Key::Redraw => return Wish::Redraw,
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Char('r') => self.is_reversed ^= true,
            Key::Char('p' | ' ') => self.is_paused ^= true,
            Key::Char('i') => self.has_interfaces ^= true,
            Key::Char('e') => {
                self.page = match self.page {
                    Page::Tables => Page::Lines,
                    Page::Lines => Page::Tables,
                };
            }
            Key::Char('/') => self.is_typing = true,
            Key::Escape => self.filter.clear(),
            Key::Down | Key::Char('j') => self.scroll = self.scroll.saturating_add(1),
            Key::Up | Key::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            Key::PageDown => self.scroll = self.scroll.saturating_add(10),
            Key::PageUp => self.scroll = self.scroll.saturating_sub(10),
            Key::Home => self.scroll = 0,
            _ => {}
        }
        Wish::None
    }

    fn type_filter(&mut self, key: Key) {
        const LONGEST: usize = 40;
        match key {
            Key::Enter => self.is_typing = false,
            Key::Escape => {
                self.is_typing = false;
                self.filter.clear();
            }
            Key::Backspace => drop(self.filter.pop()),
            Key::Char(char) if self.filter.len() < LONGEST => self.filter.push(char),
            _ => {}
        }
        self.scroll = 0;
    }

    /// The rows of rules in the order of the screen.
    #[must_use]
    pub fn rules(&self) -> Vec<&Row> {
        let mut groups: Vec<Vec<&Row>> = Vec::new();
        for row in &self.rows {
            match &row.name {
                Name::Rule(_) => groups.push(vec![row]),
                Name::RuleOn(..) => {
                    if let Some(group) = groups.last_mut() {
                        group.push(row);
                    }
                }
                Name::Interface(_) => {}
            }
        }
        groups.retain(|group| group.iter().any(|row| self.is_meant(&row.name)));
        groups.sort_by(|a, b| self.sort.compare(a[0], b[0]));
        if self.is_reversed {
            groups.reverse();
        }
        let most = if self.has_interfaces { usize::MAX } else { 1 };
        let rows = groups
            .into_iter()
            .flat_map(|group| group.into_iter().take(most));
        rows.collect()
    }

    /// The rows of interfaces in the order of the screen.
    #[must_use]
    pub fn interfaces(&self) -> Vec<&Row> {
        let is_interface = |row: &&Row| matches!(row.name, Name::Interface(_));
        let mut rows: Vec<_> = self.rows.iter().filter(is_interface).collect();
        rows.sort_by(|a, b| self.sort.compare(a, b));
        if self.is_reversed {
            rows.reverse();
        }
        rows
    }

    fn is_meant(&self, name: &Name) -> bool {
        match name {
            Name::Rule(name) | Name::Interface(name) => name.contains(&self.filter),
            Name::RuleOn(rule, interface) => {
                rule.contains(&self.filter) || interface.contains(&self.filter)
            }
        }
    }
}
