//! A change of a redirect that outlives the command: under the lock of the network
//! namespace, from a clean state.
//!
//! A command that is killed before the switch has changed nothing that is valid;
//! the next command removes what it left.

use super::change::{Action, Change, HostView};
use super::error::{ChangeError, ControllerError};
use super::event::{Event, Interrupted, OnEvent};
use super::watcher::{self, Stubborn};
use super::{Controller, Parts, attach, forwarding};
use crate::config::safety::ChangeOptions;
use crate::config::settings::Settings;
use crate::host::features::Features;
use crate::host::netlink::Netlink;
use crate::host::preflight;
use crate::host::snapshot::Snapshot;
use crate::loader::Datapath;
use crate::loader::pinned::{self, Found};
use crate::state::State;
use crate::state::attachment::Attachment;
use crate::sys::bpffs::PinDir;
use crate::sys::lock::Lock;

/// The right to change the active redirect, and its state.
pub struct Transaction {
    lock: Lock,
    pins: PinDir,
    netlink: Netlink,
    snapshot: Snapshot,
    state: Option<State>,
}

impl Transaction {
    /// Takes the lock, and finishes or undoes what a killed command had begun.
    ///
    /// # Errors
    ///
    /// A privilege is missing, the lock is taken, or a process redirects in the
    /// foreground.
    pub async fn begin(on_event: OnEvent<'_>) -> Result<Self, ControllerError> {
        preflight::check_capabilities()?;
        refuse_foreground()?;
        let lock = match Lock::wait().await {
            Ok(lock) => lock,
            Err(error) => {
                // A foreground run may have started meanwhile.
                refuse_foreground()?;
                return Err(error.into());
            }
        };
        let netlink = Netlink::open()?;
        let snapshot = netlink.snapshot().await?;
        let pins = PinDir::current().map_err(ControllerError::netns)?;
        let interrupted = match pinned::find(&pins)? {
            Found::Nothing => None,
            Found::Live(state) if !state.is_ending => {
                return Ok(Self {
                    lock,
                    pins,
                    netlink,
                    snapshot,
                    state: Some(*state),
                });
            }
            Found::Live(_) => Some(Interrupted::Down),
            Found::Unfinished => Some(Interrupted::Up),
        };
        if let Some(interrupted) = interrupted {
            on_event(Event::Recovered(interrupted));
            remove_all(&pins, &netlink, &snapshot).await?;
        }
        Ok(Self {
            lock,
            pins,
            netlink,
            snapshot,
            state: None,
        })
    }

    /// The state that is valid, if a redirect is active.
    #[must_use]
    pub const fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    /// The settings that are valid.
    ///
    /// # Errors
    ///
    /// [`ControllerError::NotRunning`].
    pub fn settings(&self) -> Result<&Settings, ControllerError> {
        let state = self.state.as_ref().ok_or(ControllerError::NotRunning)?;
        Ok(&state.settings)
    }

    /// Removes the clsact filters that a killed foreground run has left.
    ///
    /// # Errors
    ///
    /// Something cannot be removed.
    pub async fn remove_left(self) -> Result<(), ControllerError> {
        remove_all(&self.pins, &self.netlink, &self.snapshot).await
    }

    /// Works out a change.
    ///
    /// # Errors
    ///
    /// [`ChangeError`].
    pub fn plan(&self, action: Action, options: ChangeOptions) -> Result<Change, ChangeError> {
        let settings = match &action {
            Action::Run(settings) => Some(settings),
            _ => self.state.as_ref().map(|state| &state.settings),
        };
        let cgroup = settings.and_then(|settings| settings.cgroup.path());
        let attached = pinned::attachments(&self.pins).into_iter();
        let host = HostView {
            snapshot: self.snapshot.clone(),
            features: Features::read(cgroup),
            attached: attached
                .filter(|attachment| !attachment.mode.programs.is_empty())
                .map(|attachment| (attachment.report.ifindex, attachment.for_plan()))
                .collect(),
        };
        Change::plan(self.state.as_ref(), (action, options), host)
    }

