//! Settings in files: `rules.toml`, and the additions of `conf.d`.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

pub use super::error::{ConfigError, DIR};
use super::plain;
use super::settings::{Options, Settings};
use super::trust;
use crate::rule::{Labels, Origin, Sourced};
use crate::ruleset::shadow;

/// The size in bytes beyond which no file is read: more than the largest number of rules
/// needs.
const LARGEST: u64 = 64 << 20;

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
        let options = self.options.over(base);
        options.with_rules(self.rules.iter().cloned())
    }
}

/// Reads a file, or, of a directory, `rules.toml` and `conf.d/*.toml` in the order of
/// names. A later file overrides options; rules are added up. The path `-` is standard
/// input.
///
/// # Errors
///
/// [`ConfigError`], with the place.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    if is_standard(path) {
        let name = Path::new("standard input");
        let config = parse(name, read_all(name, &mut io::stdin().lock())?)?;
        shadow::check(&config.rules)?;
        return Ok(config);
    }
    let mut paths = vec![path.to_owned()];
    if path.is_dir() {
        paths = additions(path)?;
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

/// Whether a path means standard input or standard output.
#[must_use]
pub fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// The files of `conf.d`, by name.
pub(super) fn additions(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = dir.join("conf.d");
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let entries = entries.map_err(|error| ConfigError::read(&dir, error))?;
    let paths = entries.into_iter().map(|entry| entry.path());
    let mut paths: Vec<_> = paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    paths.sort();
    Ok(paths)
}

fn load_file(path: &Path) -> Result<Config, ConfigError> {
    let read = |error| ConfigError::read(path, error);
    let mut file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    trust::check(path, &metadata)?;
    let bytes = read_all(path, &mut file)?;
    parse(path, bytes)
}

/// Reads to the end, which some files do not have.
fn read_all(path: &Path, from: &mut impl io::Read) -> Result<Vec<u8>, ConfigError> {
    let mut bytes = Vec::new();
    from.take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| ConfigError::read(path, error))?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= LARGEST) {
        Ok(bytes)
    } else {
        let path = path.display().to_string();
        let largest_mib = LARGEST >> 20;
        Err(ConfigError::Large { path, largest_mib })
    }
}

/// Reads the bytes of a file.
///
/// # Errors
///
/// [`ConfigError::Toml`], or the mistakes of all rules and tables, each with its place.
pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Config, ConfigError> {
    let toml = |message: String| ConfigError::Toml {
        path: path.display().to_string(),
        message: message.trim_end().to_owned(),
    };
    let text = String::from_utf8(bytes).map_err(|_| toml("not UTF-8 text".into()))?;
    let mut options: Options = toml::from_str(&text).map_err(|error| toml(plain::text(&error)))?;
    let lines = Lines::of(&text);
    let origin = |start: usize| Origin::File {
        path: path.to_owned(),
        line: lines.line(start),
    };
    let (mut rules, mut mistakes) = (Vec::new(), Vec::new());
    let mut add = |rule: Result<Sourced, ConfigError>| match rule {
        Ok(rule) => rules.push(rule),
        Err(mistake) => mistakes.push(mistake),
    };
    for rule in std::mem::take(&mut options.rules) {
        let origin = origin(rule.span().start);
        add(Sourced::parse(rule.get_ref(), origin).map_err(ConfigError::from));
    }
    // A list of texts cannot come after a table.
    for table in std::mem::take(&mut options.rule) {
        let origin = origin(table.span().start);
        match table.get_ref().texts() {
            Ok(texts) => texts
                .iter()
                .map(|text| Sourced::parse(text, origin.clone()).map_err(ConfigError::from))
                .for_each(&mut add),
            Err(error) => add(Err(ConfigError::Table { origin, error })),
        }
    }
    match ConfigError::of(mistakes) {
        None => Ok(Config { options, rules }),
        Some(mistake) => Err(mistake),
    }
}

/// The lines of a text.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    /// The number of the line of a byte, from 1.
    fn line(&self, at: usize) -> usize {
        1 + self.0.partition_point(|end| *end < at)
    }
}

/// The options that differ from their defaults, as they are written in a file.
#[must_use]
pub fn changed_options(settings: &Settings) -> Vec<String> {
    let (defaults, table) = (options(&Settings::default()), options(settings));
    let changed = table.iter();
    let changed = changed.filter(|(key, value)| defaults.get(*key) != Some(*value));
    changed
        .map(|(key, value)| format!("{key} = {value}"))
        .collect()
}

/// The value of each option, as it is written in a file; an option that is off by being left out
/// has none.
#[must_use]
pub fn options(settings: &Settings) -> toml::Table {
    let settings = Settings {
        rules: Vec::new(),
        labels: Labels::default(),
        ..settings.clone()
    };
    let mut table = toml::Table::try_from(settings).expect("settings are TOML");
    table.remove("rules");
    table
}

/// Settings as a file: every rule, and each option that differs from its default.
#[must_use]
pub fn to_toml(settings: &Settings) -> String {
    let mut text = "# Written by `portredir save`.\n".to_owned();
    for option in changed_options(settings) {
        text += &format!("{option}\n");
    }
    text += "rules = [\n";
    for rule in settings.labelled() {
        let rule = toml::Value::String(rule.to_string());
        text += &format!("    {rule},\n");
    }
    text + "]\n"
}

#[cfg(test)]
mod tests;
