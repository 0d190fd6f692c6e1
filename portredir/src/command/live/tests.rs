//! The view as a grid of characters, and what keys do to it.

use ratatui_core::backend::TestBackend;
use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::Color;
use ratatui_core::terminal::Terminal;

use super::draw::draw;
use super::key::Key;
use super::model::{Model, Owner, Page, Sort, Wish};
use super::rate::Quantity;
use super::sample::{sample, start};
use super::screen::Screen;
use super::theme::Theme;
use crate::command::lines::Line;
use crate::command::picture::Picture;
use crate::command::stage::{self, Stage};

const THEME: Theme = Theme {
    has_color: true,
    has_blocks: true,
};

const PLAIN: Theme = Theme {
    has_color: false,
    has_blocks: false,
};

fn model(owner: Owner) -> Model {
    let mut model = Model::new(owner);
    for second in 0..=60 {
        model.take(sample(second));
    }
    model.lines = vec![
        line("eth1: detached"),
        line(
            "wg0: another program keeps detaching portredir; the next repair is in 8 s at the \
             earliest; find that program and stop it",
        ),
    ];
    model
}

fn line(text: &str) -> Line {
    Line {
        time: start(),
        text: text.to_owned(),
    }
}

fn grid(model: &Model, theme: Theme, (width, height): (u16, u16)) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    draw(model, theme, &mut buffer);
    buffer
}

fn text(model: &Model, theme: Theme, size: (u16, u16)) -> String {
    let buffer = grid(model, theme, size);
    let rows = buffer.content.chunks(size.0.into());
    let row = |cells: &[ratatui_core::buffer::Cell]| {
        let row: String = cells.iter().map(|cell| cell.symbol()).collect();
        row.trim_end().to_owned() + "\n"
    };
    rows.map(row).collect()
}

fn press(model: &mut Model, keys: &str) {
    for key in keys.chars() {
        assert_eq!(model.press(Key::Char(key)), Wish::None, "{key}");
    }
}

/// The first words of the rows of rules.
fn rules(model: &Model) -> Vec<String> {
    let text = text(model, THEME, (110, 24));
    let rows = text
        .lines()
        .skip(3)
        .take_while(|row| !row.starts_with("INTERFACE"));
    let names = rows.map(|row| row.split_whitespace().next().unwrap_or_default());
    names
        .filter(|name| name.contains(':'))
        .map(ToOwned::to_owned)
        .collect()
}

#[test]
fn the_view_fits_every_screen() {
    let model = model(Owner::Top);
    insta::assert_snapshot!("80x24", text(&model, THEME, (80, 24)));
    insta::assert_snapshot!("120x40", text(&model, THEME, (120, 40)));
    insta::assert_snapshot!("plain_60x12", text(&model, PLAIN, (60, 12)));
    for (width, height) in [(1, 1), (3, 2), (20, 4), (10, 60), (300, 3), (0, 0)] {
        let _ = grid(&model, THEME, (width, height));
        let _ = grid(&Model::new(Owner::Run), PLAIN, (width, height));
    }
}

#[test]
fn rates_are_those_between_two_reports() {
    let mut model = Model::new(Owner::Top);
    model.take(sample(10));
    let row = |model: &Model| {
        let text = text(model, THEME, (80, 24));
        let row = text
            .lines()
            .find(|row| row.starts_with("80:8080"))
            .expect("the rule");
        row.split_whitespace()
            .map(ToOwned::to_owned)
            .collect::<Vec<_>>()
    };
    // One report alone says nothing about rates.
    let expected = ["80:8080", "-", "-", "-", "-", "-", "1120"];
    assert_eq!(row(&model), expected);
    model.take(sample(12));
    // Two seconds: 0 and 240 packets of 70 bytes; 180 of 1200 bytes; 24 and 8 connections.
    let expected = ["80:8080", "120", "8.40k", "90", "108k", "16", "1152", "█"];
    assert_eq!(row(&model), expected);
    // Another redirect counts anew.
    let mut other = sample(13);
    other.identity.pid = Some(7);
    model.take(other);
    assert_eq!(row(&model)[..6], ["80:8080", "-", "-", "-", "-", "-"]);
}

#[test]
fn keys_sort_filter_and_pause() {
    let mut model = model(Owner::Top);
    let given = [
        "80:8080",
        "443:8443/both",
        "53:5353/udp",
        "[2001:db8::1]:25:2525",
    ];
    assert_eq!(rules(&model), given);
    press(&mut model, "s");
    assert_eq!(model.sort, Sort::Rate(Quantity::PacketsIn));
    assert_eq!(rules(&model), [given[0], given[1], given[3], given[2]]);
    press(&mut model, "r");
    assert_eq!(rules(&model), [given[2], given[3], given[1], given[0]]);
    press(&mut model, "rssssss/44");
    assert_eq!(model.sort, Sort::Given);
    assert_eq!(rules(&model), [given[1]]);
    assert!(text(&model, THEME, (80, 24)).contains("\nfilter: 44_ "));
    assert_eq!(model.press(Key::Enter), Wish::None);
    press(&mut model, "i");
    assert_eq!(rules(&model), [given[1]]);
    assert!(!text(&model, THEME, (80, 24)).contains("\n  eth0"));
    assert_eq!(model.press(Key::Escape), Wish::None);
    assert_eq!(rules(&model), given);

    let before = text(&model, THEME, (80, 24));
    press(&mut model, "p");
    model.take(sample(70));
    let paused = text(&model, THEME, (80, 24));
    assert!(paused.contains("PAUSED 09:20:27Z"), "{paused}");
    let counts = |text: &str| text.lines().nth(3).map(|row| row[..50].to_owned());
    assert_eq!(counts(&paused), counts(&before));
    press(&mut model, "p");
    model.take(sample(71));
    assert_ne!(counts(&text(&model, THEME, (80, 24))), counts(&before));
    press(&mut model, "e");
    assert_eq!(model.page, Page::Lines);
    assert_eq!(model.press(Key::Char('q')), Wish::Quit);
}

