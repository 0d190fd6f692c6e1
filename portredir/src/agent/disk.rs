//! The rules that were applied last, in a file: after a reboot they are in force before the
//! API server answers, which may be behind them.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::config::error::ConfigError;
use crate::config::file;
use crate::rule::Rule;

/// The first line of the file.
const HEAD: &str = "# The rules that the agent applied last. The agent replaces this file.\n";

/// The rules of the file; none if there is no file.
///
/// # Errors
///
/// [`ConfigError`]: the file cannot be read, others could change it, or its rules are wrong.
pub fn load(path: &Path) -> Result<Vec<Rule>, ConfigError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let rules = file::load(path)?.rules.into_iter();
    Ok(rules.map(|sourced| sourced.rule).collect())
}

/// Replaces the file in one step. Only its owner can read it.
///
/// # Errors
///
/// The file cannot be written.
pub fn save(path: &Path, rules: &[Rule]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.exists() {
        fs::create_dir(folder)?;
    }
    let mut file = tempfile::Builder::new()
        .prefix(".agent-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(folder)?;
    file.write_all(text(rules).as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Removes the file, if there is one.
///
/// # Errors
///
/// The file cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn text(rules: &[Rule]) -> String {
    let mut text = format!("{HEAD}rules = [\n");
    for rule in rules {
        text += &format!("    {},\n", toml::Value::String(rule.to_string()));
    }
    text + "]\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_come_back_and_are_for_their_owner_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("agent.toml");
        assert_eq!(load(&path).expect("no file"), []);
        let rules: Vec<Rule> = ["80:8080", "443:10.0.0.5:8443/both check none on eth0"]
            .iter()
            .map(|text| text.parse().expect("a rule"))
            .collect();
        save(&path, &rules).expect("written");
        assert_eq!(load(&path).expect("read"), rules);
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        save(&path, &rules[..1]).expect("replaced");
        assert_eq!(load(&path).expect("read"), rules[..1]);
        remove(&path).expect("removed");
        remove(&path).expect("nothing to remove");
        assert_eq!(load(&path).expect("no file"), []);
    }

    #[test]
    fn a_file_that_others_can_change_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("agent.toml");
        save(&path, &[]).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("a mode");
        load(&path).expect_err("everybody can write it");
    }
}
