//! `portredir man`: man pages, from the command line itself.

use std::fs;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::error::CommandError;
use super::print;
use crate::cli::version::BUILD;
use crate::cli::{Cli, ManArgs};

/// The page about configuration files, which is written by hand.
const TOML: (&str, &str) = ("portredir.toml", include_str!("../../man/portredir.toml.5"));

/// The files that the program uses.
const FILES: [(&str, &str); 3] = [
    (
        "/etc/portredir/rules.toml",
        "The rules and options of `portredir up` without arguments; see portredir.toml(5).",
    ),
    (
        "/etc/portredir/conf.d/*.toml",
        "More rules, and options that override those of rules.toml.",
    ),
    (
        "/sys/fs/bpf/portredir",
        "The maps and links of what `portredir up` keeps active.",
    ),
];

/// The exit codes of all commands.
const CODES: [(&str, &str); 6] = [
    ("0", "The command is done."),
    ("1", "The command failed."),
    ("2", "Wrong usage: an option, a rule or a file is invalid."),
    ("3", "Nothing is running."),
    ("4", "Not permitted."),
    ("5", "`status --check` or `doctor` found something wrong."),
];

const PROGRAM: &str = "portredir";

const VERSION: &str = concat!("portredir ", env!("CARGO_PKG_VERSION"));

/// A man page.
struct Page {
    /// The name of the file, without the section.
    name: String,
    section: &'static str,
    text: String,
}

/// `portredir man`.
///
/// # Errors
///
/// There is no such page, or a page cannot be written.
pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    let pages = pages()?;
    let Some(dir) = &args.dir else {
        let wanted = match args.page.as_deref() {
            None | Some("portredir") => "portredir".to_owned(),
            Some(page) if page == TOML.0 => page.to_owned(),
            Some(page) => format!("portredir-{page}"),
        };
        let page = pages.into_iter().find(|page| page.name == wanted);
        let page =
            page.ok_or_else(|| CommandError::NoPage(args.page.clone().unwrap_or_default()))?;
        return print(&page.text);
    };
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    for page in pages {
        let path = dir.join(format!("{}.{}", page.name, page.section));
        fs::write(&path, page.text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// All pages.
fn pages() -> anyhow::Result<Vec<Page>> {
    let mut cli = Cli::command().term_width(0);
    cli.build();
    let mut pages = vec![page(&cli)?];
    for command in cli.get_subcommands() {
        pages.push(page(command)?);
        let shown = command
            .get_subcommands()
            .filter(|command| !command.is_hide_set());
        for command in shown {
            pages.push(page(command)?);
        }
    }
    pages.push(Page {
        name: TOML.0.to_owned(),
        section: "5",
        text: TOML
            .1
            .replace("@DATE@", &date())
            .replace("@VERSION@", VERSION),
    });
    Ok(pages)
}

/// The date of all pages.
fn date() -> String {
    match BUILD.built {
        Some(built) => built.strftime("%Y-%m-%d").to_string(),
        None => "unreleased".to_owned(),
    }
}

fn page(command: &Command) -> anyhow::Result<Page> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let is_whole = name == PROGRAM;
    let after = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    let after = after.map(ToString::to_string);
    let shown = shown(command, is_whole);
    let has_commands = shown
        .get_subcommands()
        .any(|command| !command.is_hide_set());
    let man = Man::new(shown).date(date()).source(VERSION).manual(PROGRAM);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if has_commands {
        man.render_subcommands_section(&mut text)?;
    }
    end(is_whole, after.as_deref()).to_writer(&mut text)?;
    Ok(Page {
        name: name.to_owned(),
        section: "1",
        // The pages are ASCII: older programs that print them know no other characters.
        text: String::from_utf8(text)?.replace('…', "..."),
    })
}

/// A command with all that the help has: the library leaves out the help of options that the
/// short help does not have.
fn shown(command: &Command, is_whole: bool) -> Command {
    let mut command = command.clone().mut_args(|arg| {
        let help = arg.get_long_help().or_else(|| arg.get_help()).cloned();
        match help {
            Some(help) => arg.long_help(help),
            None => arg,
        }
    });
    if is_whole {
        let names = command.get_subcommands().map(Command::get_name);
        let names: Vec<_> = names.map(ToOwned::to_owned).collect();
        for name in names {
            command = command.mut_subcommand(name, |command| command.hide(false));
        }
    }
    command
}

/// The sections after those of the library.
fn end(is_whole: bool, examples: Option<&str>) -> Roff {
    let mut end = Roff::new();
    if let Some(examples) = examples {
        end.control("SH", ["EXAMPLES"]);
        end.control("nf", []);
        for line in examples.lines() {
            end.text([roman(line)]);
        }
        end.control("fi", []);
    }
    let mut others = vec![(PROGRAM, "(1), "), (TOML.0, "(5)")];
    if is_whole {
        for (head, list) in [("FILES", &FILES[..]), ("EXIT STATUS", &CODES)] {
            end.control("SH", [head]);
            for (term, text) in list {
                end.control("TP", []);
                end.text([bold(*term)]);
                end.text([roman(*text)]);
            }
        }
        others = vec![(TOML.0, "(5), "), ("bpf", "(2), "), ("tc-bpf", "(8)")];
    }
    end.control("SH", ["SEE ALSO"]);
    let others = others.into_iter();
    let others = others.flat_map(|(name, section)| [bold(name), roman(section)]);
    end.text(others.collect::<Vec<_>>());
    end
}
