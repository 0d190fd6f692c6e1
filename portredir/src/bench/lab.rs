//! The hosts of the benchmark.
//!
//! ```text
//!   client c1 ---- s0 variant 1      198.18.1.1   198.18.1.2
//!          c2 ---- s0 variant 2      198.18.2.1   198.18.2.2
//!          …
//! ```
//!
//! In [`Topology::Forward`] the server of a variant is behind it, on a host of its own; in
//! [`Topology::Local`] the client is a process of the variant's host besides.
//!
//! ```text
//!   client c1 ---- s0 variant 1 b0 ---- e0 server 1    198.18.129.1   198.18.129.2
//! ```
//!
//! All variants exist before the first is measured: to make a namespace costs more than a
//! measurement. Addresses are of 198.18.0.0/15, which is for benchmarks (RFC 2544).

mod links;

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

pub use self::links::ends;
use self::links::{SETTINGS, host_behind, ip, link, mac_text};
use crate::bench::load::request::{Link, Place, Target};
use crate::bench::namespace::{Dir, Namespace};
use crate::bench::process::{Launch, OURSELVES, Process, Scheduling};
use crate::bench::program;
use crate::bench::redirector::{self, INTERFACE};
use crate::bench::stop::Stop;
use crate::bench::traffic::FLOWS;
use crate::bench::variant::rules::CONNTRACK;
use crate::bench::variant::{Ends, Subject, Variant};
use crate::bench::{conntrack, server, verify};
use crate::cli::{Opponent, Topology};
use crate::host::features::Features;
use crate::sys::ethtool::{self, Switch};

/// A cgroup that is deleted when dropped, after its processes.
///
/// portredir learns of servers and connections by programs on a cgroup. On the root
/// cgroup, every other variant would pay for them too. Each variant has a cgroup, because
/// a cgroup has a cost of its own.
#[derive(Debug)]
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(root: &Path, name: &str) -> Option<Self> {
        let path = root.join(name);
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Killed processes take a moment to end.
        for _ in 0..100 {
            match fs::remove_dir(&self.0) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                _ => return,
            }
        }
        log::warn!("{} is still busy", self.0.display());
    }
}

/// A running variant. Its processes end before its namespace does.
#[derive(Debug)]
pub struct Site {
    /// The process that redirects, where one does.
    pub redirector: Option<Process>,
    server: Process,
    cgroup: Option<Cgroup>,
    namespace: Namespace,
    /// The host behind, where the server is on one.
    behind: Option<Namespace>,
    number: u8,
}

/// A variant and its state.
#[derive(Debug)]
pub struct Member {
    /// The variant.
    pub variant: Variant,
    /// The version that the redirecting program reports.
    pub version: Option<String>,
    /// Whether it can be measured.
    pub state: State,
}

/// The state of a variant.
#[derive(Debug)]
pub enum State {
    /// The variant works.
    Ready(Box<Site>),
    /// The variant cannot be tried here, for this reason.
    Skipped(String),
    /// The variant was tried and did not work, for this reason.
    Failed(String),
}

impl Member {
    /// The namespace and the processes of the variant, if it works.
    #[must_use]
    pub fn site(&self) -> Option<&Site> {
        match &self.state {
            State::Ready(site) => Some(site),
            _ => None,
        }
    }
}

/// The means of a run.
#[derive(Clone, Copy, Debug)]
pub struct Means<'a> {
    /// The directory for files and names.
    pub dir: &'a Dir,
    /// The processor and the priority of processes.
    pub scheduling: Scheduling,
    /// The signal to end.
    pub stop: &'a Stop,
}

/// All hosts.
#[derive(Debug)]
pub struct Lab {
    /// The members, one for each variant that was asked for.
    pub members: Vec<Member>,
    /// The namespace of the clients.
    pub client: Namespace,
    /// The directory in which cgroups are made, if any.
    cgroups: Option<PathBuf>,
}

