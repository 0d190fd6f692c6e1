//! `portredir import`: the redirects of other programs, as rules.

use std::fs;
use std::io::{self, Read as _};

use anyhow::Context as _;

use super::error::CommandError;
use super::{print, say};
use crate::cli::ImportArgs;
use crate::config::file;
use crate::config::settings::Settings;
use crate::import::{self, Refused};
use crate::rule::Sourced;

/// `portredir import`.
///
/// # Errors
///
/// The text cannot be read, or some of it has no equivalent.
pub fn import(args: &ImportArgs) -> anyhow::Result<()> {
    let text = if file::is_standard(&args.path) {
        let mut text = String::new();
        let read = io::stdin().lock().read_to_string(&mut text);
        read.context("read standard input").map(|_| text)
    } else {
        fs::read_to_string(&args.path).with_context(|| format!("read {}", args.path.display()))
    }?;
    let imported = import::read(&text)?;
    let rules = imported.rules.into_iter();
    print(&if args.toml {
        let settings = Settings::default().with_rules(rules.map(Sourced::running));
        let toml = file::to_toml(&settings);
        // `save` did not write this.
        toml.split_once('\n')
            .map_or(String::new(), |(_, rest)| rest.to_owned())
    } else {
        rules.map(|rule| format!("{rule}\n")).collect()
    })?;
    for Refused { line, why } in &imported.refused {
        say(&format!("not taken over: {line}: {why}"));
    }
    for note in &imported.notes {
        say(&format!("note: {note}"));
    }
    match imported.refused.len() {
        0 => Ok(()),
        number => Err(CommandError::NotTakenOver(number).into()),
    }
}
