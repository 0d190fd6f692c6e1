//! The live view of `top` and of the foreground run, on a terminal, with real traffic.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Tests;
use crate::lab::process::wait_for;
use crate::lab::program::{PROGRAM, Redirector, attached};
use crate::lab::terminal::Terminal;
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host};
use crate::peer::conn::{Conn, Proto};
use crate::peer::echo::EchoServer;

const TOOLS: &[&str] = &["tmux", "bash", "stty"];

pub fn add(tests: &mut Tests) {
    for size in [(80, 24), (120, 40)] {
        let (width, height) = size;
        let name = format!("live/top_{width}x{height}");
        tests.add(name, TOOLS, move || top(size));
        let name = format!("live/foreground_{width}x{height}");
        tests.add(name, TOOLS, move || foreground(size));
    }
    type Test = (&'static str, fn());
    const TESTS: [Test; 8] = [
        ("keys", keys),
        ("resize", resize),
        ("colours", colours),
        ("restart_below", restart_below),
        ("stop_and_continue", stop_and_continue),
        ("terminated", terminated),
        ("closed_terminal", closed_terminal),
        ("plain_lines", plain_lines),
    ];
    for (name, test) in TESTS {
        tests.add(format!("live/{name}"), TOOLS, test);
    }
}

const RULES: [&str; 2] = ["80:8080", "7777:7778/udp"];

/// A lab with a server for each rule.
fn lab() -> (Lab, [EchoServer; 2]) {
    let lab = Lab::new(&CELL);
    let servers = [8080, 7778].map(|port| EchoServer::start(&lab.host, port));
    (lab, servers)
}

/// Sends datagrams, each of a new flow.
fn send_flows(lab: &Lab, flows: usize) {
    for _ in 0..flows {
        Conn::to(&lab.client, Proto::Udp, 0, Family::V4.host(7777)).echo(&[7; 100]);
    }
}

fn connect(lab: &Lab) -> Conn {
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"hello");
    conn
}

fn start_top(terminal: &Terminal) {
    terminal.enter(&format!("{PROGRAM} top --interval 0.2; echo code $?"));
    terminal.wait_for_words("q quit");
}

/// The command of a foreground run, which is typed.
fn foreground_command(options: &str) -> String {
    let rules = RULES.join(" ");
    format!("{PROGRAM} --iface 'h0,x*' --engine tc --interval 0.2 {options} {rules}; echo code $?")
}

/// The column of a table, by its head, in the row that begins with this name.
fn cell(screen: &str, (head, name): (&str, &str)) -> Option<String> {
    let heads = screen.lines().find(|line| line.starts_with("RULE"))?;
    let end = heads.find(head)? + head.len();
    let row = screen.lines().find(|line| line.starts_with(name))?;
    let row: String = row.chars().take(end).collect();
    row.split_whitespace().next_back().map(ToOwned::to_owned)
}

/// Each count on the screen is that of `status --json`.
fn check_numbers(terminal: &Terminal, status: &Value) {
    let rules = status["rules"].as_array().expect("rules");
    let is_so = |screen: &str| {
        rules.iter().all(|rule| {
            let name = rule["rule"].as_str().expect("a name");
            let has = |(head, key): (&str, &str)| {
                let count = rule[key].as_u64().map(|count| count.to_string());
                let count = count.unwrap_or_else(|| "-".to_owned());
                !screen.contains(head) || cell(screen, (head, name)) == Some(count)
            };
            [
                ("FLOWS ", "flows"),
                ("ACCEPTED", "accepted"),
                ("REFUSED", "refused"),
            ]
            .into_iter()
            .all(has)
        })
    };
    let sum: u64 = rules
        .iter()
        .filter_map(|rule| rule["interfaces"]["h0"]["flows"].as_u64())
        .sum();
    let sum = Some(sum.to_string());
    terminal.wait_for("the numbers of status", |screen| {
        is_so(screen)
            && cell(screen, ("FLOWS ", "h0 ")) == sum
            && screen.lines().any(|line| line == "dropped: 0")
    });
}