impl Lab {
    /// Makes all hosts; reports each before it is made.
    ///
    /// # Errors
    ///
    /// When nothing can be measured here. The error of one variant is in its [`Member`].
    pub fn new(
        variants: &[Variant],
        means: Means<'_>,
        mut on_variant: impl FnMut(&Variant),
    ) -> anyhow::Result<Self> {
        let Means { dir, stop, .. } = means;
        let name = &dir.name;
        let client = Namespace::new(format!("{name}-c"))?;
        client.run(&mut ip(), "link set lo up\n")?;
        client.sysctl(&SETTINGS)?;
        client.sysctl(&[
            // Some ten thousand connections a second are made and closed here.
            ("ipv4/tcp_tw_reuse", "1"),
            ("ipv4/ip_local_port_range", "1024 65535"),
            // A server that does not answer is soon given up.
            ("ipv4/tcp_syn_retries", "1"),
        ])?;
        let mut lab = Self {
            members: Vec::new(),
            client,
            cgroups: Features::read(None).cgroup,
        };
        let mut versions = HashMap::new();
        for (number, variant) in (1..=u8::MAX).zip(variants) {
            stop.check()?;
            on_variant(variant);
            let version = match variant.subject {
                Subject::Against(opponent) => Some(
                    versions
                        .entry(opponent.name())
                        .or_insert_with(|| opponent.version())
                        .clone(),
                ),
                Subject::Ours(_) => Some(Ok(env!("CARGO_PKG_VERSION").to_owned())),
                _ => None,
            };
            let state = match &version {
                Some(Err(reason)) => State::Skipped(reason.clone()),
                _ => match lab.site(means, number, variant) {
                    Ok(site) => State::Ready(Box::new(site)),
                    Err(error) if is_optional(variant.subject) => {
                        State::Skipped(format!("this kernel does not take its rules: {error:#}"))
                    }
                    Err(error) => State::Failed(format!("{error:#}")),
                },
            };
            lab.members.push(Member {
                variant: *variant,
                version: version.and_then(Result::ok),
                state,
            });
        }
        Ok(lab)
    }

    fn site(&self, means: Means<'_>, number: u8, variant: &Variant) -> anyhow::Result<Site> {
        let Means {
            dir, scheduling, ..
        } = means;
        let namespace = Namespace::new(format!("{}-{number}", dir.name))?;
        namespace.sysctl(&SETTINGS)?;
        namespace.sysctl(&[
            ("core/somaxconn", "65535"),
            ("ipv4/tcp_max_syn_backlog", "65535"),
        ])?;
        self.link(&namespace, number)?;
        if variant.has_conntrack {
            let mut nft = Command::new("nft");
            namespace.run(nft.args(["-f", "-"]), CONNTRACK)?;
        }
        let root = self.cgroups.as_deref();
        let cgroup = root.and_then(|root| Cgroup::new(root, &namespace.name));
        let dir = dir.inner(&number.to_string())?;
        let launch = Launch {
            namespace: Some(&namespace),
            scheduling: Some(scheduling),
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.0.as_path()),
            dir: &dir,
            is_piped: false,
        };
        let behind = match variant.topology {
            Topology::Host => None,
            Topology::Forward | Topology::Local => {
                Some(host_behind(&namespace, number).context("make the host behind")?)
            }
        };
        let server_launch = match &behind {
            // Programs on the cgroup are about the host that redirects.
            Some(behind) => Launch {
                namespace: Some(behind),
                cgroup: None,
                ..launch
            },
            None => launch,
        };
        let mut server = server_launch.start(&[OURSELVES, "bench", "serve"])?;
        let is_ready = |server: &Process| server.said().contains(server::READY);
        server.wait_until("listens", is_ready)?;
        let redirector =
            redirector::start(variant, ends(number), launch).with_context(|| variant.name())?;
        Ok(Site {
            redirector,
            server,
            cgroup,
            namespace,
            behind,
            number,
        })
    }

    /// Adds a link between client and variant.
    fn link(&self, namespace: &Namespace, number: u8) -> anyhow::Result<()> {
        let Link {
            ifindex,
            addr,
            mac,
            server_mac,
        } = link(number);
        let (mac, server_mac) = (mac_text(mac), mac_text(server_mac));
        let Ends {
            host: server,
            behind,
        } = ends(number);
        let peer = &namespace.name;
        self.client.run(
            &mut ip(),
            &format!(
                "link add c{number} index {ifindex} address {mac} type veth \
                peer name {INTERFACE} address {server_mac} netns {peer}\n\
             addr add {addr}/24 dev c{number}\n\
             link set c{number} up\n\
             route add {behind}/32 via {server}\n\
             neigh replace {server} lladdr {server_mac} dev c{number} nud permanent\n"
            ),
        )?;
        let [a, b, _, _] = FLOWS;
        namespace.run(
            &mut ip(),
            &format!(
                "link set lo up\n\
             addr add {server}/24 dev {INTERFACE}\n\
             link set {INTERFACE} up\n\
             neigh replace {addr} lladdr {mac} dev {INTERFACE} nud permanent\n\
             route add {a}.{b}.0.0/16 via {addr}\n"
            ),
        )
    }
}

