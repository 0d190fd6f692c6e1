//! The report for the terminal.

use comfy_table::{CellAlignment, Table, TableStyle, presets};

use crate::bench::report::{Report, Row, Status, TestReport, figure, ratio};

/// The heads of the columns of a test; the first two are not figures.
pub const HEADS: [&str; 6] = [
    "variant",
    "best ns",
    "median ns",
    "to direct",
    "p10 to p90",
    "iptables to it",
];

/// Writes the whole report.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    for variant in &report.variants {
        match &variant.status {
            Status::Verified => {}
            Status::Skipped(reason) => text += &format!("skipped {}: {reason}\n", variant.name),
            Status::Failed(reason) => {
                text += &format!("FAILED  {}, not measured: {reason}\n", variant.name);
            }
        }
    }
    for test in &report.tests {
        text += &format!("\n{}, per {}\n", test.title, test.operation);
        let mut table = table(presets::NOTHING, &HEADS);
        for row in &test.rows {
            table.add_row(cells(row));
        }
        text += &trimmed(&table);
        text += &(noise(test) + "\n");
        for verdict in &test.verdicts {
            text += &format!("=> {verdict}\n");
        }
    }
    for figures in &report.tables {
        text += &format!("\n{}\n", figures.title);
        let mut heads = vec![""];
        heads.extend(&figures.columns);
        let mut table = table(presets::NOTHING, &heads);
        for line in &figures.lines {
            table.add_row(line_cells(line));
        }
        text += &trimmed(&table);
        text += &format!("{}\n", figures.note);
    }
    text + "\n" + &environment(report)
}

/// A table with figures in all columns but the first.
pub fn table(style: TableStyle, heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(style);
    table.set_header(heads.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The cells of a row, below [`HEADS`].
#[must_use]
pub fn cells(row: &Row) -> Vec<String> {
    let none = || "-".to_owned();
    let (best, median) = row.cost.map_or_else(
        || (none(), none()),
        |cost| (figure(cost.best_ns), figure(cost.median_ns)),
    );
    let (to_direct, spread) = row.to_direct.map_or_else(
        || (none(), none()),
        |of| {
            (
                ratio(of.median),
                format!("{} to {}", ratio(of.p10), ratio(of.p90)),
            )
        },
    );
    let reference = row.reference_to_this;
    let reference = reference.map_or_else(none, |of| ratio(of.median));
    let name = match &row.failure {
        Some(reason) => format!("{} (FAILED: {reason})", row.variant),
        None => row.variant.clone(),
    };
    vec![name, best, median, to_direct, spread, reference]
}

/// The cells of a line of a table without traffic.
#[must_use]
pub fn line_cells(line: &super::Line) -> Vec<String> {
    let figures = line.figures.iter();
    let figures = figures.map(|value| value.map_or_else(|| "-".to_owned(), figure));
    std::iter::once(line.name.clone()).chain(figures).collect()
}

/// A sentence on the differences of a test that mean nothing.
#[must_use]
pub fn noise(test: &TestReport) -> String {
    let how = match test.source {
        super::Source::Socket => String::new(),
        super::Source::LiveFrames => ", sent by the kernel (live frames)".to_owned(),
        super::Source::RawSocket => {
            ", sent by a raw socket: sending is most of the cost".to_owned()
        }
    };
    let turns = format!("{} turns, {} times{how}", test.cycles, test.repetitions);
    match test.noise {
        None => format!("{turns}; without a second `direct` no difference is told"),
        Some(noise) => format!(
            "{turns}; variants that are the same differ by up to {:.1} %, so less than {:.1} % is no difference",
            noise.deviation * 100.0,
            noise.floor() * 100.0
        ),
    }
}

fn trimmed(table: &Table) -> String {
    let lines = table.lines();
    lines
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

fn environment(report: &Report) -> String {
    let mut text = String::new();
    for (name, value) in report.environment.lines() {
        if !value.is_empty() {
            text += &format!("{name:<13} {value}\n");
        }
    }
    text + &format!(
        "{:<13} {}, seed {}, {:.0} s, portredir {}\n",
        "command", report.command, report.seed, report.seconds, report.version
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn text() {
        insta::assert_snapshot!(super::render(&crate::bench::report::sample::report()));
    }
}
