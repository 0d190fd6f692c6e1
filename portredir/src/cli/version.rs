//! The version of this program: the release, the commit, the date, and the compiled programs.

use std::sync::LazyLock;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The text of `portredir --version`.
pub(super) static LONG: LazyLock<String> = LazyLock::new(|| BUILD.text());

/// This build.
pub static BUILD: LazyLock<Build> = LazyLock::new(Build::this);

/// A build of the program.
#[derive(Clone, Debug, Serialize)]
pub struct Build {
    /// The version of the release.
    pub version: &'static str,
    /// The commit, with `-dirty` when files differed from it; `None` in a build for
    /// development.
    pub commit: Option<&'static str>,
    /// The time of the commit, or the one in `SOURCE_DATE_EPOCH`.
    pub built: Option<Timestamp>,
    /// The compiled eBPF programs.
    pub object: Object,
}

/// The record of the compiled eBPF programs, which is made with them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Object {
    /// The SHA-256 of the object.
    #[serde(rename(deserialize = "object_sha256"))]
    pub sha256: String,
    /// The compiler that made the object.
    pub rustc: String,
    /// The linker that made the object.
    pub bpf_linker: String,
}

impl Build {
    fn this() -> Self {
        let epoch = option_env!("PORTREDIR_EPOCH").and_then(|epoch| epoch.parse().ok());
        let record = include_str!("../../ebpf/portredir.bpf.json");
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("PORTREDIR_COMMIT"),
            built: epoch.and_then(|epoch| Timestamp::from_second(epoch).ok()),
            object: serde_json::from_str(record).expect("the build writes the record"),
        }
    }

    /// The lines of `portredir --version`, after the name of the program.
    #[must_use]
    pub fn text(&self) -> String {
        let Self {
            version,
            commit,
            built,
            object,
        } = self;
        let built = built.map(|built| built.to_string());
        format!(
            "{version}\ncommit: {}\nbuilt: {}\neBPF object: sha256 {}",
            commit.unwrap_or("unknown (development build)"),
            built.as_deref().unwrap_or("unknown"),
            object.sha256
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_names_its_commit_and_its_date() {
        let build = Build {
            commit: Some("0123456789ab"),
            built: Some(Timestamp::UNIX_EPOCH),
            ..Build::this()
        };
        let text = build.text();
        assert!(text.contains("\ncommit: 0123456789ab\n"), "{text}");
        assert!(text.contains("\nbuilt: 1970-01-01T00:00:00Z\n"), "{text}");
        assert_eq!(build.object.sha256.len(), 64);
    }
}
