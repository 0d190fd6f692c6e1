//! `portredir completions`: the scripts of shells, which ask this program while a user types,
//! so that rules and interfaces are those of this moment.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use anyhow::Context as _;
use clap::{Arg, Command, CommandFactory as _};
use clap_complete::env::Shells;
use clap_complete::{ArgValueCompleter, CompleteEnv, CompletionCandidate};
use nix::net::if_::if_nameindex;

use super::print;
use crate::cli::{Cli, CompletionsArgs, Shell};
use crate::config::settings::Settings;
use crate::ipc::client;
use crate::loader::pinned::{self, Found};
use crate::sys::bpffs::PinDir;

/// The variable by which a script asks.
const VARIABLE: &str = "PORTREDIR_COMPLETE";

/// Bash breaks words at colons, which rules have: the function of the library gets whole
/// words, and only what comes after the last break goes back.
const BASH: &str = r#"
_portredir() {
    local line=${COMP_LINE:0:COMP_POINT}
    local -a COMP_WORDS
    read -ra COMP_WORDS <<<"$line"
    [[ $line == *[[:space:]] ]] && COMP_WORDS+=("")
    local COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    local word=${COMP_WORDS[COMP_CWORD]}
    _clap_complete_portredir "$1" "$word"
    local before=${word%"${word##*[:=]}"}
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
}
complete -o nospace -o bashdefault -F _portredir portredir
"#;

/// `portredir completions`.
///
/// # Errors
///
/// Standard output cannot be written.
pub fn completions(args: CompletionsArgs) -> anyhow::Result<()> {
    let (shell, more) = match args.shell {
        Shell::Bash => ("bash", BASH),
        Shell::Zsh => ("zsh", ""),
        Shell::Fish => ("fish", ""),
    };
    let shells = Shells::builtins();
    let shell = shells.completer(shell).context("find the shell")?;
    let mut script = Vec::new();
    let (name, program) = ("portredir", "portredir");
    shell.write_registration(VARIABLE, name, program, program, &mut script)?;
    let script = String::from_utf8(script)?;
    print(&format!("{}\n{more}", script.trim()))
}

/// Answers a script, and ends the process, if it is a script that has started it.
pub fn answer_shell() {
    CompleteEnv::with_factory(command)
        .var(VARIABLE)
        .bin("portredir")
        .complete();
}

/// The command line, with the values that can be completed.
fn command() -> Command {
    let mut command = Cli::command();
    command.build();
    let with_values = |arg: Arg| match arg.get_id().as_str() {
        "iface" => arg.add(ArgValueCompleter::new(interfaces)),
        "rules" => arg.add(ArgValueCompleter::new(rules)),
        _ => arg,
    };
    let names: Vec<_> = command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    for name in names {
        command = command.mut_subcommand(name, |command| {
            // New rules are not those that run.
            if command.get_name() == "add" {
                return command;
            }
            command.mut_args(with_values)
        });
    }
    command.mut_args(with_values)
}

/// The running rules and their names that begin so, as far as this user may read them.
fn rules(begin: &OsStr) -> Vec<CompletionCandidate> {
    let begin = begin.to_string_lossy();
    let settings = running();
    let rules = settings.rules.iter().map(ToString::to_string);
    let names = settings
        .labelled()
        .filter_map(|rule| Some(rule.label.name?.to_string()));
    // Several rules may have one name.
    let names: BTreeSet<_> = names.collect();
    rules
        .chain(names)
        .filter(|word| word.starts_with(&*begin))
        .map(CompletionCandidate::new)
        .collect()
}

fn running() -> Settings {
    if let Ok(Some(answer)) = client::status() {
        return answer.settings;
    }
    let state = PinDir::current().ok().map(|pins| pinned::find(&pins));
    match state {
        Some(Ok(Found::Live(state))) => state.settings,
        _ => Settings::default(),
    }
}

/// The interfaces that begin as the last one of a list.
fn interfaces(list: &OsStr) -> Vec<CompletionCandidate> {
    let list = list.to_string_lossy();
    let last = list.rfind([',', '!']).map_or(0, |place| place + 1);
    let (before, begin) = list.split_at(last);
    let Ok(interfaces) = if_nameindex() else {
        return Vec::new();
    };
    let names = interfaces
        .iter()
        .map(|interface| interface.name().to_string_lossy());
    let names = names
        .chain(["all".into()])
        .filter(|name| name.starts_with(begin));
    names
        .map(|name| CompletionCandidate::new(format!("{before}{name}")))
        .collect()
}
