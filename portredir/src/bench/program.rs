//! Programs of other packages: where they are, and whether they can be used.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The path of a program. Also searches the directories that root's search path has.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// The stream module of nginx: built in (`Some(None)`) or in a file.
#[must_use]
pub fn nginx_module() -> Option<Option<PathBuf>> {
    let output = Command::new(find("nginx")?).arg("-V").output().ok()?;
    let about = String::from_utf8_lossy(&output.stderr).into_owned();
    let words: Vec<_> = about.split_ascii_whitespace().collect();
    if words.contains(&"--with-stream") {
        return Some(None);
    }
    let dir = words
        .iter()
        .find_map(|word| word.strip_prefix("--modules-path="))
        .unwrap_or("/usr/lib/nginx/modules");
    let path = Path::new(dir).join("ngx_stream_module.so");
    path.exists().then_some(Some(path))
}
