//! Configuration files: which are read, and how their errors end.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::{check_file, failure};

/// A folder, and a file in it that has one rule.
fn one_rule(name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    fs::write(&path, "rules = ['80:8080']\n").expect("a file");
    set_mode(&path, 0o644);
    (dir, path)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// Exit code and what was said on stderr.
fn outcome(output: &Output) -> (Option<i32>, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn a_folder_that_others_may_write_is_refused() {
    let (dir, path) = one_rule("rules.toml");
    assert_eq!(check_file(&path).status.code(), Some(0));
    set_mode(dir.path(), 0o777);
    for path in [dir.path(), &path] {
        let (code, said) = outcome(&check_file(path));
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("chmod go-w "), "{said}");
    }
    let (_link_dir, link) = one_rule("link.toml");
    fs::remove_file(&link).expect("remove");
    symlink(&path, &link).expect("a link");
    assert_eq!(check_file(&link).status.code(), Some(2));
}

#[test]
fn the_file_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root, to give a file away");
        return;
    }
    let (_dir, path) = one_rule("rules.toml");
    std::os::unix::fs::chown(&path, Some(65534), None).expect("chown");
    let (code, said) = outcome(&check_file(&path));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("belongs to user nobody"), "{said}");
    // The user who called sudo is obeyed.
    let output = Command::new(env!("CARGO_BIN_EXE_portredir"))
        .arg("check")
        .arg(&path)
        .env("SUDO_UID", "65534")
        .output();
    let output = output.expect("run portredir");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn files_without_an_end_end() {
    let (code, said) = failure(&["check", "/dev/zero"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("/dev/zero is larger than 64 MiB"), "{said}");
}

#[test]
fn standard_input_is_a_file() {
    let (_dir, path) = one_rule("rules.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_portredir"))
        .args(["check", "-"])
        .stdin(Stdio::from(fs::File::open(&path).expect("a file")))
        .output();
    let output = output.expect("run portredir");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "OK: 1 rule\n",
        "{output:?}"
    );
}

#[test]
fn check_warns_of_a_lock_out() {
    let (_dir, path) = one_rule("rules.toml");
    fs::write(&path, "rules = ['22:2222']\n").expect("a file");
    let (code, said) = outcome(&check_file(&path));
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.starts_with("warning: ") && said.contains("port 22, the SSH port"),
        "{said}"
    );
}

#[test]
fn check_warns_of_a_rule_on_lo_that_matches_nothing() {
    let (_dir, path) = one_rule("rules.toml");
    for (option, why) in [
        (
            "no-local = true",
            "local clients are not redirected (--no-local)",
        ),
        ("iface = 'eth0'", "--iface does not select it"),
        ("iface = 'all,!lo'", "--iface does not select it"),
    ] {
        let text = format!("{option}\nrules = ['80:8080 on lo', '81:8081']\n");
        fs::write(&path, text).expect("a file");
        let (code, said) = outcome(&check_file(&path));
        let warning = format!("warning: rule `80:8080 on lo` matches nothing on lo: {why}\n");
        assert_eq!((code, said), (Some(0), warning));
    }
    fs::write(&path, "rules = ['80:8080 on lo']\n").expect("a file");
    let (code, said) = outcome(&check_file(&path));
    assert_eq!((code, said.as_str()), (Some(0), ""));
}

#[test]
fn a_plan_and_a_check_know_the_limits() {
    let (_dir, path) = one_rule("rules.toml");
    let rules: Vec<_> = (1..=40_000)
        .map(|i| format!("10.{}.{}.{}:80:8080", i >> 16, i >> 8 & 255, i & 255))
        .collect();
    fs::write(&path, format!("rules = {rules:?}\n")).expect("a file");
    let path = path.to_str().expect("text");
    for args in [&["check", path][..], &["plan", "--config", path]] {
        let (code, said) = failure(args);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("the maximum is"), "{said}");
    }
}
