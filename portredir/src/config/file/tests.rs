use super::*;
use std::time::Duration;

use proptest::prelude::*;

use crate::config::value::{DrainTimeout, FlowCount};

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
    assert_eq!(settings.drain_timeout.0, Duration::from_millis(2500));
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
        message.contains("unknown field `ifaces`, expected one of"),
        "{message}"
    );
    for (text, words) in [
        ("rules = '80:8080'", "line 1, column 9"),
        ("engine = 'fast'", "unknown variant `fast`"),
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
            max_udp_flows: FlowCount::fixed(flows),
            drain_timeout: DrainTimeout(Duration::from_millis(u64::from(seconds) * 500)),
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
