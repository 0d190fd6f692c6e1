//! The engines: how connections are redirected.

use serde::{Deserialize, Serialize};

/// The value of `--engine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineChoice {
    /// The best engine for each interface; never generic XDP.
    #[default]
    Auto,
    /// Native XDP; on loopback, the same as auto.
    Xdp,
    /// TC on every interface: TCX, or clsact before Linux 6.6.
    Tc,
    /// Assign new connections to the listening socket (BPF sk_lookup), without rewriting
    /// packets; TCP only.
    Socket,
    /// Generic XDP: works on every device but is slower than TC; on loopback, the same
    /// as auto.
    XdpGeneric,
    /// TC by clsact even where TCX exists; for tests.
    #[value(hide = true)]
    TcClsact,
}

/// The way in which connections that come in by an interface are redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// XDP in the driver rewrites packets.
    XdpNative,
    /// XDP in the stack rewrites packets.
    XdpGeneric,
    /// TC ingress rewrites packets: TCX, else clsact.
    Tc,
    /// TC ingress by clsact rewrites packets.
    TcClsact,
    /// `sk_lookup` hands TCP connections to the server's socket. One program serves the
    /// network namespace and checks the ingress interface of connections.
    Lookup,
    /// The connect, sendmsg and recvmsg hooks of a cgroup: local clients connect to the
    /// target port. For loopback.
    Cgroup,
}

impl Engine {
    /// The name in the plan and in `--json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::XdpNative => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc | Self::TcClsact => "tc",
            Self::Lookup => "socket",
            Self::Cgroup => "local",
        }
    }

    /// Whether the engine of this name sees packets, and not only connections.
    #[must_use]
    pub fn sees_packets(name: &str) -> bool {
        ![Self::Lookup, Self::Cgroup].map(Self::name).contains(&name)
    }

    /// The hook to which the engine attaches, as far as it is known beforehand.
    #[must_use]
    pub const fn hook(self, has_tcx: Option<bool>) -> &'static str {
        match (self, has_tcx) {
            (Self::XdpNative, _) => "native",
            (Self::XdpGeneric, _) => "generic",
            (Self::Tc, Some(true)) => "tcx",
            (Self::Tc, None) => "tcx or clsact",
            (Self::Tc, Some(false)) | (Self::TcClsact, _) => "clsact",
            (Self::Lookup, _) => "sk_lookup",
            (Self::Cgroup, _) => "cgroup",
        }
    }
}
