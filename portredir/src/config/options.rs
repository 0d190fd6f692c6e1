//! The options and rules of the command line and the environment, which override files,
//! which override the defaults.

use std::path::{Path, PathBuf};

use super::file::{self, ConfigError};
use super::settings::{Options, Settings};
use crate::rule;
use crate::ruleset::shadow;

/// The options and rules of a redirect: shared by all commands that make a plan.
#[derive(clap::Args, Clone, Debug)]
pub struct Typed {
    /// The options.
    #[command(flatten)]
    pub options: Options,

    /// Read rules and options from a file, or from a directory with the layout of
    /// /etc/portredir.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "words",
        hide_short_help = true
    )]
    pub config: Option<PathBuf>,

    /// The rules.
    // This is not one comment for both: rustdoc takes text in brackets for links.
    #[arg(
        value_name = "RULE",
        help = "[ADDR:]PORT:PORT[/tcp|/udp|/both] [from CIDR] [on IFACE,…]; destination port first",
        long_help = "[ADDR:]PORT:PORT[/tcp|/udp|/both] [from CIDR] [on IFACE,…]; the destination \
                     port comes first, then the target port.\n\nPorts may be ranges, for example \
                     8000-8100:9000-9100"
    )]
    pub words: Vec<String>,
}

impl Typed {
    /// The settings: options that are given here or in the environment override those of
    /// files, which override the defaults.
    ///
    /// # Errors
    ///
    /// The rules or files are invalid.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let base = if !self.words.is_empty() {
            let rules = rule::from_words(&self.words)?;
            shadow::check(&rules)?;
            Settings::default().with_rules(rules)
        } else if let Some(path) = &self.config {
            file::load(path)?.over(&Settings::default())
        } else if let Some(path) = named_by_environment() {
            let config = file::load(&path);
            let config = config.map_err(|error| ConfigError::Variable(Box::new(error)))?;
            config.over(&Settings::default())
        } else {
            file::load(Path::new(file::DIR))?.over(&Settings::default())
        };
        Ok(self.options.over(&base))
    }
}

/// The path in `PORTREDIR_CONFIG`. Rules and paths that are typed override it.
#[must_use]
pub fn named_by_environment() -> Option<PathBuf> {
    let path = std::env::var_os("PORTREDIR_CONFIG")?;
    (!path.is_empty()).then(|| path.into())
}
