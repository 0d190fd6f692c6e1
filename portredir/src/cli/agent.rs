//! The command of the Kubernetes node agent.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::file::{self, ConfigError};
use crate::config::settings::{Options, Settings};
use crate::config::value::{self, ValueError};

/// `portredir agent`.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Print the definitions of PortRedirect and PortRedirectNode, and end.
    #[arg(long)]
    pub print_crds: bool,

    /// End the redirect of this node, and remove the file of the last rules.
    #[arg(long)]
    pub cleanup: bool,

    /// Do nothing until SIGTERM: for the pod that has cleaned up.
    #[arg(long)]
    pub pause: bool,

    /// The name of the Node object of this host.
    #[arg(long, value_name = "NAME", env = "NODE_NAME", hide_env = true)]
    #[arg(required_unless_present_any = ["print_crds", "cleanup", "pause"])]
    pub node: Option<String>,

    /// Answer probes and serve metrics at this address.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9474")]
    pub listen: SocketAddr,

    /// The file that keeps the last rules for the time after a reboot.
    #[arg(long, value_name = "PATH")]
    #[arg(default_value = "/var/lib/portredir/agent.toml")]
    pub state: PathBuf,

    /// How long the API server may be silent until the node is not ready.
    ///
    /// The last rules stay in force, however long it is silent.
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = time)]
    pub stale_after: Duration,

    /// The namespace of the Lease whose holder writes the status of PortRedirects.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", hide_env = true)]
    pub namespace: Option<String>,

    /// Also read rules and options from a file or a directory; its rules come before those
    /// of the API.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,

    /// The options of the redirect.
    #[command(flatten)]
    pub options: Options,
}

impl AgentArgs {
    /// The settings: options that are given here or in the environment override those of
    /// the file, which override the defaults.
    ///
    /// # Errors
    ///
    /// The file is invalid.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let base = match &self.config {
            Some(path) => file::load(path)?.over(&Settings::default()),
            None => Settings::default(),
        };
        Ok(self.options.over(&base))
    }
}

fn time(text: &str) -> Result<Duration, ValueError> {
    value::duration(text, 1.0)
}