/// Whether a screen has the shape that every size has. One that is read while it is drawn
/// has not, nor one of which the terminal wrapped the lines at a change of its size.
fn has_shape(screen: &str, (width, height): (u16, u16)) -> bool {
    let lines: Vec<_> = screen.lines().collect();
    let longest = lines.iter().map(|line| line.chars().count()).max();
    lines.len() == usize::from(height)
        && longest == Some(usize::from(width))
        && lines[0].starts_with("portredir ")
        && lines[0].ends_with('Z')
        && lines[1].starts_with("in ")
        && lines[2].starts_with("RULE ")
        && lines[2].ends_with(" HISTORY")
        && lines[lines.len() - 1].contains("s sort  r reverse  / filter")
}

fn top(size: (u16, u16)) {
    let (lab, _servers) = lab();
    let host = Host::of(&lab);
    host.up(&["--engine", "tc", RULES[0], RULES[1]]);
    let terminal = Terminal::open(&lab, size, &[]);
    let modes = terminal.modes();
    start_top(&terminal);
    send_flows(&lab, 7);
    let conns = [connect(&lab), connect(&lab)];
    terminal.wait_for("a rate", |screen| {
        let rate = cell(screen, ("IN-PKT/s", RULES[1]));
        rate.is_some_and(|rate| rate.parse::<f64>().is_ok_and(|rate| rate > 0.0))
    });
    terminal.wait_for("its shape", |screen| has_shape(screen, size));
    drop(conns);
    check_numbers(&terminal, &host.status());
    terminal.wait_for("no rate", |screen| {
        RULES
            .iter()
            .all(|rule| cell(screen, ("IN-PKT/s", rule)).as_deref() == Some("0"))
    });
    terminal.press("q");
    terminal.wait_for_words("code 0");
    assert_eq!(terminal.modes(), modes);
    host.down();
}

fn keys() {
    let (lab, _servers) = lab();
    let host = Host::of(&lab);
    host.up(&["--engine", "tc", RULES[0], RULES[1]]);
    let terminal = Terminal::open(&lab, (80, 24), &[]);
    start_top(&terminal);
    send_flows(&lab, 3);
    terminal.wait_for_words("\n7777:7778/udp");
    let first = |screen: &str| screen.lines().nth(3).map(|line| line.starts_with("7777:"));
    // By the number of flows, and then the other way round.
    terminal.press("s s s s s s");
    terminal.wait_for("the busier rule first", |screen| {
        first(screen) == Some(true)
    });
    terminal.press("r");
    terminal.wait_for("the idle rule first", |screen| first(screen) == Some(false));
    terminal.press("/ 8 0 : 8");
    terminal.wait_for("one rule", |screen| {
        screen.contains("\nfilter: 80:8_") && !screen.contains("\n7777")
    });
    terminal.press("Escape");
    terminal.wait_for_words("\n7777");

    terminal.wait_for("the flows", |screen| {
        cell(screen, ("FLOWS ", RULES[1])).as_deref() == Some("3")
    });
    terminal.press("p");
    terminal.wait_for_words("PAUSED");
    send_flows(&lab, 2);
    // Several samples come meanwhile.
    std::thread::sleep(Duration::from_millis(1000));
    let paused = terminal.screen();
    assert_eq!(cell(&paused, ("FLOWS ", RULES[1])).as_deref(), Some("3"));
    terminal.press("p");
    terminal.wait_for("the flows since", |screen| {
        cell(screen, ("FLOWS ", RULES[1])).as_deref() == Some("5") && !screen.contains("PAUSED")
    });
    terminal.press("q");
    terminal.wait_for_words("code 0");
    host.down();
}

fn resize() {
    let (lab, _servers) = lab();
    let host = Host::of(&lab);
    host.up(&["--engine", "tc", RULES[0]]);
    let terminal = Terminal::open(&lab, (80, 24), &[]);
    start_top(&terminal);
    for size in [(120, 40), (80, 10), (100, 30)] {
        terminal.resize(size);
        terminal.wait_for("the new size", |screen| has_shape(screen, size));
    }
    // Too small for anything, and back.
    terminal.resize((5, 2));
    std::thread::sleep(Duration::from_millis(500));
    terminal.resize((80, 24));
    terminal.wait_for_words("q quit");
    terminal.press("q");
    terminal.wait_for_words("code 0");
    host.down();
}

