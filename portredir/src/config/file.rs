//! Settings in files: `rules.toml`, and the additions of `conf.d`.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::settings::{Options, Settings};
use crate::exit::ExitCode;
use crate::rule::{Origin, Rule, Sourced, SourcedError};
use crate::ruleset::shadow::{self, ConflictError};

/// The default directory of the files.
pub const DIR: &str = "/etc/portredir";

/// An error of a file.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {path}: {error}{hint}")]
    Read {
        /// The path of the file.
        path: String,
        /// The kernel's error.
        error: io::Error,
        /// Advice for the user.
        hint: &'static str,
    },
    /// Everybody may write rules into the file, which root would obey.
    #[error("{path} is world-writable; fix with: chmod o-w {path}")]
    Writable {
        /// The path of the file.
        path: String,
    },
    /// The file has a syntax error or an unknown key: the library's message, with line
    /// and column.
    #[error("{path}: {message}")]
    Toml {
        /// The path of the file.
        path: String,
        /// The message.
        message: String,
    },
    /// A rule cannot be read.
    #[error(transparent)]
    Rule(#[from] SourcedError),
    /// The rules contradict each other.
    #[error(transparent)]
    Conflict(#[from] ConflictError),
    /// The file cannot be written.
    #[error("write {path}: {error}")]
    Write {
        /// The path of the file.
        path: String,
        /// The kernel's error.
        error: io::Error,
    },
    /// Saved rules would come twice at the next start.
    #[error(
        "{} also defines rules, which would then be loaded twice; move that file away first, or save \
         to another path", .0.display()
    )]
    Beside(PathBuf),
}

impl ConfigError {
    /// The exit code for this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        ExitCode::Usage
    }
}

/// The contents of files; options that are not given stay as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    options: Options,
    /// All rules, in order.
    pub rules: Vec<Sourced>,
}

impl Config {
    /// The rules of the files, and their options over those of `base`.
    #[must_use]
    pub fn over(&self, base: &Settings) -> Settings {
        Settings {
            rules: self
                .rules
                .iter()
                .map(|sourced| sourced.rule.clone())
                .collect(),
            ..self.options.over(base)
        }
    }
}

/// Reads a file, or, of a directory, `rules.toml` and `conf.d/*.toml` in the order of
/// names. A later file overrides options; rules are added up.
///
/// # Errors
///
/// [`ConfigError`], with the place.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let mut paths = vec![path.to_owned()];
    if path.is_dir() {
        paths = additions(path);
        let main = path.join("rules.toml");
        // One of the two is enough.
        if main.exists() || paths.is_empty() {
            paths.insert(0, main);
        }
    }
    let mut config = Config::default();
    for path in paths {
        let more = load_file(&path)?;
        config.options = config.options.and(more.options);
        config.rules.extend(more.rules);
    }
    shadow::check(&config.rules)?;
    Ok(config)
}

/// The files of `conf.d`, by name.
fn additions(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("conf.d"))
        .into_iter()
        .flatten()
        .flatten();
    let mut paths: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    paths.sort();
    paths
}

fn load_file(path: &Path) -> Result<Config, ConfigError> {
    let name = path.display().to_string();
    let read = |error: io::Error| ConfigError::Read {
        path: name.clone(),
        hint: match error.kind() {
            io::ErrorKind::NotFound => "; create the file, or give rules on the command line",
            _ => "",
        },
        error,
    };
    let bytes = fs::read(path).map_err(read)?;
    let mode = fs::metadata(path).map_err(read)?.permissions().mode();
    if mode & 0o002 != 0 && path.is_file() {
        return Err(ConfigError::Writable { path: name });
    }
    parse(path, bytes)
}

/// Reads the bytes of a file.
///
/// # Errors
///
/// [`ConfigError::Toml`] and [`ConfigError::Rule`], with the place.
pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Config, ConfigError> {
    let toml = |message: String| ConfigError::Toml {
        path: path.display().to_string(),
        message: message.trim_end().to_owned(),
    };
    let text = String::from_utf8(bytes).map_err(|_| toml("not UTF-8 text".into()))?;
    let mut options: Options = toml::from_str(&text).map_err(|error| toml(error.to_string()))?;
    let mut rules = Vec::new();
    // The rules come in the order of the text.
    let (mut line, mut counted) = (1, 0);
    for rule in std::mem::take(&mut options.rules) {
        let start = rule.span().start;
        line += text[counted..start].matches('\n').count();
        counted = start;
        let origin = Origin::File {
            path: path.to_owned(),
            line,
        };
        match rule.get_ref().parse::<Rule>() {
            Ok(rule) => rules.push(Sourced { rule, origin }),
            Err(error) => {
                let error = Box::new(error);
                return Err(SourcedError { origin, error }.into());
            }
        }
    }
    Ok(Config { options, rules })
}

/// Settings as a file: every rule, and each option that differs from its default.
#[must_use]
pub fn to_toml(settings: &Settings) -> String {
    let table = |settings: &Settings| toml::Table::try_from(settings).expect("settings are TOML");
    let defaults = table(&Settings::default());
    let mut text = "# Written by `portredir save`.\n".to_owned();
    for (key, value) in table(settings) {
        if key != "rules" && defaults.get(&key) != Some(&value) {
            text += &format!("{key} = {value}\n");
        }
    }
    text += "rules = [\n";
    for rule in &settings.rules {
        let rule = toml::Value::String(rule.to_string());
        text += &format!("    {rule},\n");
    }
    text + "]\n"
}

/// Writes settings to a file: at any moment the file is either the old one or the whole
/// new one.
///
/// # Errors
///
/// [`ConfigError::Write`], [`ConfigError::Beside`].
pub fn save(path: &Path, settings: &Settings) -> Result<(), ConfigError> {
    let write = |error| ConfigError::Write {
        path: path.display().to_string(),
        error,
    };
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    if path.file_name().is_some_and(|name| name == "rules.toml")
        && let Some(other) = additions(dir).into_iter().next()
    {
        return Err(ConfigError::Beside(other));
    }
    fs::create_dir_all(dir).map_err(write)?;
    let mut file = tempfile::Builder::new()
        .prefix(".portredir-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(write)?;
    file.write_all(to_toml(settings).as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .map_err(write)?;
    file.persist(path).map_err(|error| write(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests;
