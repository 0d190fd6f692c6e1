use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};
use proptest::prelude::*;

use super::*;
use crate::config::value::{DrainTimeout, FlowCount};

fn save(path: &Path, settings: &Settings) -> Result<Option<PathBuf>, ConfigError> {
    let place = Place::find(path)?.expect("not standard output");
    place.write(&to_toml(settings))
}

/// One rule.
fn settings() -> Settings {
    Settings {
        rules: vec!["80:8080".parse().expect("a rule")],
        ..Settings::default()
    }
}

const SAVED: &str = "# Written by `portredir save`.\nrules = [\n    \"80:8080\",\n]\n";

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("a file")
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn standard_output_is_no_file() {
    for path in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let place = Place::find(Path::new(path)).expect(path);
        assert!(place.is_none(), "{path}: {place:?}");
    }
    let stream = Place::find(Path::new("/dev/null")).expect("a place");
    assert!(matches!(stream, Some(Place::Stream(_))), "{stream:?}");
}

#[test]
fn links_are_followed() {
    let dir = tempfile::tempdir().expect("a directory");
    let [folder, file, link] =
        ["folder", "folder/real.toml", "link.toml"].map(|name| dir.path().join(name));
    fs::create_dir(&folder).expect("a directory");
    symlink("folder/real.toml", &link).expect("a link");
    // First the file does not exist, then it does.
    for _ in 0..2 {
        assert_eq!(save(&link, &settings()).expect("save"), None);
        assert_eq!(read(&file), SAVED);
        assert!(link.is_symlink());
        assert_eq!(names(&folder), ["real.toml"]);
    }
}

#[test]
fn what_is_no_file_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let pipe = dir.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).expect("a pipe");
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || read(&pipe))
    };
    save(&pipe, &settings()).expect("save");
    assert_eq!(reader.join().expect("a reader"), SAVED);
    assert!(fs::metadata(&pipe).expect("metadata").file_type().is_fifo());
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let message = save(&socket, &settings())
        .expect_err("a socket")
        .to_string();
    assert!(message.contains("is a socket; save to a file"), "{message}");
}

#[test]
fn a_folder_takes_its_main_file_and_none_is_made() {
    let dir = tempfile::tempdir().expect("a directory");
    save(dir.path(), &settings()).expect("save");
    assert_eq!(read(&dir.path().join("rules.toml")), SAVED);
    for name in ["none/rules.toml", "none/", "none/deep/x.toml"] {
        let error = save(&dir.path().join(name), &settings()).expect_err(name);
        assert!(error.to_string().contains("mkdir -p "), "{error}");
    }
    assert_eq!(names(dir.path()), ["rules.toml"]);
}

#[test]
fn mode_and_owner_stay() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("rules.toml");
    fs::write(&path, "# by hand\n").expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
    let owner = if geteuid().is_root() {
        65534
    } else {
        geteuid().as_raw()
    };
    chown(&path, Some(owner), None).expect("chown");
    let backup = save(&path, &settings()).expect("save").expect("a backup");
    for path in [&path, &backup] {
        let metadata = fs::metadata(path).expect("metadata");
        assert_eq!(
            (metadata.mode() & 0o7777, metadata.uid()),
            (0o600, owner),
            "{path:?}"
        );
    }
}

#[test]
fn the_text_of_a_person_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("rules.toml");
    let backup = dir.path().join("rules.toml~");
    assert_eq!(save(&path, &settings()).expect("save"), None);
    // Saved again, what was saved needs no backup.
    assert_eq!(save(&path, &Settings::default()).expect("save"), None);
    // A comment below the head of a saved file is a text of a person.
    for text in [
        "# by hand\nrules = ['80:8080']\n",
        &format!("{SAVED}# OPS-1234\n"),
        "not TOML",
    ] {
        fs::write(&path, text).expect("a file");
        let kept = save(&path, &settings()).expect("save");
        assert_eq!(
            (kept.as_ref(), read(&backup).as_str()),
            (Some(&backup), text)
        );
        assert_eq!(read(&path), SAVED);
        assert_eq!(save(&path, &settings()).expect("save"), None);
        assert_eq!(read(&backup), text);
    }
    assert_eq!(names(dir.path()), ["rules.toml", "rules.toml~"]);
}

#[test]
fn saving_does_not_double_rules() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("conf.d")).expect("a directory");
    fs::write(dir.path().join("conf.d/10.toml"), "rules = ['81:8081']\n").expect("a file");
    let path = dir.path().join("rules.toml");
    let refused = save(&path, &Settings::default()).expect_err("refused");
    assert!(
        refused
            .to_string()
            .contains("conf.d/10.toml also defines rules"),
        "{refused}"
    );
    assert!(!path.exists());
    // By another way, as by its own name.
    let link = dir.path().join("link");
    symlink(&path, &link).expect("a link");
    let refused = save(&link, &Settings::default()).expect_err("refused");
    assert!(matches!(refused, ConfigError::Beside(_)), "{refused}");
}

proptest! {
    #[test]
    fn what_is_saved_loads_the_same(
        ports in proptest::collection::btree_set(1_u16..60_000, 0..5),
        is_hidden: bool,
        flows in 1024_u32..100_000,
        seconds in 0_u32..4000,
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let settings = Settings {
            iface: "eth*,!eth1".parse().expect("a selection"),
            hide_target: is_hidden,
            max_udp_flows: FlowCount::new(flows).expect("a number"),
            drain_timeout: DrainTimeout(Duration::from_millis(u64::from(seconds) * 500)),
            rules: ports.into_iter().map(|port| {
                format!("[2001:db8::1]:{port}:{}/both from 2001:db8::/32 on wg*,eth0", port + 1)
                    .parse()
                    .expect("a rule")
            }).collect(),
            ..Settings::default()
        };
        let path = dir.path().join("rules.toml");
        save(&path, &settings).expect("save");
        let loaded = file::load(&path).expect("load").over(&Settings::default());
        prop_assert_eq!(loaded, settings);
    }
}
