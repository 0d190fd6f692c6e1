//! Packages of a program that is a script: what is in them, and that their bytes do not
//! depend on the folder and the time.

use std::env;
use std::process::Command;

use super::*;

/// Stands for the program: a script with man pages and completions.
const PROGRAM: &str = "#!/bin/sh
case $1 in
man) mkdir -p $3; echo .TH portredir 1 >$3/portredir.1; echo .TH portredir.toml 5 >$3/portredir.toml.5 ;;
completions) echo \"# $2\" ;;
esac
";

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder =
            env::temp_dir().join(format!("portredir-package-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn release() -> Release {
    Release {
        version: "1.2.3".to_owned(),
        epoch: "1700000000".to_owned(),
    }
}

/// Packs in two folders, with a moment between, and returns the first package.
fn pack_twice(name: &str, pack: impl Fn(&Tree, &Path) -> Result<PathBuf>) -> (Folder, PathBuf) {
    let release = release();
    let folder = Folder::new(name);
    let program = folder.0.join("program");
    fs::write(&program, PROGRAM).expect("a file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, mode).expect("a mode");
    let packages = ["a", "longer/name"].map(|name| {
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let tree = Tree {
            release: &release,
            root: folder.0.join(name),
        };
        pack(&tree, &program).expect("a package")
    });
    let [first, second] = packages;
    assert_eq!(
        sha256(&first).expect("a file"),
        sha256(&second).expect("a file"),
        "{name}: two builds differ"
    );
    (folder, first)
}

fn ask(program: &str, args: &[&str], path: &Path) -> String {
    process::output(Command::new(program).args(args).arg(path)).expect(program)
}

/// A Debian package has the hash of its program, for `dpkg --verify`.
fn has_hashes(package: &Path, program: &Path) {
    let mut ask_for = Command::new("dpkg-deb");
    let sums = process::output(ask_for.arg("--info").arg(package).arg("md5sums"));
    let sum = ask("md5sum", &[], program);
    let sum = sum.split_whitespace().next().expect("a hash");
    let line = format!("{sum}  usr/bin/portredir\n");
    assert!(sums.expect("the md5sums").contains(&line), "{line}");
}

#[test]
fn a_debian_package_has_its_parts() {
    if process::find("dpkg-deb").is_none() {
        println!("skipped: needs dpkg-deb");
        return;
    }
    let pack = |tree: &Tree, program: &Path| deb::pack_for(tree, program, "2.34");
    let (folder, package) = pack_twice("deb", pack);
    let files = ask("dpkg-deb", &["--contents"], &package);
    for (mode, file) in [
        ("-rwxr-xr-x root/root", "./usr/bin/portredir"),
        ("-rw-r--r-- root/root", "./etc/portredir/rules.toml"),
        ("drwxr-xr-x root/root", "./etc/portredir/conf.d/"),
        (
            "-rw-r--r-- root/root",
            "./usr/lib/systemd/system/portredir.service",
        ),
        (
            "-rw-r--r-- root/root",
            "./usr/share/man/man1/portredir.1.gz",
        ),
        (
            "-rw-r--r-- root/root",
            "./usr/share/man/man5/portredir.toml.5.gz",
        ),
        (
            "-rw-r--r-- root/root",
            "./usr/share/bash-completion/completions/portredir",
        ),
        (
            "-rw-r--r-- root/root",
            "./usr/share/zsh/vendor-completions/_portredir",
        ),
    ] {
        let line = files.lines().find(|line| line.ends_with(file));
        assert!(
            line.is_some_and(|line| line.starts_with(mode)),
            "{file} in {files}"
        );
    }
    let control = ask("dpkg-deb", &["--field"], &package);
    for line in [
        "Version: 1.2.3-1",
        "Depends: libc6 (>= 2.34), libgcc-s1, passwd",
    ] {
        assert!(control.lines().any(|said| said == line), "{control}");
    }
    has_hashes(&package, &folder.0.join("program"));
    let conffiles = process::output(
        Command::new("dpkg-deb")
            .arg("--info")
            .arg(&package)
            .arg("conffiles"),
    );
    assert_eq!(
        conffiles.expect("the conffiles"),
        "/etc/portredir/rules.toml"
    );
}

#[test]
fn an_rpm_package_has_its_parts() {
    if process::find("rpmbuild").is_none() {
        println!("skipped: needs rpmbuild");
        return;
    }
    let (_folder, package) = pack_twice("rpm", rpm::pack);
    let files = ask("rpm", &["--query", "--package", "--list"], &package);
    for file in [
        "/usr/bin/portredir",
        "/usr/share/zsh/site-functions/_portredir",
    ] {
        assert!(files.lines().any(|line| line == file), "{file} in {files}");
    }
    let config = ask("rpm", &["--query", "--package", "--configfiles"], &package);
    assert_eq!(config, "/etc/portredir/rules.toml");
}

#[test]
fn a_tarball_goes_below_usr_local() {
    let (_folder, package) = pack_twice("tar", tar::pack);
    let files = ask("tar", &["-tzf"], &package);
    let top = "portredir-1.2.3-x86_64-linux/";
    for file in [
        "bin/portredir",
        "share/man/man1/portredir.1.gz",
        "share/doc/portredir/rules.toml",
    ] {
        let file = format!("{top}{file}");
        assert!(files.lines().any(|line| line == file), "{file} in {files}");
    }
    let unit = format!("{top}lib/systemd/system/portredir.service");
    let text = process::output(Command::new("tar").arg("-xOzf").arg(&package).arg(unit));
    let text = text.expect("the unit");
    assert!(
        text.contains("ExecStart=/usr/local/bin/portredir up"),
        "{text}"
    );
    assert!(!text.contains("/usr/bin/portredir"), "{text}");
}

/// An upgrade reloads, and nothing but a removal ends a redirect.
#[test]
fn no_script_ends_a_redirect_on_an_upgrade() {
    for (script, words) in [
        ("postinst", &["reload portredir"][..]),
        ("prerm", &["disable --now", "down"]),
    ] {
        let path = root().join("packaging/deb").join(script);
        let text = fs::read_to_string(&path).expect("a script");
        assert!(
            !text.contains("restart portredir") && !text.contains("start portredir"),
            "{text}"
        );
        for words in words {
            assert!(text.contains(words), "{words} in {text}");
        }
        let checked = Command::new("sh")
            .arg("-n")
            .arg(&path)
            .status()
            .expect("sh");
        assert!(checked.success(), "{script}");
    }
}
