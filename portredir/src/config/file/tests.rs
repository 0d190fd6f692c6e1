use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::*;
use crate::config::value::FlowCount;
use crate::exit::ExitCode;

fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    // Some users have an umask that lets their group write.
    let additions = dir.path().join("conf.d");
    fs::create_dir(&additions).expect("conf.d");
    set_mode(&additions, 0o755);
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("a file");
        set_mode(&path, 0o644);
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
    assert_eq!(settings.drain_timeout.0, Duration::from_millis(2500));
    let rules: Vec<_> = settings.rules.iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["80:8080", "81:8081", "82:8082"]);
    let one = load(&dir.path().join("conf.d/10.toml")).expect("a file");
    assert_eq!(one.rules.len(), 1);
}

/// The rules of a file, as their canonical texts.
fn rules(text: &str) -> Vec<String> {
    let config = parse(Path::new("FILE"), text.into()).unwrap_or_else(|error| panic!("{error}"));
    let rules = config.rules.iter();
    rules
        .map(|sourced| format!("{}: {}", sourced.origin, sourced.rule))
        .collect()
}

#[test]
fn rules_are_texts_or_tables() {
    let text = r#"
forward = "stack"
rules = ["80:8080"]

[[rule]]
listen = "443"
protocol = "both"
from = ["10.0.0.0/8"]
on = ["wg0", "eth0"]
targets = ["10.0.0.5:8443", { to = "10.0.0.6:8443", weight = 2 }, 9443]
affinity = "client"
snat = "never"
else = 9090
cut = false
check = { http = "/healthz", every = 5, timeout = "500ms", rise = 1, fall = 4 }

[[rule]]
listen = 25
targets = ["10.0.0.7"]
from = ["10.0.0.0/8", "192.168.0.0/16"]
check = "tcp"
cut = true

[[rule]]
listen = "10.1.1.1:81"
targets = [8081]
on = "eth0"

[[rule]]
listen = 53
protocol = "udp"
targets = [{ to = "10.0.0.7" }, "[2001:db8::7]"]
check = { tcp = 53, every = 0.5 }

[[rule]]
listen = "82"
targets = ["10.0.0.7"]
check = { tcp = true }
"#;
    assert_eq!(
        rules(text),
        [
            "FILE:3: 80:8080",
            "FILE:5: 443:10.0.0.5:8443,10.0.0.6:8443=2,9443/both from 10.0.0.0/8 on eth0,wg0 check \
             http:/healthz every 5s timeout 500ms rise 1 fall 4 affinity client else 9090",
            "FILE:17: 25:10.0.0.7 from 10.0.0.0/8 check tcp cut",
            "FILE:17: 25:10.0.0.7 from 192.168.0.0/16 check tcp cut",
            "FILE:24: 10.1.1.1:81:8081 on eth0",
            "FILE:29: 53:10.0.0.7,[2001:db8::7]/udp check tcp:53 every 500ms",
            "FILE:35: 82:10.0.0.7 check tcp",
        ]
    );
    // What is saved is the same rules as texts.
    let config = parse(Path::new("FILE"), text.into()).expect("a file");
    let settings = config.over(&Settings::default());
    let again = parse(Path::new("FILE"), to_toml(&settings).into()).expect("a file");
    assert_eq!(again.over(&Settings::default()), settings);
}

#[test]
fn errors_of_tables_have_their_place() {
    for (table, words) in [
        ("listen = 80", "missing field `targets`"),
        ("targets = [8080]", "missing field `listen`"),
        (
            "listen = 80\ntargets = []",
            "DIR/rules.toml:2: `targets` is empty",
        ),
        (
            "listen = 80\ntargets = [8080]\ncheck = 'tcp'",
            "DIR/rules.toml:2: bad rule `80:8080 check tcp`",
        ),
        (
            "listen = 80\ntargets = ['web:80']",
            "DIR/rules.toml:2: bad rule `80:web:80`",
        ),
        (
            "listen = 80\ntargets = ['10.0.0.5 cut']",
            "DIR/rules.toml:2: `targets = \"10.0.0.5 cut\"` is not one word; write for example \
             targets = [\"10.0.0.5:8080\"]",
        ),
        (
            "listen = 80\ntargets = ['10.0.0.5']\ncheck = { tcp = 1, http = '/' }",
            "DIR/rules.toml:2: a check has one of `tcp`, `udp` and `http`",
        ),
        ("listen = true\ntargets = [8080]", "line 3, column 10"),
        (
            "listen = true\ntargets = [8080]",
            "expected a text in quotes, or a whole number",
        ),
        (
            "listen = 80\ntargets = [{ to = 1, wait = 2 }]",
            "expected a target such as \"10.0.0.5:8080\"",
        ),
        (
            "listen = 80\ntargets = [8080]\nchek = 'tcp'",
            "unknown key `chek`; did you mean `check`?",
        ),
        (
            "listen = 80\ntargets = [8080]\ncheck = { htp = '/' }",
            "expected a check such as \"tcp\"",
        ),
        (
            "listen = 80\ntargets = ['10.0.0.5']\nsnat = 'auto'",
            "the source address cannot be changed yet",
        ),
    ] {
        let error = error(&format!("hide-target = true\n[[rule]]\n{table}\n"));
        assert!(error.contains(words), "{table}: {error}");
    }
    let error = error("forward = 'direct'");
    assert!(
        error.contains("`direct` comes with a later version; use `stack`"),
        "{error}"
    );
}