#[test]
fn more_rules_than_rows_are_counted_and_scrolled_to() {
    let mut model = Model::new(Owner::Run);
    let mut sample = sample(5);
    let rule = sample.report.rules[2].clone();
    sample.report.rules = (1..=1000)
        .map(|port| {
            let mut rule = rule.clone();
            rule.rule = format!("{port}:8080");
            rule
        })
        .collect();
    model.take(sample);
    assert!(text(&model, THEME, (80, 24)).contains("\nrows 1 to 14 of 1000\n"));
    let _ = model.press(Key::PageDown);
    let scrolled = text(&model, THEME, (80, 24));
    assert!(scrolled.contains("\nrows 11 to 24 of 1000\n"), "{scrolled}");
    model.scroll = usize::MAX;
    assert!(text(&model, THEME, (80, 24)).contains("\n1000:8080 "));
}

#[test]
fn trouble_and_work_stand_above_all() {
    let mut model = model(Owner::Run);
    model.lose("waiting for a redirect: not running".to_owned());
    let first = |model: &Model| {
        text(model, THEME, (60, 24))
            .lines()
            .next()
            .map(ToOwned::to_owned)
    };
    let expected = "waiting for a redirect: not running                09:20:27Z";
    assert_eq!(first(&model).as_deref(), Some(expected));
    model.work = Some("waiting for 3 connections to end".to_owned());
    assert!(first(&model).is_some_and(|line| line.starts_with("waiting for 3 conn")));
    model.work = None;
    model.take(sample(61));
    assert!(first(&model).is_some_and(|line| line.starts_with("portredir 0.1.0: ")));
}

#[test]
fn without_colours_there_are_none() {
    let model = model(Owner::Top);
    let colored = |theme| {
        let buffer = grid(&model, theme, (80, 24));
        buffer
            .content
            .iter()
            .any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(colored(THEME));
    assert!(!colored(PLAIN));
    assert!(text(&model, PLAIN, (80, 24)).is_ascii());
}

/// Over a slow line, what does not change is not sent.
#[test]
fn a_second_changes_few_cells() {
    let mut model = model(Owner::Top);
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal");
    let mut cells = Vec::new();
    for second in 61..64 {
        let before = terminal.backend().buffer().clone();
        model.take(sample(second));
        terminal
            .draw(|frame| draw(&model, THEME, frame.buffer_mut()))
            .expect("a test");
        cells.push(before.diff(terminal.backend().buffer()).len());
    }
    assert!(cells[0] > 800, "{cells:?}");
    assert!(cells[1..].iter().all(|cells| *cells < 350), "{cells:?}");
}

#[test]
fn the_picture_of_top_is_up_to_date() {
    let picture = Picture {
        name: "top",
        test: concat!(module_path!(), "::the_picture_of_top_is_up_to_date"),
        last: "q quit",
    };
    picture.check(|| {
        let mut screen = Screen::take().expect("a terminal");
        screen.draw(&model(Owner::Top)).expect("a terminal");
        std::mem::forget(screen);
    });
}

/// The modes of the terminal, the first screen and the cursor are back before the message is
/// printed.
#[test]
fn a_panic_gives_the_terminal_back() {
    const TEST: &str = concat!(module_path!(), "::a_panic_gives_the_terminal_back");
    stage::play(TEST, || {
        let mut screen = Screen::take().expect("a terminal");
        screen.draw(&model(Owner::Top)).expect("a terminal");
        panic!("planted by a test");
    });
    let again = stage::again(TEST);
    let command = format!("echo before; stty -g; {again}; echo after; stty -g; cat");
    let Some(stage) = Stage::open((100, 24), &command) else {
        return;
    };
    let screen = stage::wait("end", || {
        let screen = stage.ask(&["capture-pane", "-p", "-S", "-"]);
        let after = screen.lines().skip_while(|line| *line != "after");
        (after.filter(|line| !line.is_empty()).count() > 1).then_some(screen)
    });
    assert!(screen.contains("planted by a test"), "{screen}");
    assert!(!screen.contains("q quit"), "{screen}");
    let modes = |words: &str| screen.lines().skip_while(|line| *line != words).nth(1);
    assert!(
        modes("before").is_some_and(|modes| modes.contains(':')),
        "{screen}"
    );
    assert_eq!(modes("before"), modes("after"), "{screen}");
    let flags = stage.ask(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
    assert_eq!(flags, "0 1\n");
}
