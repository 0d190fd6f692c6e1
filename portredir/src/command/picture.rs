//! Pictures for the documents: the screen of a terminal of tmux as SVG.

use std::fmt::Write as _;
use std::fs;

use ratatui_core::buffer::{Buffer, Cell};
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};

use super::stage::{self, Stage};

/// The size of the terminal.
const SIZE: (u16, u16) = (80, 24);

/// The size of a cell, in pixels.
const CELL: (u16, u16) = (8, 17);

/// The space around the grid, in pixels.
const MARGIN: u16 = 12;

const BACKGROUND: &str = "#1c2128";
const FOREGROUND: &str = "#d0d7de";

/// One of the pictures.
pub struct Picture<'a> {
    /// The name of the file.
    pub name: &'a str,
    /// The path of the test that draws.
    pub test: &'a str,
    /// The words that are drawn last.
    pub last: &'a str,
}

impl Picture<'_> {
    /// Draws in a terminal, and compares the committed picture with what is on the screen, or
    /// writes it where `PORTREDIR_BLESS=1` is set.
    pub fn check(&self, draw: impl FnOnce()) {
        stage::play(self.test, draw);
        let Some(stage) = Stage::open(SIZE, &stage::again(self.test)) else {
            return;
        };
        let screen = stage.wait_for_words(self.last);
        check(self.name, &grid(&screen));
    }
}

/// The cells of a screen, from lines with sequences that select a colour (ECMA-48, 8.3.117).
/// Rows below the last one that is not empty are left out.
fn grid(screen: &str) -> Buffer {
    let height = screen.trim_end().lines().count();
    let height = height.try_into().expect("few rows");
    let mut buffer = Buffer::empty(Rect::new(0, 0, SIZE.0, height));
    let mut style = Style::reset();
    for (y, line) in (0..).zip(screen.trim_end().lines()) {
        let mut x = 0;
        let mut rest = line;
        while let Some(char) = rest.chars().next() {
            if let Some((codes, after)) = rest
                .strip_prefix("\x1b[")
                .and_then(|rest| rest.split_once('m'))
            {
                style = select(style, codes);
                rest = after;
                continue;
            }
            buffer[(x, y)].set_char(char).set_style(style);
            x += 1;
            rest = &rest[char.len_utf8()..];
        }
    }
    buffer
}

/// The style after the codes of one sequence.
fn select(style: Style, codes: &str) -> Style {
    let color = |code: &str| match code {
        "1" => Color::Red,
        "2" => Color::Green,
        "3" => Color::Yellow,
        "6" => Color::Cyan,
        "9" => Color::Reset,
        other => panic!("the live view uses colour {other}, and the picture has no such colour"),
    };
    let mut style = style;
    let mut codes = codes.split(';');
    while let Some(code) = codes.next() {
        style = match code {
            "" | "0" => Style::reset(),
            "1" => style.add_modifier(Modifier::BOLD),
            "7" => style.add_modifier(Modifier::REVERSED),
            // A colour of 256: `38;5;6`.
            "38" => style.fg(color(codes.nth(1).unwrap_or_default())),
            // No background has a colour.
            "49" => style,
            _ => match code.strip_prefix('3') {
                Some(code) => style.fg(color(code)),
                None => panic!("unknown code {code} of a screen"),
            },
        };
    }
    style
}

fn check(name: &str, buffer: &Buffer) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/images");
    let path = format!("{root}/{name}.svg");
    let now = svg(buffer);
    if std::env::var_os("PORTREDIR_BLESS").is_some_and(|value| value == "1") {
        fs::create_dir_all(root).expect("the directory");
        fs::write(&path, &now).expect("write the picture");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == now,
        "docs/images/{name}.svg shows another layout; renew it: PORTREDIR_BLESS=1 cargo test -p \
         portredir --lib picture"
    );
}

fn svg(buffer: &Buffer) -> String {
    let area = buffer.area;
    let (width, height) = (
        area.width * CELL.0 + 2 * MARGIN,
        area.height * CELL.1 + 2 * MARGIN,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n"
    );
    for y in 0..area.height {
        let row: Vec<_> = (0..area.width).map(|x| &buffer[(x, y)]).collect();
        let mut x = 0;
        for run in row.chunk_by(|a, b| is_alike(a, b)) {
            let length = u16::try_from(run.len()).expect("a row");
            draw(&mut svg, run, (x, y));
            x += length;
        }
    }
    svg + "</svg>\n"
}

/// Whether two cells can be drawn at once.
fn is_alike(a: &Cell, b: &Cell) -> bool {
    let style = |cell: &Cell| (cell.fg, cell.modifier, eighths(cell).is_some());
    style(a) == style(b)
}

/// The height of a block character.
fn eighths(cell: &Cell) -> Option<u16> {
    let char = u32::from(cell.symbol().chars().next()?);
    let height = char.checked_sub(u32::from('▁'))? + 1;
    u16::try_from(height).ok().filter(|height| *height <= 8)
}

/// Draws cells of one style, from a place of the grid.
fn draw(svg: &mut String, run: &[&Cell], (x, y): (u16, u16)) {
    let (left, top) = (MARGIN + x * CELL.0, MARGIN + y * CELL.1);
    let first = run[0];
    let color = color(first.fg);
    if eighths(first).is_some() {
        for (x, height) in (0..).zip(run.iter().filter_map(|cell| eighths(cell))) {
            let (x, height) = (left + x * CELL.0, height * (CELL.1 - 3) / 8);
            let y = top + CELL.1 - height;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"7\" height=\"{height}\" fill=\"{color}\"/>"
            );
        }
        return;
    }
    let text: String = run.iter().map(|cell| cell.symbol()).collect();
    let width = u16::try_from(run.len()).expect("a row") * CELL.0;
    let is_reversed = first.modifier.contains(Modifier::REVERSED);
    if is_reversed {
        let height = CELL.1;
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"{color}\"/>"
        );
    }
    if text.trim().is_empty() {
        return;
    }
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let fill = if is_reversed { BACKGROUND } else { color };
    let is_bold = first.modifier.contains(Modifier::BOLD);
    let weight = if is_bold { " font-weight=\"bold\"" } else { "" };
    let baseline = top + 13;
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"{baseline}\" fill=\"{fill}\"{weight} textLength=\"{width}\" \
         lengthAdjust=\"spacingAndGlyphs\" xml:space=\"preserve\">{text}</text>"
    );
}

fn color(color: Color) -> &'static str {
    match color {
        Color::Red => "#ff7b72",
        Color::Green => "#56d364",
        Color::Yellow => "#e3b341",
        Color::Cyan => "#76e3ea",
        Color::Reset => FOREGROUND,
        other => panic!("the live view uses {other}, and the picture has no such colour"),
    }
}
