//! The one owner of a redirect: it opens the maps, carries out a
//! [`change::Change`], keeps what is attached in step with the host, and reports.
//!
//! In the foreground a redirect lives as long as the process; with pins it outlives the
//! process. Nothing here prints: the caller gets an [`event::Event`].

mod apply;
mod attach;
pub mod change;
pub mod checker;
mod commit;
mod drain;
pub mod error;
pub mod event;
pub mod event_loop;
mod fights;
mod forwarding;
pub mod health;
mod log;
pub mod metrics;
mod reconcile;
mod repair;
pub mod status;
mod taken;
pub mod targets;
pub mod tracing;
pub mod transaction;
pub mod watcher;
pub mod ways;

use std::collections::{BTreeMap, BTreeSet};

use self::change::HostView;
use self::error::ControllerError;
use self::fights::Fights;
use self::watcher::Notified;
use crate::config::settings::Settings;
use crate::host::features::Features;
use crate::host::forwarding::Saved;
use crate::host::netlink::{HostChange, Netlink};
use crate::host::snapshot::Snapshot;
use crate::ipc::scrape::Scrapes;
use crate::loader::pinned;
use crate::loader::{Datapath, Options, Sizes, Unregistered};
use crate::observe::attached::Interface;
use crate::observe::metrics::Reconciled;
use crate::observe::report::Report;
use crate::ruleset::compile::Table;
use crate::state::State;
use crate::state::attachment::Attachment;
use crate::sys::bpffs::PinDir;

pub use self::commit::check_limits;

/// A redirect of this network namespace, active or about to be.
pub struct Controller {
    state: State,
    features: Features,
    netlink: Netlink,
    datapath: Datapath,
    table: Table,
    /// The directory of the pins, if the redirect outlives the process.
    pins: Option<PinDir>,
    attachments: BTreeMap<u32, Attachment>,
    /// Interfaces whose attaching or detaching was interrupted by a kill.
    unfinished: Vec<Attachment>,
    /// The last reports about interfaces and about servers; only news are events.
    told_interfaces: BTreeSet<String>,
    told_failures: BTreeSet<String>,
    told_servers: BTreeSet<String>,
    /// The servers that a socket lookup cannot deliver to, when they were last counted.
    unregistered: Vec<Unregistered>,
    told_local: Option<String>,
    /// Whether it was told that sockets of this host cannot be ended.
    told_sockets: bool,
    told_ipsec: Option<String>,
    told_ipsec_failure: Option<String>,
    /// The interfaces to which nothing could be attached, by index.
    lost: BTreeMap<u32, Interface>,
    fights: Fights,
    /// The switches of forwarding that were off before.
    forwarding: Saved,
    reconciled: Reconciled,
    /// The server of metrics, in a process that keeps the redirect.
    scrapes: Option<Scrapes>,
    told_metrics: Option<String>,
    /// The watcher, which has been notified of a change that it may read now.
    notified: Option<Notified>,
}

/// The parts that a [`Controller`] is opened with.
pub struct Parts {
    /// The settings that the maps are made for.
    pub settings: Settings,
    /// The state that is valid now.
    pub state: State,
    /// A netlink socket of this network namespace.
    pub netlink: Netlink,
    /// The directory of the pins, if the redirect outlives the process; `None` in the
    /// foreground.
    pub pins: Option<PinDir>,
}

impl Parts {
    /// The parts of the redirect that is pinned.
    fn pinned(state: State, pins: PinDir) -> Result<Self, ControllerError> {
        Ok(Self {
            settings: state.settings.clone(),
            state,
            netlink: Netlink::open()?,
            pins: Some(pins),
        })
    }
}

impl Controller {
    /// Creates the maps, or opens those that are pinned; attaches nothing.
    ///
    /// The table of rules stays empty until the state is read again, or until
    /// [`Self::apply`], because compiling rules takes time.
    ///
    /// # Errors
    ///
    /// [`ControllerError::Datapath`].
    pub fn open(parts: Parts) -> Result<Self, ControllerError> {
        let features = Features::read(parts.settings.cgroup.path());
        Self::open_with(parts, features)
    }

