//! The report as one page that needs no other file, with a plot for each test.
//!
//! The plots are SVG with colours that stand for roles; the page's style sheet puts the
//! real ones in their place, for the light and the dark scheme.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::bench::report::text::{HEADS, cells, line_cells, noise};
use crate::bench::report::{Report, Row, Status, Table, TestReport, ratio};
use crate::bench::statistics::{Noise, Ratio};

// The colours stand for roles.
const INK: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(2, 2, 2);
const OURS: RGBColor = RGBColor(3, 3, 3);
const OTHERS: RGBColor = RGBColor(4, 4, 4);
const BAND: RGBColor = RGBColor(5, 5, 5);

const STYLE: &str = "\
:root { --page: #fcfcfb; --ink: #1a1a19; --dim: #63625e; --grid: #e2e1dc; --ours: #1d6fd1;
  --others: #8a8880; --band: #d9d7cf; --good: #1d6fd1; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --page: #191918; --ink: #ecebe6; --dim: #a3a29b; --grid: #33332f; --ours: #6aaef5;
    --others: #93918a; --band: #3d3c37; }
}
body { background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  margin: 0 auto; max-width: 62rem; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem; }
p { margin: .3rem 0; } .dim, figcaption { color: var(--dim); font-size: .9rem; }
ul { padding-left: 1.2rem; } figure { margin: .5rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--grid); padding: .2rem .7rem .2rem 0; text-align: right;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; } th { color: var(--dim); font-weight: 500; }
tr.ours td { color: var(--ours); } .bad { font-weight: 600; }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--dim); }
div.wide { overflow-x: auto; } pre { font-size: .8rem; margin: .3rem 0; overflow-x: auto; }
svg { display: block; height: auto; max-width: 100%; min-width: 40rem; }
svg text { font-family: system-ui, sans-serif; }
svg [fill=\"#010101\"] { fill: var(--ink); } svg [stroke=\"#010101\"] { stroke: var(--ink); }
svg [fill=\"#020202\"] { fill: var(--grid); } svg [stroke=\"#020202\"] { stroke: var(--grid); }
svg [fill=\"#030303\"] { fill: var(--ours); } svg [stroke=\"#030303\"] { stroke: var(--ours); }
svg [fill=\"#040404\"] { fill: var(--others); } svg [stroke=\"#040404\"] { stroke: var(--others); }
svg [fill=\"#050505\"] { fill: var(--band); } svg [stroke=\"#050505\"] { stroke: var(--band); }
";

/// Writes the whole report.
///
/// # Errors
///
/// When a plot cannot be drawn.
pub fn render(report: &Report) -> anyhow::Result<String> {
    let mut body = format!(
        "<h1>Redirecting ports: what it costs</h1>\n<p class=\"dim\"><code>{}</code>, seed {}, \
         portredir {}, {}, {:.0} s</p>\n",
        escape(&report.command),
        report.seed,
        escape(&report.version),
        escape(&report.began),
        report.seconds
    );
    body += &failures(report);
    if !report.tests.is_empty() {
        body += HOW_TO_READ;
    }
    for test in &report.tests {
        body += &section(test)?;
    }
    for table in &report.tables {
        body += &figures(table);
    }
    body += &about(report);
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>portredir bench</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n\
         </html>\n"
    ))
}

/// A test with the plot, the verdicts and the figures.
fn section(test: &TestReport) -> anyhow::Result<String> {
    let mut body = format!("<h2>{}</h2>\n", escape(test.title));
    // The page shows verdicts in the plain setting; the others can be unfolded.
    let is_plain = |verdict: &&String| {
        let name = verdict.split(": ").next();
        name.is_some_and(|name| !name.contains(','))
    };
    let (plain, others): (Vec<_>, Vec<_>) = test.verdicts.iter().partition(is_plain);
    body += &verdicts(&plain);
    body += &format!(
        "<figure>\n{}<figcaption>Cost of a {} by that of no redirect, of the same turn. {}.\
         </figcaption>\n</figure>\n",
        plot(test)?,
        test.operation,
        escape(&noise(test))
    );
    if !others.is_empty() {
        body += &format!(
            "<details><summary>With more rules, and with connection tracking</summary>\n{}\
             </details>\n",
            verdicts(&others)
        );
    }
    body += &details(test);
    Ok(body)
}

const HOW_TO_READ: &str = "\
<p class=\"dim\">A dot is the median, the thin line goes from the tenth to the ninetieth percentile of
all turns, the thick one over the medians of the repetitions. 1 is no redirect; to the right is dearer.
In the shaded band there is no difference: variants that are the same differ by up to half of it.</p>
";

/// The variants that were not measured; they come first.
fn failures(report: &Report) -> String {
    let mut items = String::new();
    for variant in &report.variants {
        let (class, what, reason) = match &variant.status {
            Status::Verified => continue,
            Status::Skipped(reason) => ("", "not tried", reason),
            Status::Failed(reason) => ("bad", "failed, not measured", reason),
        };
        items += &format!(
            "<li class=\"{class}\">{}: {what}: {}</li>\n",
            escape(&variant.name),
            escape(reason)
        );
    }
    if items.is_empty() {
        return items;
    }
    format!("<ul>\n{items}</ul>\n")
}

/// The left and the right end of the axis: a little more than the data needs.
fn range(test: &TestReport) -> (f64, f64) {
    let ratios = test.rows.iter().filter_map(|row| row.to_direct);
    let (mut low, mut high) = (0.9, 1.25);
    for of in ratios {
        low = f64::min(low, of.p10);
        high = f64::max(high, of.p90);
    }
    // The numbers need room.
    (low / 1.03, high * f64::powf(high / low, 0.12))
}

/// The marks of the axis: as many as have room for their numbers.
fn marks(low: f64, high: f64) -> Vec<f64> {
    const COARSE: [f64; 14] = [
        0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0,
    ];
    const FINE: [f64; 14] = [
        0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0,
    ];
    let all: &[f64] = if high / low < 4.0 { &FINE } else { &COARSE };
    let is_inside = |mark: &f64| (low..high).contains(mark);
    all.iter().copied().filter(is_inside).collect()
}

/// The width of the longest label.
fn labels_width(rows: &[&Row]) -> anyhow::Result<u32> {
    // The approximate width of a letter at this size.
    const LETTER: usize = 8;
    let letters = rows.iter().map(|row| row.variant.chars().count()).max();
    Ok(u32::try_from(letters.unwrap_or_default() * LETTER)? + 20)
}

/// The band of differences that mean nothing, between the ends of the axis.
fn band(noise: Noise, (low, high): (f64, f64), bottom: f64) -> Rectangle<(f64, f64)> {
    // A ratio and its inverse are the same difference.
    let edge = 1.0 + noise.floor();
    let (left, right) = ((1.0 / edge).max(low), edge.min(high));
    Rectangle::new([(left, bottom), (right, 0.0)], BAND.filled())
}

/// The thin and the thick line of a row.
fn lines(of: Ratio, y: f64, colour: RGBColor) -> [PathElement<(f64, f64)>; 2] {
    let line = |from, to, width| PathElement::new([(from, y), (to, y)], colour.stroke_width(width));
    [line(of.p10, of.p90, 1), line(of.min, of.max, 5)]
}

/// The plot of a test, as SVG.
fn plot(test: &TestReport) -> anyhow::Result<String> {
    const ROW: u32 = 26;
    const WIDTH: u32 = 940;
    let has_ratio = |row: &&Row| row.to_direct.is_some();
    let rows: Vec<&Row> = test.rows.iter().filter(has_ratio).collect();
    if rows.is_empty() {
        return Ok("<p>Nothing was measured.</p>\n".to_owned());
    }
    let count = u32::try_from(rows.len())?;
    let labels = labels_width(&rows)?;
    let height = count * ROW + 46;
    let text = |size: u32, colour: &RGBColor| ("sans-serif", size).into_font().color(colour);
    let (low, high) = range(test);
    let middles: Vec<f64> = (0..count).map(|row| f64::from(row) + 0.5).collect();
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(8)
        .margin_right(24)
        .set_label_area_size(LabelAreaPosition::Left, labels)
        .set_label_area_size(LabelAreaPosition::Bottom, 30)
        // The first row is on top.
        .build_cartesian_2d(
            (low..high).log_scale().with_key_points(marks(low, high)),
            f64::from(count)..0.0,
        )?;
    if let Some(noise) = test.noise {
        chart.draw_series([band(noise, (low, high), count.into())])?;
    }
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .axis_style(GRID)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .label_style(text(14, &INK))
        .x_label_formatter(&|x| format!("{x}"))
        .draw()?;
    let one = PathElement::new([(1.0, f64::from(count)), (1.0, 0.0)], INK.stroke_width(1));
    chart.draw_series([one])?;
    for (row, y) in rows.iter().zip(&middles) {
        let Some(of) = row.to_direct else { continue };
        let colour = if row.is_ours { OURS } else { OTHERS };
        let (left, middle) = chart.backend_coord(&(low, *y));
        let name = text(14, if row.is_ours { &OURS } else { &INK });
        let name = name.pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(row.variant.as_str(), (left - 12, middle), name))?;
        chart.draw_series(lines(of, *y, colour))?;
        chart.draw_series([Circle::new((of.median, *y), 5, colour.filled())])?;
        let end = of.p90.max(of.max).max(of.median);
        let number =
            EmptyElement::at((end, *y)) + Text::new(ratio(of.median), (10, -6), text(13, &INK));
        chart.draw_series([number])?;
    }
    root.present()?;
    drop(chart);
    drop(root);
    Ok(svg)
}

fn verdicts(verdicts: &[&String]) -> String {
    let line = |verdict: &&String| {
        let (name, rest) = verdict.split_once(": ").unwrap_or(("", verdict));
        format!("<p><b>{}</b>: {}</p>\n", escape(name), escape(rest))
    };
    verdicts.iter().map(line).collect()
}

fn details(test: &TestReport) -> String {
    let mut table = head(&HEADS);
    for row in &test.rows {
        table += &line(row.is_ours, cells(row));
    }
    format!(
        "<details><summary>All figures, ns per {}</summary>\n<div class=\"wide\"><table>\n{table}\
         </table></div>\n</details>\n",
        test.operation
    )
}

fn figures(table: &Table) -> String {
    let mut heads = vec![""];
    heads.extend(&table.columns);
    let mut rows = head(&heads);
    for of in &table.lines {
        rows += &line(of.name.starts_with("portredir"), line_cells(of));
    }
    format!(
        "<h2>{}</h2>\n<p class=\"dim\">{}</p>\n<div class=\"wide\"><table>\n{rows}</table></div>\n",
        escape(table.title),
        escape(&table.note)
    )
}

fn head(heads: &[&str]) -> String {
    let cells: String = heads
        .iter()
        .map(|head| format!("<th>{}</th>", escape(head)))
        .collect();
    format!("<tr>{cells}</tr>\n")
}

fn line(is_ours: bool, cells: Vec<String>) -> String {
    let cells: String = cells
        .iter()
        .map(|cell| format!("<td>{}</td>", escape(cell)))
        .collect();
    let class = if is_ours { " class=\"ours\"" } else { "" };
    format!("<tr{class}>{cells}</tr>\n")
}

fn about(report: &Report) -> String {
    let mut text = "<h2>Machine</h2>\n<div class=\"wide\"><table>\n".to_owned();
    for (name, value) in report.environment.lines() {
        if !value.is_empty() {
            text += &format!(
                "<tr><td>{}</td><td style=\"text-align:left\">{}</td></tr>\n",
                escape(name),
                escape(&value)
            );
        }
    }
    text += "</table></div>\n";
    if !report.variants.is_empty() {
        text += "<h2>Variants</h2>\n";
    }
    for variant in &report.variants {
        let version = variant.version.clone().unwrap_or_default();
        let title = format!(
            "{} <span class=\"dim\">{}</span>",
            escape(&variant.name),
            escape(&version)
        );
        if variant.rules.is_empty() {
            text += &format!("<p>{title}</p>\n");
        } else {
            text += &format!(
                "<details><summary>{title}</summary>\n<pre>{}</pre>\n</details>\n",
                escape(&variant.rules)
            );
        }
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::sample;

    #[test]
    fn html() {
        insta::assert_snapshot!(render(&sample::report()).expect("a page"));
    }

    #[test]
    fn what_others_say_is_no_markup() {
        let page = render(&sample::report()).expect("a page");
        assert!(page.contains("socat &lt;a&gt; &amp; &lt;b&gt;"), "{page}");
        assert!(!page.contains("<a>"), "{page}");
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let page = render(&sample::report()).expect("a page");
        for word in ["src=", "href=", "@import", "url(", "<script"] {
            assert!(!page.contains(word), "{word}");
        }
    }

    #[test]
    fn marks_are_inside_and_have_room() {
        for (low, high) in [(0.9, 1.3), (0.9, 3.9), (0.9, 20.0), (0.5, 450.0)] {
            let marks = marks(low, high);
            assert!((3..=12).contains(&marks.len()), "{low} {high}: {marks:?}");
            assert!(marks.contains(&1.0));
        }
    }
}
