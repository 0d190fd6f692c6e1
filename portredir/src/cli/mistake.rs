//! Mistakes on the command line and in the environment that deserve a better answer than
//! that of the parser: words that are no command, options of other programs, and values
//! that nobody typed.

use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, FromArgMatches as _};

use super::Cli;
use crate::config::similar::closest;
use crate::import;
use crate::rule::Rule;

/// The reason why the command line cannot be used.
#[derive(Debug)]
pub enum Mistake {
    /// The answer of the parser; help and version come in this way as well.
    Parser(clap::Error),
    /// Another answer.
    Text(String),
}

/// Words that other programs use for our commands.
const SYNONYMS: [(&str, &str); 16] = [
    ("get", "rules"),
    ("info", "status"),
    ("stats", "status"),
    ("ps", "status"),
    ("start", "up"),
    ("run", "up"),
    ("restart", "up"),
    ("enable", "up"),
    ("disable", "down"),
    ("flush", "down"),
    ("change", "replace"),
    ("set", "replace"),
    ("restore", "apply"),
    ("test", "check"),
    ("diagnose", "doctor"),
    ("diag", "doctor"),
];

/// Options of iptables and docker, which come with what this program calls a rule.
const FOREIGN: [&str; 20] = [
    "-A",
    "-D",
    "-I",
    "-d",
    "-j",
    "-m",
    "-o",
    "-p",
    "-s",
    "-t",
    "--destination-port",
    "--dport",
    "--dports",
    "--jump",
    "--proto",
    "--protocol",
    "--publish",
    "--to-destination",
    "--to-port",
    "--to-ports",
];

/// Reads the command line and the environment.
///
/// # Errors
///
/// [`Mistake`].
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Mistake> {
    let args = arrows(options(reorder(args.into_iter().collect())));
    let words: Vec<_> = args
        .iter()
        .skip(1)
        .map(|arg| arg.to_string_lossy())
        .collect();
    let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
    if let Some(text) = words.first().and_then(|word| unknown_command(word, &words)) {
        return Err(Mistake::Text(text));
    }
    let mut cli = Cli::command();
    if words.first().is_some_and(|word| is_command(word)) {
        // The variables are for the options of the command, which may be typed.
        cli = cli.mut_args(|arg| arg.env(Resettable::Reset));
    }
    cli.try_get_matches_from_mut(&args)
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| explain(error.format(&mut cli), &words))
        .and_then(|cli| {
            // After options as well, a word begins no rule.
            let first = cli
                .run
                .options
                .words
                .first()
                .filter(|_| cli.command.is_none());
            match first.and_then(|word| unknown_command(word, &words)) {
                Some(text) => Err(Mistake::Text(text)),
                None => Ok(cli),
            }
        })
}

/// Writes options for the commands that others have for them: `version`, `help` and
/// `help COMMAND`.
fn options(mut args: Vec<OsString>) -> Vec<OsString> {
    match args.get(1).and_then(|word| word.to_str()) {
        Some("version") => args[1] = "--version".into(),
        Some("help") if args.len() > 2 => {
            args.remove(1);
            args.push("--help".into());
        }
        Some("help") => args[1] = "--help".into(),
        _ => {}
    }
    args
}

/// Writes `to` for the arrow of `explain`, which the parser would take for an option.
fn arrows(mut args: Vec<OsString>) -> Vec<OsString> {
    if args.get(1).is_some_and(|word| word == "explain") {
        for arg in args.iter_mut().filter(|arg| *arg == "->") {
            *arg = "to".into();
        }
    }
    args
}

/// Puts `-v` and `-q` behind the command: clap takes a command after an option for a rule.
fn reorder(mut args: Vec<OsString>) -> Vec<OsString> {
    let is_global = |arg: &OsString| {
        let text = arg.as_encoded_bytes();
        let is_short =
            text.len() > 1 && text[0] == b'-' && text[1..].iter().all(|c| b"vq".contains(c));
        is_short || arg == "--verbose" || arg == "--quiet"
    };
    let options = args.iter().skip(1).take_while(|arg| is_global(arg)).count();
    let command = args.get(options + 1).and_then(|arg| arg.to_str());
    if command.is_some_and(is_command) {
        args[1..=options + 1].rotate_right(1);
    }
    args
}

/// Whether a word is the name of a command, or another name of it.
fn is_command(word: &str) -> bool {
    Cli::command().find_subcommand(word).is_some()
}

