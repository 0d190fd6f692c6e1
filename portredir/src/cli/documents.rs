//! The commands that describe the program: man pages, completions and features.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::read::TableArgs;

/// The end of the help of `completions`.
pub(super) const COMPLETIONS_HELP: &str = "\
Examples: portredir completions bash > ~/.local/share/bash-completion/completions/portredir
          portredir completions zsh > ~/.zfunc/_portredir
          portredir completions fish > ~/.config/fish/completions/portredir.fish";

/// `portredir completions`.
#[derive(Args, Clone, Copy, Debug)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: Shell,
}

/// The shells that have completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash, 4.4 or newer.
    Bash,
    /// The Z shell.
    Zsh,
    /// fish.
    Fish,
}

/// `portredir man`.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// The command, or `portredir.toml` for the format of configuration files.
    #[arg(value_name = "PAGE")]
    pub page: Option<String>,

    /// Write all pages to a directory.
    #[arg(long, value_name = "DIR", conflicts_with = "page")]
    pub dir: Option<PathBuf>,
}

/// `portredir features`.
#[derive(Args, Clone, Copy, Debug)]
pub struct FeaturesArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,

    /// The options of every command that prints a table.
    #[command(flatten)]
    pub table: TableArgs,
}