    /// Carries out a change, and returns the controller with the lock still held.
    ///
    /// # Errors
    ///
    /// Those of [`Controller::apply`]. If no redirect was active before, nothing is left
    /// behind.
    pub async fn apply(
        self,
        change: Change,
        on_event: OnEvent<'_>,
    ) -> Result<Locked, ControllerError> {
        change.check()?;
        let is_new = self.state.is_none();
        let (pins, snapshot) = (self.pins.clone(), self.snapshot.clone());
        let settings = match (&self.state, change.plan_of_interfaces()) {
            (Some(state), None) => state.settings.clone(),
            _ => change.after.clone(),
        };
        // The change was planned with the features that belong to these settings.
        let features = change.host.features.clone();
        let mut locked = self.open_with(settings, features)?;
        let result = locked.controller.apply(change, on_event).await;
        if let Err(error) = result {
            if is_new {
                remove_all(&pins, &locked.controller.netlink, &snapshot).await?;
            }
            return Err(error);
        }
        Ok(locked)
    }

    /// Opens the maps for these settings, and makes them where no redirect is active.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn open(self, settings: Settings) -> Result<Locked, ControllerError> {
        let features = Features::read(settings.cgroup.path());
        self.open_with(settings, features)
    }

    fn open_with(self, settings: Settings, features: Features) -> Result<Locked, ControllerError> {
        let Self {
            lock,
            pins,
            netlink,
            state,
            ..
        } = self;
        if state.is_none() {
            pins.create()?;
        }
        let parts = Parts {
            state: state.unwrap_or_else(|| State::empty(settings.clone())),
            settings,
            netlink,
            pins: Some(pins),
        };
        let controller = Controller::open_with(parts, features)?;
        Ok(Locked { lock, controller })
    }
}

/// A controller whose process holds the lock.
pub struct Locked {
    lock: Lock,
    controller: Controller,
}

impl Locked {
    /// Carries out another change.
    ///
    /// # Errors
    ///
    /// Those of [`Controller::apply`].
    pub async fn apply(
        &mut self,
        action: Action,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        self.controller.act(action, on_event).await
    }

    /// Releases the lock; then waits until the watcher has read the change.
    #[must_use]
    pub fn release(mut self) -> Controller {
        drop(self.lock);
        if let Some(notified) = self.controller.take_notified() {
            notified.wait();
        }
        self.controller
    }
}

/// Detaches all programs and restores the settings that attaching and forwarding changed, then
/// removes maps and state. A killed removal can be repeated.
///
/// # Errors
///
/// Something cannot be removed.
pub(super) async fn remove_all(
    pins: &PinDir,
    netlink: &Netlink,
    snapshot: &Snapshot,
) -> Result<(), ControllerError> {
    let attachments = pinned::attachments(pins);
    let saved = pinned::forwarding(pins);
    pins.remove_links()?;
    for interface in snapshot.interfaces.values() {
        let had_filters = Datapath::sweep(interface);
        let is_known = |attachment: &Attachment| attachment.report.ifindex == interface.index;
        if had_filters && !attachments.iter().any(is_known) {
            // The qdisc has no mark of its maker. A program without filters in it does
            // not miss it.
            let _ = netlink.remove_clsact(interface.index).await;
        }
    }
    for attachment in &attachments {
        attach::restore(netlink, attachment).await;
    }
    forwarding::restore(&saved);
    Ok(pins.remove()?)
}

/// `portredir down --force`: removes everything, whatever state it is in.
///
/// # Errors
///
/// Something cannot be removed.
pub async fn remove_by_force(on_event: OnEvent<'_>) -> Result<(), ControllerError> {
    preflight::check_capabilities()?;
    watcher::stop(Stubborn::Kill, on_event);
    let _lock = match Lock::wait().await {
        Ok(lock) => Some(lock),
        Err(error) => {
            on_event(Event::Unlocked(error.into()));
            None
        }
    };
    let netlink = Netlink::open()?;
    let snapshot = netlink.snapshot().await?;
    remove_all(
        &PinDir::current().map_err(ControllerError::netns)?,
        &netlink,
        &snapshot,
    )
    .await
}

fn refuse_foreground() -> Result<(), ControllerError> {
    match watcher::foreground() {
        Some(who) => Err(ControllerError::Foreground(who.pid)),
        None => Ok(()),
    }
}