fn colours() {
    let (lab, _servers) = lab();
    let host = Host::of(&lab);
    host.up(&["--engine", "tc", RULES[0]]);
    // Colour 6 of 256, as it is sent, or as tmux shortens it.
    let has_colour = |screen: &str| {
        ["\x1b[38;5;6m", "\x1b[36m"]
            .iter()
            .any(|code| screen.contains(code))
    };
    let is_colored = |variables: &[&str]| {
        let terminal = Terminal::open(&lab, (80, 24), variables);
        start_top(&terminal);
        let screen = terminal.colored_screen();
        terminal.press("q");
        terminal.wait_for_words("code 0");
        let is_ascii = screen.is_ascii();
        (has_colour(&screen.replace("\x1b[1m", "")), is_ascii)
    };
    assert!(is_colored(&[]).0);
    assert!(!is_colored(&["NO_COLOR=1"]).0);
    for term in ["linux", "vt100", "xterm"] {
        let term = format!("TERM={term}");
        let (_, is_ascii) = is_colored(&[&term, "LC_ALL=C"]);
        assert!(is_ascii, "{term}");
    }
    let terminal = Terminal::open(&lab, (80, 24), &["TERM=dumb"]);
    terminal.enter(&format!("{PROGRAM} top; echo code $?"));
    let screen = terminal.wait_for_words("code 2");
    assert!(screen.contains("portredir status"), "{screen}");
    drop(terminal);
    host.down();
}

/// The redirect is killed below the view, and another one begins.
fn restart_below() {
    let (lab, _servers) = lab();
    let rules = ["--iface", "h0", "--engine", "tc", RULES[0], RULES[1]];
    let mut redirector = Redirector::start(&lab.host, &rules);
    let terminal = Terminal::open(&lab, (80, 24), &[]);
    let modes = terminal.modes();
    start_top(&terminal);
    send_flows(&lab, 4);
    terminal.wait_for("the flows", |screen| {
        cell(screen, ("FLOWS ", RULES[1])).as_deref() == Some("4")
    });
    redirector.process.kill();
    let screen = terminal.wait_for_words("waiting for a redirect: not running");
    assert!(
        screen.contains("the redirect cannot be read any more"),
        "{screen}"
    );
    let redirector = Redirector::start(&lab.host, &rules);
    let pid = redirector.process.id();
    send_flows(&lab, 2);
    let screen = terminal.wait_for("the new redirect", |screen| {
        screen.contains(&format!("foreground, process {pid} "))
            && cell(screen, ("FLOWS ", RULES[1])).as_deref() == Some("2")
    });
    assert!(screen.contains("another redirect runs"), "{screen}");
    terminal.press("C-c");
    terminal.wait_for_words("code 0");
    assert_eq!(terminal.modes(), modes);
    redirector.stop();
}

fn foreground(size: (u16, u16)) {
    let (lab, _servers) = lab();
    let terminal = Terminal::open(&lab, size, &[]);
    let modes = terminal.modes();
    terminal.enter(&foreground_command(""));
    terminal.wait_for_words("^C stop");
    send_flows(&lab, 6);
    let conn = connect(&lab);
    let screen = terminal.wait_for("the flows", |screen| {
        cell(screen, ("FLOWS ", RULES[1])).as_deref() == Some("6")
            && cell(screen, ("FLOWS ", RULES[0])).as_deref() == Some("1")
            && has_shape(screen, size)
    });
    let host = Host::of(&lab);
    check_numbers(&terminal, &host.status());
    // The plan was said before, and events come later.
    assert!(screen.contains("Z redirecting 80:8080"), "{screen}");
    lab.host
        .ip("link add x1 type veth peer name y1\nlink set x1 up");
    terminal.wait_for("the new interface", |screen| {
        screen.contains("Z x1  tc") && has_shape(screen, size)
    });

    terminal.press("C-c");
    terminal.wait_for("the time that is left", has_shape_of_drain);
    drop(conn);
    terminal.wait_for_words("code 0");
    let history = terminal.history();
    for words in [
        "redirecting 80:8080",
        "\nx1  tc",
        "\n80:8080 ",
        "\npassed: ",
    ] {
        assert_eq!(history.matches(words).count(), 1, "{words}: {history}");
    }
    assert_eq!(terminal.modes(), modes);
    let ours = |name: &String| name.contains("portredir");
    assert_eq!(attached(&lab.host).into_iter().find(ours), None);
}

