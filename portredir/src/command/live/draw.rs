//! The picture of the live view: a model, drawn on a screen of any size.

use jiff::Timestamp;
use ratatui_core::buffer::Buffer;
use ratatui_core::style::{Color, Style};
use ratatui_core::text::{Line, Span};

use super::model::{Model, Owner, Page};
use super::number::rate;
use super::rate::{Quantity, Row, Values};
use super::table::Form;
use super::theme::Theme;
use crate::observe::report::counted;

/// The lines that are always there: two above, and the keys.
const FIXED: usize = 3;

/// Draws the model on the whole area.
pub fn draw(model: &Model, theme: Theme, buffer: &mut Buffer) {
    let area = buffer.area;
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let size = (width, height.saturating_sub(FIXED));
    let mut lines = vec![title(model, theme, width), totals(model)];
    lines.extend(match model.page {
        Page::Tables => tables(model, theme, size),
        Page::Lines => said(model, theme, size),
    });
    lines.resize(height.saturating_sub(1).max(1), Line::default());
    lines.push(keys(model, theme));
    lines.truncate(height);
    for (y, line) in (area.y..).zip(&lines) {
        buffer.set_line(area.x, y, line, area.width);
    }
}

/// The redirect, or why there is none, and the time.
fn title(model: &Model, theme: Theme, width: usize) -> Line<'static> {
    let time = model.time.map(clock).unwrap_or_default();
    let time_style = if model.is_paused {
        Style::new().reversed()
    } else {
        Style::new()
    };
    let time = if model.is_paused {
        format!("PAUSED {time}")
    } else {
        time
    };
    let (text, style) = match (&model.work, &model.trouble) {
        (Some(work), _) => (work, theme.bold(Color::Yellow)),
        (None, Some(trouble)) => (trouble, theme.bold(Color::Red)),
        (None, None) => (&model.title, theme.bold(Color::Reset)),
    };
    let rest = width.saturating_sub(time.len() + 1);
    let text = theme.cut(text, rest);
    Line::from(vec![
        Span::styled(format!("{text:<rest$} "), style),
        Span::styled(time, time_style),
    ])
}

/// The rates of all rules.
fn totals(model: &Model) -> Line<'static> {
    let Some(report) = &model.report else {
        return Line::raw("no counters yet");
    };
    let mut sum = Values::default();
    for row in model.rows.iter().filter(|row| row.is_total()) {
        sum.add(&row.rates);
    }
    let value = |quantity| sum.get(quantity).map_or_else(|| "-".to_owned(), rate);
    let direction = |name, [packets, bytes]: [Quantity; 2]| {
        let (packets, bytes) = (value(packets), value(bytes));
        format!("{name} {packets} packets/s, {bytes} B/s")
    };
    let requests = direction("in", [Quantity::PacketsIn, Quantity::BytesIn]);
    let replies = direction("out", [Quantity::PacketsOut, Quantity::BytesOut]);
    let flows = value(Quantity::Flows);
    let rules = u64::try_from(report.rules.len()).unwrap_or(u64::MAX);
    let rules = counted(rules, "rule");
    Line::raw(format!("{requests}; {replies}; {flows} flows/s; {rules}"))
}

/// The page of numbers. The lines that rules leave free go to what was said.
fn tables(model: &Model, theme: Theme, (width, height): (usize, usize)) -> Vec<Line<'static>> {
    const SMALL: usize = 10;
    let form = Form::new(model, width, theme);
    let (rules, interfaces) = (model.rules(), model.interfaces());
    let mut drops = drops(model, theme, width);
    drops.extend(refusals(model, theme, width));
    let rest = height.saturating_sub(1 + drops.len());
    let quarter = if height < SMALL { 0 } else { rest / 4 };
    let for_interfaces = interfaces.len().min(quarter);
    let for_lines = model.lines.len().min(quarter);
    let heads = usize::from(for_interfaces > 0) + usize::from(for_lines > 0);
    let for_rules = rest.saturating_sub(for_interfaces + for_lines + heads);

    let mut lines = vec![form.head(model, "RULE")];
    lines.extend(rows(model, &rules, (for_rules, model.scroll), &form));
    if for_interfaces > 0 {
        lines.push(form.head(model, "INTERFACE"));
        lines.extend(rows(model, &interfaces, (for_interfaces, 0), &form));
    }
    lines.extend(drops);
    if for_lines > 0 {
        lines.extend(said(
            model,
            theme,
            (width, height.saturating_sub(lines.len())),
        ));
    }
    lines
}

