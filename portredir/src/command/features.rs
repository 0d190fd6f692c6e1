//! `portredir features`: this build, and what this kernel has of what engines need.

use std::fs;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::print;
use crate::cli::FeaturesArgs;
use crate::cli::version::{BUILD, Build};
use crate::host::features::Features;
use crate::host::preflight;
use crate::observe::table::Header;
use crate::sys::bpffs::{self, Mount};

/// The version of the layout; raised when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// The object that `features --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    #[serde(flatten)]
    build: &'a Build,
    kernel: String,
    features: Vec<Feature>,
}

/// A feature of the kernel or the host.
#[derive(Serialize)]
struct Feature {
    name: &'static str,
    /// Whether the host has the feature; `None` where this user may not ask.
    present: Option<bool>,
    /// The use of the feature.
    needed_for: &'static str,
}

/// `portredir features`.
///
/// # Errors
///
/// Standard output cannot be written.
pub fn features(args: FeaturesArgs) -> anyhow::Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let report = Report {
        schema: SCHEMA,
        build: &BUILD,
        kernel: release.trim().to_owned(),
        features: of_host(),
    };
    if args.json {
        return print(&(serde_json::to_string(&report)? + "\n"));
    }
    let text = format!(
        "portredir {}\nkernel: Linux {}\n",
        report.build.text(),
        report.kernel
    );
    print(&(text + &table(&report.features, args.table.into())))
}

fn of_host() -> Vec<Feature> {
    let host = Features::read(None);
    let has_basics = preflight::check_capabilities()
        .is_ok()
        .then(|| preflight::check_kernel().is_ok());
    let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable");
    vec![
        Feature {
            name: "basics",
            present: has_basics,
            needed_for: "every engine: map types and helpers",
        },
        Feature {
            name: "tcx",
            present: host.tcx,
            needed_for: "tc programs that end with their process (Linux 6.6)",
        },
        Feature {
            name: "sk_lookup",
            present: preflight::has_sk_lookup(),
            needed_for: "--engine socket (Linux 5.9)",
        },
        Feature {
            name: "cgroup2",
            present: Some(host.cgroup.is_some()),
            needed_for: "clients on this host",
        },
        Feature {
            name: "bpffs",
            present: Some(bpffs::mount() == Mount::Mounted),
            needed_for: "`up`, which mounts it where it is missing",
        },
        Feature {
            name: "jit",
            present: jit.ok().map(|jit| jit.trim() != "0"),
            needed_for: "the speed of every engine",
        },
    ]
}

fn table(features: &[Feature], header: Header) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["FEATURE", "PRESENT", "NEEDED FOR"]);
    for feature in features {
        let present = match feature.present {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        table.add_row([feature.name, present, feature.needed_for]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = header.lines(table.lines());
    lines
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}
