//! The man pages and the completions have all that the program has.

use std::fs;
use std::process::Command;

use clap::CommandFactory as _;
use portredir::cli::Cli;

use crate::{failure, portredir};

/// The commands of the program.
fn commands() -> Vec<clap::Command> {
    let mut cli = Cli::command();
    cli.build();
    cli.get_subcommands().cloned().collect()
}

/// The text of a man page, as the format writes hyphens.
fn page(name: &str) -> String {
    let output = portredir(&["man", name]);
    assert!(output.status.success(), "{name}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn each_command_and_option_has_its_place_in_a_man_page() {
    let whole = page("portredir");
    for command in commands() {
        let name = command.get_name();
        assert!(
            whole.contains(&format!("portredir\\-{name}(1)")),
            "{name}: {whole}"
        );
        let page = page(name);
        assert!(page.contains("\n.SH DESCRIPTION\n"), "{page}");
        assert!(page.is_ascii(), "{page}");
        assert!(
            !page.contains("\n\n.TP\n"),
            "an option without a text in {page}"
        );
        let options = command.get_opts().filter(|option| !option.is_hide_set());
        for long in options.filter_map(clap::Arg::get_long) {
            let long = format!("\\-\\-{}", long.replace('-', "\\-"));
            assert!(page.contains(&long), "{long} in {page}");
        }
    }
    let (code, message) = failure(&["man", "stauts"]);
    assert_eq!(code, Some(2));
    assert!(message.contains("no man page `stauts`"), "{message}");
}

#[test]
fn each_key_has_its_place_in_the_page_about_files() {
    let page = page("portredir.toml");
    let up = commands()
        .into_iter()
        .find(|command| command.get_name() == "up");
    let up = up.expect("a command");
    // What has a variable can stand in a file.
    let options = up
        .get_arguments()
        .filter(|option| option.get_env().is_some());
    let keys: Vec<_> = options.filter_map(clap::Arg::get_long).collect();
    assert!(keys.len() >= 11, "{keys:?}");
    for key in keys.into_iter().chain(["rules"]) {
        assert!(page.contains(&format!("\n.B {key}\n")), "{key} in {page}");
    }
}

#[test]
fn man_pages_have_no_faults() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("text");
    assert!(portredir(&["man", "--dir", path]).status.success());
    let pages: Vec<_> = fs::read_dir(path).expect("pages").flatten().collect();
    assert!(pages.len() > commands().len());
    if Command::new("groff").arg("-v").output().is_err() {
        println!("skipped: needs groff");
        return;
    }
    for page in pages {
        let groff = Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-rLL=80n"])
            .arg(page.path())
            .output()
            .expect("run groff");
        let said = String::from_utf8_lossy(&groff.stderr);
        assert_eq!(said, "", "{:?}", page.path());
    }
}

/// Has Bash complete a line, with the real program.
fn bash(line: &str) -> Vec<String> {
    let script = r#"
        PATH=$(dirname "$PROGRAM"):$PATH
        source <(portredir completions bash)
        COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
        _portredir portredir
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let bash = Command::new("bash")
        .args(["--norc", "-c", script, "bash", line])
        .env("PROGRAM", env!("CARGO_BIN_EXE_portredir"))
        .output()
        .expect("run bash");
    let text = String::from_utf8(bash.stdout).expect("text");
    text.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_interfaces() {
    let all = bash("portredir ");
    let shown = commands()
        .into_iter()
        .filter(|command| !command.is_hide_set());
    for command in shown {
        assert!(all.iter().any(|word| word == command.get_name()), "{all:?}");
    }
    assert_eq!(bash("portredir stat"), ["status"]);
    assert_eq!(bash("portredir status --no"), ["--no-header"]);
    assert_eq!(bash("portredir plan --iface l"), ["lo"]);
    assert_eq!(bash("portredir plan --iface all,!l"), ["all,!lo"]);
    assert_eq!(bash("portredir plan -i l"), ["lo"]);
    assert_eq!(bash("portredir plan --iface=l"), ["lo"]);
    assert_eq!(bash("portredir completions z"), ["zsh"]);
}

#[test]
fn other_shells_accept_their_scripts() {
    for (shell, check) in [
        ("zsh", "compdef() { :; }; source /dev/stdin"),
        ("fish", "source"),
    ] {
        let script = portredir(&["completions", shell]);
        assert!(script.status.success());
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("script");
        fs::write(&path, script.stdout).expect("a file");
        let input = fs::File::open(&path).expect("the file");
        match Command::new(shell)
            .args(["-c", check])
            .stdin(input)
            .output()
        {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(_) => println!("skipped: needs {shell}"),
        }
    }
}
