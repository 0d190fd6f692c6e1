//! Settings in files: `rules.toml`, and the files of `conf.d` that add to it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::options::Options;
use super::settings::Settings;
use crate::exit::ExitCode;
use crate::rule::{Origin, Rule, Sourced, SourcedError};
use crate::ruleset::shadow::{self, ConflictError};

/// The directory of the files, unless a path is given.
pub const DIR: &str = "/etc/portredir";

/// A file of settings, or the rules of a command line, are wrong.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("read {path}: {error}{hint}")]
    Read {
        /// The path of the file.
        path: String,
        /// The kernel's error.
        error: io::Error,
        /// The advice, or nothing.
        hint: &'static str,
    },
    /// Every user may write rules into the file, which root would then apply.
    #[error("{path} is world-writable; fix with: chmod o-w {path}")]
    Writable {
        /// The path of the file.
        path: String,
    },
    /// The text is not TOML, or has an unknown key or a wrong value.
    #[error("{path}: {message}")]
    Toml {
        /// The path of the file.
        path: String,
        /// The message of the library, with line and column.
        message: String,
    },
    /// A rule cannot be parsed.
    #[error(transparent)]
    Rule(#[from] SourcedError),
    /// The rules do not work together.
    #[error(transparent)]
    Conflict(#[from] ConflictError),
    /// A file cannot be written.
    #[error("write {path}: {error}")]
    Write {
        /// The path of the file.
        path: String,
        /// The kernel's error.
        error: io::Error,
    },
    /// Saved rules would be loaded twice at the next start.
    #[error(
        "{} also defines rules, which would then be loaded twice; move that file away first, or \
         save to another path", .0.display()
    )]
    Beside(PathBuf),
}

impl ConfigError {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        ExitCode::Usage
    }
}

/// The options and rules of files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    options: Options,
    /// All rules, in order, each with its place.
    pub rules: Vec<Sourced>,
}

impl Config {
    /// Puts the rules and options of the files in the place of those of `base`.
    #[must_use]
    pub fn over(&self, base: &Settings) -> Settings {
        Settings {
            rules: self
                .rules
                .iter()
                .map(|sourced| sourced.rule.clone())
                .collect(),
            ..self.options.clone().over(base.clone())
        }
    }
}

/// Loads a file, or `rules.toml` and `conf.d/*.toml` of a directory. The files of
/// `conf.d` come in the order of their names: options of a later file win, and rules are
/// added up.
///
/// # Errors
///
/// [`ConfigError`], with the place of the mistake.
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
        config.options = config.options.merge(more.options);
        config.rules.extend(more.rules);
    }
    shadow::check(&config.rules)?;
    Ok(config)
}

/// The files of `conf.d`, in the order of their names.
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

