//! The report as Markdown, for documents and issues.

use comfy_table::presets;

use crate::bench::report::text::{HEADS, cells, line_cells, noise, table};
use crate::bench::report::{Report, Status, VariantReport};

/// Writes the whole report, from headings of the third level on.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut text = format!(
        "`{}`, seed {}, portredir {}, {}, {:.0} s\n",
        report.command, report.seed, report.version, report.began, report.seconds
    );
    for test in &report.tests {
        text += &format!("\n### {}\n\n", test.title);
        text += &format!("Nanoseconds per {}; {}.\n\n", test.operation, noise(test));
        let mut table = table(presets::ASCII_MARKDOWN, &HEADS);
        for row in &test.rows {
            let mut cells = cells(row);
            if row.is_ours {
                cells[0] = format!("**{}**", cells[0]);
            }
            table.add_row(cells);
        }
        text += &format!("{table}\n");
        for verdict in &test.verdicts {
            text += &format!("\n* {verdict}");
        }
        text += "\n";
    }
    for figures in &report.tables {
        text += &format!("\n### {}\n\n{}\n\n", figures.title, figures.note);
        let mut heads = vec![""];
        heads.extend(&figures.columns);
        let mut table = table(presets::ASCII_MARKDOWN, &heads);
        for line in &figures.lines {
            table.add_row(line_cells(line));
        }
        text += &format!("{table}\n");
    }
    text += "\n### Machine\n\n";
    for (name, value) in report.environment.lines() {
        if !value.is_empty() {
            text += &format!("* {name}: {value}\n");
        }
    }
    text += "\n### Variants\n";
    for reported in &report.variants {
        text += &variant(reported);
    }
    text
}

/// A variant with the state and the rules.
fn variant(variant: &VariantReport) -> String {
    let version = variant.version.clone().unwrap_or_default();
    let status = match &variant.status {
        Status::Verified => version,
        Status::Skipped(reason) => format!("skipped: {reason}"),
        Status::Failed(reason) => format!("**failed**, not measured: {reason}"),
    };
    let status = if status.is_empty() {
        status
    } else {
        format!(": {status}")
    };
    let mut text = format!("\n* {}{status}\n", variant.name);
    if !variant.rules.is_empty() {
        text += "\n  ```\n";
        for line in variant.rules.lines() {
            text += &format!("  {line}\n");
        }
        text += "  ```\n";
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn markdown() {
        insta::assert_snapshot!(super::render(&crate::bench::report::sample::report()));
    }
}