    /// Opens the maps as [`Self::open`] does, for a caller who has read the features of
    /// the host with these settings.
    ///
    /// # Errors
    ///
    /// [`ControllerError::Datapath`].
    pub fn open_with(parts: Parts, features: Features) -> Result<Self, ControllerError> {
        let Parts {
            settings,
            state,
            netlink,
            pins,
        } = parts;
        let options = Options {
            sizes: Sizes {
                tcp_flows: settings.max_tcp_flows.get(),
                udp_flows: settings.max_udp_flows.get(),
            },
            cgroup: features.cgroup.clone(),
            is_cgroup_named: settings.cgroup.path().is_some(),
            allow_loopback_target: settings.allow_loopback_target,
            is_everywhere: settings.iface.is_everything() && !settings.no_local,
            seed: None,
        };
        let datapath = Datapath::load(options, pins.as_ref())?;
        let mut controller = Self {
            table: Table::default(),
            state,
            features,
            netlink,
            datapath,
            pins,
            attachments: BTreeMap::new(),
            unfinished: Vec::new(),
            told_interfaces: BTreeSet::new(),
            told_failures: BTreeSet::new(),
            told_servers: BTreeSet::new(),
            unregistered: Vec::new(),
            told_local: None,
            told_sockets: false,
            told_ipsec: None,
            told_ipsec_failure: None,
            lost: BTreeMap::new(),
            fights: Fights::default(),
            forwarding: Saved::default(),
            reconciled: Reconciled::default(),
            scrapes: None,
            told_metrics: None,
            notified: None,
        };
        controller.adopt();
        Ok(controller)
    }

    /// Adopts the programs that another process has left active.
    fn adopt(&mut self) {
        let Some(pins) = &self.pins else {
            return;
        };
        self.datapath.forget();
        self.attachments.clear();
        self.unfinished.clear();
        for attachment in pinned::attachments(pins) {
            let index = attachment.report.ifindex;
            if attachment.mode.programs.is_empty() {
                self.unfinished.push(attachment);
            } else {
                self.datapath
                    .adopt(index, attachment.engine, &attachment.mode);
                self.attachments.insert(index, attachment);
            }
        }
        self.datapath.adopt_ipsec();
    }

    /// The state that is valid.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Waits until interfaces or addresses have changed. Connections to an address that
    /// arrives meanwhile are redirected at once.
    ///
    /// A change is not lost when the wait is given up before its end.
    pub async fn host_changed(&mut self) {
        while let HostChange::Arrived(addr) = self.netlink.changed().await {
            // When this fails the next reconciliation tries again, and reports.
            let _ = self.datapath.add_local(addr);
        }
    }

    /// The host in the form that [`change::Change::plan`] needs.
    ///
    /// # Errors
    ///
    /// Interfaces or addresses cannot be listed.
    pub async fn host_view(&self) -> Result<HostView, ControllerError> {
        Ok(self.view_of(self.netlink.snapshot().await?))
    }

    fn view_of(&self, snapshot: Snapshot) -> HostView {
        let attached = self.attachments.iter();
        HostView {
            snapshot,
            features: self.features.clone(),
            attached: attached
                .map(|(&index, attachment)| (index, attachment.for_plan()))
                .collect(),
        }
    }

    /// The watcher, if it has been notified of a change.
    pub fn take_notified(&mut self) -> Option<Notified> {
        self.notified.take()
    }

    /// The interfaces with their hooks, of which the kernel is asked.
    fn inspect(&self) -> Vec<Interface> {
        let attached = self.attachments.iter().map(|(&index, attachment)| {
            Interface::new(attachment.report.clone(), self.datapath.inspect(index))
        });
        attached.chain(self.lost.values().cloned()).collect()
    }

    /// The counters of the running rules.
    ///
    /// # Errors
    ///
    /// The counters cannot be read.
    pub fn report(&self) -> Result<Report, ControllerError> {
        self.report_of(&self.state)
    }

    /// The counters of the rules of a state.
    ///
    /// # Errors
    ///
    /// The counters cannot be read.
    pub fn report_of(&self, state: &State) -> Result<Report, ControllerError> {
        Ok(Report::new(
            &state.rules(),
            self.inspect(),
            &self.datapath.counters()?,
            &self.datapath.reasons()?,
        ))
    }
}