/// Whether the time that is left stands above the numbers, which stay.
fn has_shape_of_drain(screen: &str) -> bool {
    let first = screen.lines().next().unwrap_or_default();
    first.starts_with("waiting for 1 connection to end, ")
        && first.contains(" s left; Ctrl-C stops waiting")
        && screen.contains("\n80:8080 ")
}

/// Ctrl-Z gives the terminal to the shell, `bg` and `fg` go on.
fn stop_and_continue() {
    let (lab, _servers) = lab();
    let terminal = Terminal::open(&lab, (80, 24), &[]);
    let modes = terminal.modes();
    terminal.enter(&format!("({})", foreground_command("")));
    terminal.wait_for_words("^C stop");
    terminal.press("C-z");
    terminal.wait_for_words("Stopped");
    assert_eq!(terminal.modes(), modes);
    // In the background it redirects, and leaves the terminal alone.
    terminal.enter("bg");
    send_flows(&lab, 3);
    assert_eq!(terminal.modes(), modes);
    terminal.enter("fg");
    terminal.wait_for("the flows", |screen| {
        cell(screen, ("FLOWS ", RULES[1])).as_deref() == Some("3") && screen.contains("^C stop")
    });
    // `q` ends the view alone.
    terminal.press("q");
    terminal.wait_for_words("still redirecting; press Ctrl-C to stop");
    send_flows(&lab, 1);
    terminal.wait_for_words("4 flows (+");
    terminal.press("C-z");
    terminal.wait_for("the shell", |screen| screen.matches("Stopped").count() == 1);
    terminal.enter("fg");
    terminal.press("C-c");
    terminal.wait_for_words("code 0");
    assert_eq!(terminal.modes(), modes);
    assert_eq!(attached(&lab.host), Vec::<String>::new());
}

/// Signals of others end the view, and the terminal is as before.
fn terminated() {
    let (lab, _servers) = lab();
    let terminal = Terminal::open(&lab, (80, 24), &[]);
    let modes = terminal.modes();
    for signal in ["TERM", "INT", "HUP"] {
        terminal.enter(&foreground_command(""));
        terminal.wait_for_words("^C stop");
        let status = Host::of(&lab).status();
        let pid = status["pid"].to_string();
        lab.host.run(&["kill", &format!("-{signal}"), &pid]);
        terminal.wait_for_words("code 0");
        assert_eq!(terminal.modes(), modes, "{signal}");
    }
}

fn closed_terminal() {
    let (lab, _servers) = lab();
    let terminal = Terminal::open(&lab, (80, 24), &[]);
    terminal.enter(&foreground_command(""));
    terminal.wait_for_words("^C stop");
    assert!(!attached(&lab.host).is_empty());
    terminal.close();
    wait_for("the end of the redirect", || {
        attached(&lab.host).is_empty().then_some(())
    });
}

/// Lines on a terminal and in a pipe, and JSON, are as they are without a terminal.
fn plain_lines() {
    let (lab, _servers) = lab();
    let terminal = Terminal::open(&lab, (120, 24), &[]);
    for (options, tail) in [
        ("--plain", ""),
        ("", " | (trap '' INT; cat)"),
        ("--json", ""),
    ] {
        let command = foreground_command(options);
        terminal.press("C-l");
        // The run before has said the same words.
        terminal.wait_for("an empty screen", |screen| {
            !screen.contains("press Ctrl-C to stop")
        });
        terminal.enter(&format!("({command}){tail}"));
        terminal.wait_for_words("press Ctrl-C to stop");
        send_flows(&lab, 1);
        let words = if options == "--json" {
            "\"schema\":1"
        } else {
            "1 flow (+1 packet in"
        };
        let screen = terminal.wait_for_words(words);
        assert!(!screen.contains("s sort"), "{screen}");
        terminal.press("C-c");
        terminal.wait_for_words("code 0");
    }
    // A background job may not touch the terminal, so it prints lines.
    let command = foreground_command("");
    terminal.press("C-l");
    terminal.enter(&format!("({command}) &"));
    terminal.wait_for_words("press Ctrl-C to stop");
    send_flows(&lab, 1);
    terminal.wait_for_words("1 flow (+1 packet in");
    let pid = Host::of(&lab).status()["pid"].as_i64().expect("a pid");
    let pid = i32::try_from(pid).expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).expect("kill");
    terminal.wait_for_words("code 0");
}
