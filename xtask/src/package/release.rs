//! The release that a package has.

use std::env;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::root::root;

/// The version and the time that all parts of a package have.
pub struct Release {
    pub version: String,
    /// Seconds since 1970.
    pub epoch: String,
}

impl Release {
    /// The release that the sources are: its time is that of the commit, or the one in
    /// `SOURCE_DATE_EPOCH`.
    pub fn of_sources() -> Result<Self> {
        let epoch = match env::var("SOURCE_DATE_EPOCH") {
            Ok(epoch) => epoch,
            Err(_) => {
                let mut git = Command::new("git");
                git.args(["show", "--no-patch", "--format=%ct", "HEAD"]);
                process::output(git.current_dir(root())).context("find the time of the commit")?
            }
        };
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch,
        })
    }
}