/// The rows that fit, and the number of those that do not.
fn rows(
    model: &Model,
    rows: &[&Row],
    (height, scroll): (usize, usize),
    form: &Form,
) -> Vec<Line<'static>> {
    let hidden = rows.len() > height;
    let most = height.saturating_sub(usize::from(hidden));
    let first = scroll.min(rows.len().saturating_sub(most));
    let shown = most.min(rows.len() - first);
    let shown_rows = rows.iter().skip(first).take(shown);
    let mut lines: Vec<_> = shown_rows.map(|row| form.line(model, row)).collect();
    if hidden && height > 0 {
        let (last, all) = (first + shown, rows.len());
        let from = first + 1;
        lines.push(Line::raw(format!("rows {from} to {last} of {all}")));
    }
    lines
}

/// The dropped packets, by reason.
fn drops(model: &Model, theme: Theme, width: usize) -> Vec<Line<'static>> {
    let Some(report) = &model.report else {
        return Vec::new();
    };
    let drops: Vec<_> = report
        .drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| match model.meter.drop_rate(reason) {
            Some(rate) if rate > 0.0 => {
                format!("{reason} {count} (+{}/s)", self::rate(rate))
            }
            _ => format!("{reason} {count}"),
        })
        .collect();
    if drops.is_empty() {
        return vec![Line::raw("dropped: 0")];
    }
    let text = format!("dropped: {}", drops.join(", "));
    let lines = wrap(&text, width);
    let style = theme.color(Color::Red);
    lines
        .into_iter()
        .take(3)
        .map(|line| Line::styled(line, style))
        .collect()
}

/// The refused connections and datagrams, by rule: a rule whose server does not listen has
/// flows and no service.
fn refusals(model: &Model, theme: Theme, width: usize) -> Option<Line<'static>> {
    let refused = |row: &&Row| row.counts.get(Quantity::Refused).filter(|count| *count > 0);
    let mut rows: Vec<_> = model.rules();
    rows.retain(|row| refused(row).is_some());
    rows.sort_by_key(|row| std::cmp::Reverse(refused(row)));
    let texts = rows.iter().map(|row| {
        let count = refused(row).unwrap_or_default();
        match row.rates.get(Quantity::Refused) {
            Some(more) if more > 0.0 => format!("{} {count} (+{}/s)", row.text(), rate(more)),
            _ => format!("{} {count}", row.text()),
        }
    });
    let texts: Vec<_> = texts.collect();
    let text = theme.cut(&format!("refused: {}", texts.join(", ")), width);
    (!texts.is_empty()).then(|| Line::styled(text, theme.color(Color::Red)))
}

/// The newest lines that were said.
fn said(model: &Model, theme: Theme, (width, height): (usize, usize)) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for line in &model.lines {
        let text = format!("{} {}", clock(line.time), line.text);
        lines.extend(wrap(&text, width));
    }
    let skipped = lines.len().saturating_sub(height.saturating_sub(1));
    let head = Line::styled("LOG", theme.bold(Color::Cyan));
    let lines = lines.into_iter().skip(skipped).map(Line::raw);
    std::iter::once(head).chain(lines).collect()
}

/// The keys, or the filter that is being typed.
fn keys(model: &Model, theme: Theme) -> Line<'static> {
    if model.is_typing {
        return Line::from(vec![
            Span::styled(
                format!("filter: {}_", model.filter),
                theme.bold(Color::Yellow),
            ),
            Span::raw("  Enter keeps it, Esc clears it"),
        ]);
    }
    let quit = match model.owner {
        Owner::Top => "q quit",
        Owner::Run => "^C stop  q lines",
    };
    let pause = if model.is_paused {
        "p go on"
    } else {
        "p pause"
    };
    let filter = match model.filter.as_str() {
        "" => "/ filter".to_owned(),
        filter => format!("/ {filter}"),
    };
    Line::raw(format!(
        "{quit}  s sort  r reverse  {filter}  {pause}  i interfaces  e log"
    ))
}

/// The time of a day, in UTC.
fn clock(time: Timestamp) -> String {
    time.strftime("%H:%M:%SZ").to_string()
}

/// Breaks a text into lines of this width, between words where that is possible; further
/// lines are indented.
fn wrap(text: &str, width: usize) -> Vec<String> {
    const INDENT: &str = "  ";
    let mut lines = Vec::new();
    let mut words = text.split(' ');
    let mut line = words.next().unwrap_or_default().to_owned();
    for word in words {
        if line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, format!("{INDENT}{word}")));
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.push(line);
    lines
}