/// Parses the bytes of a file.
///
/// # Errors
///
/// [`ConfigError::Toml`] and [`ConfigError::Rule`], with the place of the mistake.
pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Config, ConfigError> {
    let toml = |message: String| ConfigError::Toml {
        path: path.display().to_string(),
        message: message.trim_end().to_owned(),
    };
    let text = String::from_utf8(bytes).map_err(|_| toml("not UTF-8 text".into()))?;
    let mut options: Options = toml::from_str(&text).map_err(|error| toml(error.to_string()))?;
    let mut rules = Vec::new();
    // Rules come in the order of the text.
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

/// Formats settings as a file: the options that differ from the defaults, and every rule.
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

/// Writes settings to a file, atomically: at any moment either the old file exists or the
/// whole new one.
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
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("conf.d")).expect("conf.d");
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("a file");
        }
        dir
    }

    fn error(text: &str) -> String {
        let dir = dir(&[("rules.toml", text)]);
        let error = load(dir.path()).expect_err(text).to_string();
        error.replace(&dir.path().display().to_string(), "DIR")
    }

    #[test]
    fn later_files_add_rules_and_overrule_options() {
        let dir = dir(&[
            (
                "rules.toml",
                "iface = 'eth0'\nhide-target = true\nrules = ['80:8080']\n",
            ),
            ("conf.d/20.toml", "iface = 'eth1'\nrules = ['82:8082']\n"),
            (
                "conf.d/10.toml",
                "iface = 'eth2'\ndrain-timeout = 2.5\nrules = ['81:8081']\n",
            ),
            ("conf.d/not", "nonsense"),
        ]);
        let settings = load(dir.path())
            .expect("settings")
            .over(&Settings::default());
        assert_eq!(settings.iface.to_string(), "eth1");
        assert!(settings.hide_target);
        assert_eq!(settings.drain_timeout, Duration::from_millis(2500));
        let rules: Vec<_> = settings.rules.iter().map(ToString::to_string).collect();
        assert_eq!(rules, ["80:8080", "81:8081", "82:8082"]);
        let one = load(&dir.path().join("conf.d/10.toml")).expect("a file");
        assert_eq!(one.rules.len(), 1);
    }

    #[test]
    fn what_a_file_does_not_say_stays() {
        let dir = dir(&[("rules.toml", "no-local = false\nrules = []\n")]);
        let base = Settings {
            no_local: true,
            if_listening: true,
            max_tcp_flows: 2048,
            rules: vec!["80:8080".parse().expect("a rule")],
            ..Settings::default()
        };
        let settings = load(dir.path()).expect("settings").over(&base);
        let expected = Settings {
            no_local: false,
            rules: Vec::new(),
            ..base
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn errors_name_the_place() {
        let message = error("rules = [\n  '80:8080',\n  '81:',\n]\n");
        assert!(
            message.starts_with("DIR/rules.toml:3: bad rule `81:`"),
            "{message}"
        );
        let message = error("rules = ['80:8080']\nifaces = 'eth0'\n");
        assert!(
            message.starts_with("DIR/rules.toml: TOML parse error at line 2, column 1"),
            "{message}"
        );
        assert!(
            message.contains("unknown field `ifaces`, expected one of"),
            "{message}"
        );
        for (text, words) in [
            ("rules = '80:8080'", "line 1, column 9"),
            ("engine = 'fast'", "unknown variant `fast`"),
            ("iface = ''", "empty interface name"),
            (
                "drain-timeout = -1",
                "drain-timeout: -1 is not between 0 and 3600 seconds",
            ),
            ("drain-timeout = nan", "drain-timeout: NaN is not between"),
            (
                "max-tcp-flows = 1",
                "max-tcp-flows: 1 is not between 1024 and 16777216",
            ),
            (
                "max-udp-flows = 99999999",
                "max-udp-flows: 99999999 is not between",
            ),
            ("rules = ['80:8080'\n", "line 1"),
        ] {
            let message = error(text);
            assert!(message.contains(words), "{text}: {message}");
        }
        let message = error("rules = ['80:8080',\n'80-81:8080',\n'80:9090']\n");
        assert!(
            message.contains(
                "`80:9090` (DIR/rules.toml:3) never matches: `80:8080` (DIR/rules.toml:1)"
            ),
            "{message}"
        );
        let none = load(Path::new("/nonexistent/rules.toml"))
            .expect_err("no file")
            .to_string();
        assert!(none.contains("create the file"), "{none}");
    }

    #[test]
    fn what_anybody_may_write_is_refused() {
        let dir = dir(&[("rules.toml", "rules = []")]);
        let path = dir.path().join("rules.toml");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("chmod");
        let message = load(&path).expect_err("writable").to_string();
        assert!(message.contains("chmod o-w"), "{message}");
    }

    #[test]
    fn saving_does_not_double_rules() {
        let dir = dir(&[("conf.d/10.toml", "rules = ['81:8081']\n")]);
        let path = dir.path().join("rules.toml");
        let refused = save(&path, &Settings::default()).expect_err("refused");
        assert!(
            refused
                .to_string()
                .contains("conf.d/10.toml also defines rules"),
            "{refused}"
        );
        assert!(!path.exists());
    }

    proptest! {
        #[test]
        fn what_is_saved_loads_the_same(
            ports in proptest::collection::btree_set(1_u16..60_000, 0..5),
            is_hidden: bool,
            flows in 1024_u32..100_000,
            seconds in 0_u32..4000,
        ) {
            let dir = dir(&[]);
            let settings = Settings {
                iface: "eth*,!eth1".parse().expect("a selection"),
                hide_target: is_hidden,
                max_udp_flows: flows,
                drain_timeout: Duration::from_millis(u64::from(seconds) * 500),
                rules: ports.into_iter().map(|port| {
                    format!("[2001:db8::1]:{port}:{}/both from 2001:db8::/32 on wg*,eth0", port + 1)
                        .parse()
                        .expect("a rule")
                }).collect(),
                ..Settings::default()
            };
            let path = dir.path().join("new").join("rules.toml");
            save(&path, &settings).expect("save");
            let loaded = load(&path).expect("load").over(&Settings::default());
            prop_assert_eq!(loaded, settings);
        }
    }
}