#[test]
fn errors_are_in_plain_words() {
    for (text, words) in [
        ("rules = '80:8080'", "line 1, column 9"),
        (
            "rules = '80:8080'",
            "expected a list in brackets, found the text \"80:8080\"",
        ),
        (
            "rules = [80]",
            "expected a text in quotes, found the number `80`",
        ),
        (
            "engine = 'fast'",
            "unknown value `fast`; expected one of auto, xdp, tc, socket, xdp-generic",
        ),
        ("engine = 'xpd'", "unknown value `xpd`; did you mean `xdp`?"),
        (
            "hide_target = true",
            "unknown key `hide_target`; did you mean `hide-target`?",
        ),
        ("Hide-Target = true", "did you mean `hide-target`?"),
        (
            "no-local = 'yes'",
            "expected true or false, found the text \"yes\"",
        ),
        (
            "max-tcp-flows = '9'",
            "expected a whole number, found the text \"9\"",
        ),
        (
            "max-tcp-flows = -1",
            "expected a whole number, found the number `-1`",
        ),
        (
            "cgroup = 1",
            "expected a path in quotes, found the number `1`",
        ),
        (
            "drain-timeout = []",
            "expected a duration, for example 10, \"10s\" or \"5min\", found a list",
        ),
        (
            "drain-timeout = '2h'",
            "7200 is not between 0 and 3600 seconds",
        ),
        (
            "drain-timeout = 'soon'",
            "expected a duration, for example 10, 10s",
        ),
        ("iface = ''", "empty interface name"),
        ("drain-timeout = -1", "-1 is not between 0 and 3600 seconds"),
        ("drain-timeout = nan", "NaN is not between"),
        ("max-tcp-flows = 1", "1 is not between 1024 and 16777216"),
        ("max-udp-flows = 99999999", "99999999 is not between"),
        ("rules = ['80:8080'\n", "line 1"),
    ] {
        let message = error(text);
        assert!(message.contains(words), "{text}: {message}");
    }
}

#[test]
fn durations_have_units() {
    for (text, millis) in [
        ("10", 10_000),
        ("2.5", 2500),
        ("'10'", 10_000),
        ("'10s'", 10_000),
        ("'500 ms'", 500),
        ("'5min'", 300_000),
        ("'1m 30s'", 90_000),
        ("'1h'", 3_600_000),
    ] {
        let dir = dir(&[("rules.toml", &format!("drain-timeout = {text}\n"))]);
        let settings = load(dir.path()).expect(text).over(&Settings::default());
        assert_eq!(
            settings.drain_timeout.0,
            Duration::from_millis(millis),
            "{text}"
        );
    }
}

#[test]
fn what_a_file_does_not_say_stays() {
    let dir = dir(&[("rules.toml", "no-local = false\nrules = []\n")]);
    let base = Settings {
        no_local: true,
        if_listening: true,
        max_tcp_flows: FlowCount::fixed(2048),
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
        message.contains("unknown key `ifaces`; did you mean `iface`?"),
        "{message}"
    );
    let message = error("rules = ['80:8080',\n'80-81:8080',\n'80:9090']\n");
    assert!(
        message
            .contains("`80:9090` (DIR/rules.toml:3) never matches: `80:8080` (DIR/rules.toml:1)"),
        "{message}"
    );
    let none = load(Path::new("/nonexistent/rules.toml"))
        .expect_err("no file")
        .to_string();
    assert!(none.contains("create the file"), "{none}");
}

#[test]
fn all_bad_rules_of_a_file_are_named() {
    let message = error(
        "rules = [\n  '80:8080',\n  '81:',\n  '82:x',\n]\n[[rule]]\nlisten = 80\ntargets = []\n",
    );
    let places: Vec<_> = message
        .lines()
        .filter_map(|line| line.strip_prefix("DIR/rules.toml:")?.get(..1))
        .collect();
    assert_eq!(places, ["3", "4", "6"], "{message}");
    let many = format!("rules = [\n{}]\n", "'81:',\n".repeat(23));
    let message = error(&many);
    assert_eq!(message.matches("bad rule `81:`").count(), 20, "{message}");
    assert!(
        message.ends_with("\nmistakes that are not shown: 3"),
        "{message}"
    );
}

#[test]
fn what_anybody_may_write_is_refused() {
    let dir = dir(&[("rules.toml", "rules = []")]);
    let path = dir.path().join("rules.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("chmod");
    let message = load(&path).expect_err("writable").to_string();
    assert!(message.contains("chmod go-w"), "{message}");
}

#[test]
fn files_without_an_end_are_refused() {
    let message = load(Path::new("/dev/zero"))
        .expect_err("no end")
        .to_string();
    assert!(message.contains("larger than 64 MiB"), "{message}");
}

#[test]
fn a_folder_that_cannot_be_listed_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("conf.d"), "").expect("a file");
    let message = load(dir.path()).expect_err("no directory").to_string();
    assert!(message.contains("conf.d: Not a directory"), "{message}");
}

#[test]
fn the_exit_code_says_whose_fault_an_error_is() {
    for (errno, code) in [
        (libc::ENOENT, ExitCode::Usage),
        (libc::ENOTDIR, ExitCode::Usage),
        (libc::EISDIR, ExitCode::Usage),
        (libc::EACCES, ExitCode::NotPermitted),
        (libc::EPERM, ExitCode::Failed),
        (libc::ENOSPC, ExitCode::Failed),
        (libc::EROFS, ExitCode::Failed),
        (libc::EIO, ExitCode::Failed),
    ] {
        let error = || io::Error::from_raw_os_error(errno);
        for error in [
            ConfigError::write(Path::new("x"), error()),
            ConfigError::read(Path::new("x"), error()),
        ] {
            let is_written = matches!(error, ConfigError::Write { .. });
            let code = match code {
                // Such a folder takes no files.
                ExitCode::Usage if is_written && errno == libc::ENOENT => ExitCode::Failed,
                code => code,
            };
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}
