//! The files of a package, as they lie in the file system where it is installed.

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use super::release::Release;
use crate::process;
use crate::root::root;

/// The folder of a package, and the release.
pub struct Tree<'a> {
    pub release: &'a Release,
    /// The folder, which is emptied first.
    pub root: PathBuf,
}

/// The folders that distributions differ in.
pub struct Places {
    pub zsh: &'static str,
}

impl Tree<'_> {
    /// The folder of the files to install.
    pub fn files(&self) -> PathBuf {
        self.root.join("files")
    }

    /// The path of a finished package.
    pub fn finished(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Puts all files in their places.
    pub fn fill(&self, program: &Path, places: &Places) -> Result<()> {
        if self.root.exists() {
            fs::remove_dir_all(&self.root).context("empty the folder of the package")?;
        }
        let unit = "packaging/systemd/portredir.service";
        self.copy(program, ("usr/bin/portredir", 0o755))?;
        for (from, to) in [
            (unit, "usr/lib/systemd/system/portredir.service"),
            ("packaging/rules.toml", "etc/portredir/rules.toml"),
            ("README.md", "usr/share/doc/portredir/README.md"),
            ("docs/CONFIG.md", "usr/share/doc/portredir/CONFIG.md"),
            ("docs/LIMITS.md", "usr/share/doc/portredir/LIMITS.md"),
            (
                "docs/OPERATIONS.md",
                "usr/share/doc/portredir/OPERATIONS.md",
            ),
        ] {
            self.copy(&root().join(from), (to, 0o644))?;
        }
        self.folder("etc/portredir/conf.d")?;
        let changes = fs::read(root().join("CHANGELOG.md")).context("read CHANGELOG.md")?;
        self.compressed("usr/share/doc/portredir/changelog", &changes)?;
        for (shell, to) in [
            ("bash", "usr/share/bash-completion/completions/portredir"),
            ("zsh", places.zsh),
            ("fish", "usr/share/fish/vendor_completions.d/portredir.fish"),
        ] {
            let mut program = Command::new(program);
            let script = process::output(program.args(["completions", shell]))?;
            self.write(to, (script + "\n").as_bytes(), 0o644)?;
        }
        self.man_pages(program)
    }

    fn man_pages(&self, program: &Path) -> Result<()> {
        let dir = self.root.join("man");
        let mut program = Command::new(program);
        process::run(program.args(["man", "--dir"]).arg(&dir))?;
        for page in fs::read_dir(&dir).context("list the man pages")? {
            let path = page?.path();
            let section = path.extension().context("find the section")?;
            let name = path.file_name().context("find the name")?;
            let to = Path::new("usr/share/man").join(format!("man{}", section.display()));
            let text = fs::read(&path)?;
            self.compressed(&to.join(name).display().to_string(), &text)?;
        }
        Ok(())
    }

    fn path(&self, to: &str) -> Result<PathBuf> {
        let path = self.files().join(to);
        let folder = path.parent().context("find the folder")?;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(path)
    }

    fn copy(&self, from: &Path, (to, mode): (&str, u32)) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.write(to, &bytes, mode)
    }

    /// Makes a folder.
    pub fn folder(&self, to: &str) -> Result<()> {
        fs::create_dir_all(self.files().join(to)).with_context(|| format!("create {to}"))
    }

    /// Writes a file.
    pub fn write(&self, to: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let path = self.path(to)?;
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(())
    }

    /// Writes a file that gzip compresses, without a name and a time in it.
    pub fn compressed(&self, to: &str, bytes: &[u8]) -> Result<()> {
        self.write(to, bytes, 0o644)?;
        let mut gzip = Command::new("gzip");
        let status = gzip
            .args(["-9", "-n", "-f"])
            .arg(self.path(to)?)
            .stdin(Stdio::null())
            .status();
        ensure!(status.context("start gzip")?.success(), "gzip {to}");
        Ok(())
    }

    /// Gives all files and folders the time of the release, and all folders one mode.
    pub fn settle(&self, folder: &Path) -> Result<()> {
        let seconds = self
            .release
            .epoch
            .parse()
            .context("read the time of the release")?;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else {
                    set_time(&entry.path(), time)?;
                }
            }
            fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
            set_time(&folder, time)?;
        }
        Ok(())
    }
}

fn set_time(path: &Path, time: SystemTime) -> Result<()> {
    let times = FileTimes::new().set_modified(time);
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.set_times(times)
        .with_context(|| format!("set the time of {}", path.display()))
}