impl Site {
    /// The target for the client.
    #[must_use]
    pub fn target(&self, variant: &Variant) -> Target {
        let addr = variant.dialled(ends(self.number));
        let place = (variant.topology == Topology::Local).then(|| Place {
            namespace: self.namespace.path(),
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.0.clone()),
        });
        Target {
            addr: SocketAddrV4::new(addr, variant.dst_port().get()),
            link: Some(link(self.number)),
            place,
        }
    }

    /// Checks the variant from the place of its own client.
    ///
    /// # Errors
    ///
    /// When a check fails; the error names it.
    pub fn verify(&self, addr: SocketAddrV4, means: Means<'_>) -> anyhow::Result<()> {
        let launch = Launch {
            namespace: Some(&self.namespace),
            scheduling: None,
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.0.as_path()),
            dir: &means.dir.inner(&self.number.to_string())?,
            is_piped: false,
        };
        let mut verifier = launch.start(&[OURSELVES, "bench", "verify", &addr.to_string()])?;
        let is_verified = |verifier: &Process| verifier.said().contains(verify::VERIFIED);
        verifier.wait_until("verified", is_verified)
    }

    /// Turns on or off the handling of incoming packets in batches, which frames without
    /// a socket buffer need (`veth_xdp_xmit` in drivers/net/veth.c).
    ///
    /// # Errors
    ///
    /// When the interface refuses.
    pub fn set_gro(&self, to: Switch) -> anyhow::Result<()> {
        let set = || ethtool::set_feature(INTERFACE, "rx-gro", to);
        self.namespace.enter(set)?.context("switch GRO")
    }

    /// Deletes all tracked connections.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn flush_conntrack(&self) -> anyhow::Result<()> {
        self.namespace.enter(conntrack::flush)?
    }

    /// The number of datagrams that the server's socket filter has dropped; the server
    /// answers all others.
    ///
    /// # Errors
    ///
    /// When the kernel's counters cannot be read.
    pub fn dropped(&self) -> anyhow::Result<u64> {
        let server = self.behind.as_ref().unwrap_or(&self.namespace);
        let snmp = server.proc_net("snmp")?;
        let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = lines
            .next()
            .zip(lines.next())
            .context("read Udp: of snmp")?;
        let mut columns = names.split(' ').zip(values.split(' '));
        let (_, value) = columns
            .find(|(name, _)| *name == "InErrors")
            .context("read InErrors of snmp")?;
        value.parse().context("read InErrors of snmp")
    }

    /// Runs `f` in the namespace.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> anyhow::Result<T> {
        self.namespace.enter(f)
    }

    /// The server's process ID.
    #[must_use]
    pub fn server_id(&self) -> u32 {
        self.server.id()
    }
}

/// Whether a kernel may lack what the subject is made of.
const fn is_optional(subject: Subject) -> bool {
    matches!(
        subject,
        Subject::Against(Opponent::NftFlowtable | Opponent::Ipvs)
    )
}

/// Makes a host without links to other hosts.
///
/// # Errors
///
/// When `ip` fails.
pub fn alone(name: String) -> anyhow::Result<Namespace> {
    let namespace = Namespace::new(name)?;
    let batch = format!(
        "link set lo up\nlink add {INTERFACE} type veth peer name s1\nlink set s1 up\naddr add 198.18.0.2/24 dev {INTERFACE}\n\
         link set {INTERFACE} up\n"
    );
    namespace.run(&mut ip(), &batch)?;
    Ok(namespace)
}

/// Checks that the programs that every run needs are installed.
///
/// # Errors
///
/// When one is missing; the error names the first.
pub fn check_tools() -> anyhow::Result<()> {
    const TOOLS: [(&str, &str); 5] = [
        ("ip", "iproute2"),
        ("setpriv", "util-linux"),
        ("taskset", "util-linux"),
        ("chrt", "util-linux"),
        ("sh", "dash"),
    ];
    for (tool, package) in TOOLS {
        if program::find(tool).is_none() {
            bail!("{tool} is missing (Debian package {package})");
        }
    }
    if !Path::new("/proc/self/ns/net").exists() {
        bail!("this kernel has no network namespaces");
    }
    Ok(())
}