/// The answer to a first word without a digit, which begins no rule: a colon makes it a rule
/// with the name of a service, which the parser of rules knows.
fn unknown_command(word: &str, words: &[&str]) -> Option<String> {
    // A line in quotes is one word to the shell.
    let word = word.split_whitespace().next().unwrap_or_default();
    let is_word = !word.starts_with('-') && !word.contains(|c: char| c.is_numeric() || c == ':');
    let is_word = is_word || word.starts_with("ip6tables");
    if word.is_empty() || !is_word || is_command(word) {
        return None;
    }
    if let Some(answer) = foreign(words) {
        return Some(format!("unknown command `{word}`; {answer}"));
    }
    let command = Cli::command();
    let all = || command.get_subcommands();
    let shown = all().filter(|command| !command.is_hide_set());
    let names: Vec<_> = shown.map(|command| command.get_name()).collect();
    let synonym = SYNONYMS
        .iter()
        .find(|(other, _)| *other == word.to_lowercase());
    let meant = synonym.map(|(_, meant)| *meant);
    Some(
        match meant.or_else(|| closest(word, all().map(|command| command.get_name()))) {
            Some(meant) => format!(
                "unknown command `{word}`; did you mean `{meant}`? A rule begins with a port, as in \
                 80:8080"
            ),
            None => format!(
                "unknown command `{word}`; the commands are {}, and a rule begins with a port, as in \
                 80:8080",
                names.join(", ")
            ),
        },
    )
}

fn explain(mut error: clap::Error, words: &[&str]) -> Mistake {
    let arg = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(arg)) => arg.clone(),
        _ => return Mistake::Parser(error),
    };
    match error.kind() {
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let Some(variable) = variable_of(&arg, words) else {
                return Mistake::Parser(error);
            };
            let place = format!("environment variable {variable} ('{arg}')");
            let text = error.to_string().replacen(&format!("'{arg}'"), &place, 1);
            Mistake::Text(text.trim_start_matches("error: ").trim_end().to_owned())
        }
        ErrorKind::UnknownArgument => {
            if let Some(hint) = hint(&arg, words) {
                return Mistake::Text(format!("unknown option `{arg}`; {hint}"));
            }
            // It advises `-- -p`, which is no rule either.
            error.remove(ContextKind::Suggested);
            Mistake::Parser(error)
        }
        _ => Mistake::Parser(error),
    }
}

/// The variable that an option got its value from, as nobody typed the option.
fn variable_of(arg: &str, words: &[&str]) -> Option<String> {
    let option = arg.split([' ', '[', '=']).next()?;
    let is_typed = words.iter().any(|word| {
        let rest = word.strip_prefix(option);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    });
    let is_short = option == "--iface" && words.iter().any(|word| word.starts_with("-i"));
    let name = option.strip_prefix("--")?.replace('-', "_").to_uppercase();
    let variable = format!("PORTREDIR_{name}");
    let is_set = std::env::var_os(OsStr::new(&variable)).is_some();
    (is_set && !is_typed && !is_short).then_some(variable)
}

/// The advice to an option that belongs to another program.
fn hint(arg: &str, words: &[&str]) -> Option<String> {
    match arg {
        "--interface" | "--dev" => Some("write --iface NAME, or -i NAME".to_owned()),
        "-n" | "--dry-run" => {
            Some("to see what would be attached, write: portredir plan RULE".to_owned())
        }
        _ if FOREIGN.contains(&arg) => Some(match foreign(words) {
            Some(answer) => format!("portredir takes rules; {answer}"),
            None => "portredir takes rules; instead of `-p tcp --dport 80 -j REDIRECT --to-ports \
                     8080`, write: portredir 80:8080"
                .to_owned(),
        }),
        _ => None,
    }
}

/// The answer to a line of iptables, nft, firewalld or docker: the same as rules, or why there are
/// none.
fn foreign(words: &[&str]) -> Option<String> {
    let words: Vec<_> = words
        .iter()
        .flat_map(|word| word.split_whitespace())
        .collect();
    match import::typed(&words) {
        Some(Ok(rules)) => {
            let rules: Vec<_> = rules
                .iter()
                .map(|labelled| labelled.rule.to_string())
                .collect();
            Some(format!("write: portredir {}", rules.join(" ")))
        }
        Some(Err(why)) => Some(format!("no rule says this: {why}")),
        None => foreign_rule(&words).map(|rule| format!("write: portredir {rule}")),
    }
}

/// The rule in the words of nft, firewalld or docker.
fn foreign_rule(words: &[&str]) -> Option<Rule> {
    let after = |names: &[&str]| {
        let place = words.iter().position(|word| names.contains(word))?;
        words.get(place + 1).copied()
    };
    let forwarded = words
        .iter()
        .find_map(|word| word.strip_prefix("--add-forward-port="));
    if let Some(forwarded) = forwarded {
        return forwarded.parse().ok();
    }
    let published = after(&["-p", "--publish"]).and_then(|text| text.parse().ok());
    let dialled = after(&["--dport", "--dports", "--destination-port", "dport"]);
    let target = after(&["--to-ports", "--to-port", "--to", "to"]);
    let (Some(dialled), Some(target)) = (dialled, target) else {
        return published;
    };
    let is_udp = words.contains(&"udp");
    let from = after(&["-s", "--source", "saddr"]);
    let on = after(&["-i", "--in-interface", "iif", "iifname"]);
    let mut text = format!(
        "{}:{}{}",
        dialled.replace(':', "-"),
        target.trim_start_matches(':'),
        if is_udp { "/udp" } else { "" }
    );
    text.extend(from.map(|from| format!(" from {from}")));
    text.extend(on.map(|on| format!(" on {}", on.trim_matches('"'))));
    text.parse().ok()
}
