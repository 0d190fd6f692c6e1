//! The agent of one node: the watcher of the redirect in the main thread, and in a second
//! thread the API, which changes the redirect as a command does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kube::Client;
use thiserror::Error;
use tokio::sync::watch as channel;
use tokio::time::{Interval, sleep};

use super::apply::apply;
use super::claims::{Claim, refused};
use super::desired::{Base, Desired, desired};
use super::disk;
use super::health::Health;
use super::leader::Candidate;
use super::needs::{self, NeedError};
use super::server;
use super::watch::{Watches, text};
use super::writer::{self, Wanted};
use crate::config::safety::ChangeOptions;
use crate::config::settings::Settings;
use crate::controller::Controller;
use crate::controller::change::Action;
use crate::controller::error::ControllerError;
use crate::controller::event::Event;
use crate::controller::event_loop;
use crate::controller::transaction::Transaction;
use crate::controller::watcher::{self, Stubborn};
use crate::host::preflight;
use crate::loader::chain;
use crate::rule::Rule;
use crate::sys::heap;

/// The time for which news are gathered before a pass.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// The time after which a failed pass is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The time after which the server is asked why all objects have gone at once.
const DOUBT: Duration = Duration::from_secs(1);

/// The task that fails while the definition of the objects is gone.
const UNDEFINED: &str = "find PortRedirects";

/// The time between two questions whether the API server answers.
const PROBE: Duration = Duration::from_secs(15);

/// The configuration of an agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The name of the node.
    pub node: String,
    /// The address of probes and metrics.
    pub listen: SocketAddr,
    /// The file of the rules that were applied last.
    pub state: PathBuf,
    /// How long the API server may be silent before the node counts as not ready.
    pub stale_after: Duration,
    /// The namespace of the Lease; without it no summaries are written.
    pub namespace: Option<String>,
    /// The settings; their rules come before those of the API.
    pub settings: Settings,
}

/// The reason why an agent cannot run.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The container lacks something.
    #[error(transparent)]
    Need(#[from] NeedError),
    /// No API server is known.
    #[error(
        "no API server is known; run the agent in a pod with a service account, or set KUBECONFIG"
    )]
    NoApi(#[source] Box<kube::Error>),
    /// Probes cannot be answered.
    #[error("cannot listen on {addr} for probes; name another address with --listen")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The thread of the API cannot be started.
    #[error("start the thread that follows the API server")]
    Thread(#[source] std::io::Error),
    /// The redirect cannot be started.
    #[error(transparent)]
    Controller(#[from] ControllerError),
}

/// Runs until SIGINT, SIGTERM or `portredir down`; the redirect stays after a signal.
///
/// # Errors
///
/// [`AgentError`]: what was active stays active.
pub async fn run(config: AgentConfig, mut on_event: fn(Event)) -> Result<(), AgentError> {
    needs::check()?;
    // A client belongs to the thread of its runtime, so this one only shows that it is possible.
    let no_api = |error| AgentError::NoApi(Box::new(error));
    drop(Client::try_default().await.map_err(no_api)?);
    let listen = |source| AgentError::Listen {
        addr: config.listen,
        source,
    };
    let listener = server::listen(config.listen).map_err(listen)?;
    let listener = listener.into_std().map_err(listen)?;
    let health = Health::new(config.stale_after);
    let controller = start(&config, on_event).await?;
    let began_with = controller.state().settings.rules.len();
    if began_with > 0 {
        health.programmed();
    }
    watcher::stop(Stubborn::Kill, &mut on_event);
    let api = Agent {
        has_last_rules: began_with > config.settings.rules.len(),
        config,
        health,
        on_event,
    };
    std::thread::Builder::new()
        .name("api".to_owned())
        .spawn(move || api.run(listener))
        .map_err(AgentError::Thread)?;
    controller.log_decisions();
    event_loop::watch(controller, || Ok(None), &mut on_event).await?;
    Ok(())
}

/// Begins with the rules that are in force, or else with those of the file.
async fn start(config: &AgentConfig, mut on_event: fn(Event)) -> Result<Controller, AgentError> {
    let transaction = Transaction::begin(&mut on_event).await?;
    preflight::check_kernel().map_err(ControllerError::from)?;
    let running = transaction
        .settings()
        .ok()
        .map(|running| running.rules.clone());
    let is_running = running.is_some();
    let known = running.unwrap_or_else(|| {
        disk::load(&config.state).unwrap_or_else(|error| {
            log::warn!("the last rules are not used: {}", chain(&error));
            Vec::new()
        })
    });
    let options = ChangeOptions {
        force: true,
        ..ChangeOptions::default()
    };
    let plan = |rules| {
        let settings = Settings {
            rules,
            ..config.settings.clone()
        };
        let change = transaction.plan(Action::Run(settings), options)?;
        change.check()?;
        Ok(change)
    };
    let change = match plan(beside(&config.settings.rules, known)) {
        Ok(change) => change,
        Err(error) if is_running => return Err(ControllerError::Change(error).into()),
        Err(error) => {
            log::warn!("the last rules are not used: {}", chain(&error));
            plan(config.settings.rules.clone()).map_err(ControllerError::Change)?
        }
    };
    let locked = transaction.apply(change, &mut on_event).await?;
    Ok(locked.release())
}

/// The rules of the configuration, then those of others that do not conflict with them.
fn beside(fixed: &[Rule], others: Vec<Rule>) -> Vec<Rule> {
    let others = others.into_iter().filter(|rule| !fixed.contains(rule));
    let claims: Vec<_> = others
        .map(|rule| Claim {
            owner: "an earlier rule".to_owned(),
            rules: vec![rule],
        })
        .collect();
    let refused = refused(fixed, &claims);
    let kept = claims.into_iter().enumerate();
    let kept = kept.filter(|(i, _)| !refused.contains_key(i));
    let kept = kept.flat_map(|(_, claim)| claim.rules);
    fixed.iter().cloned().chain(kept).collect()
}

/// The thread of the API.
struct Agent {
    config: AgentConfig,
    /// Whether the redirect began with rules of an earlier agent.
    has_last_rules: bool,
    health: Health,
    on_event: fn(Event),
}

impl Agent {
    fn run(self, listener: std::net::TcpListener) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(self.work(listener)),
            Err(error) => log::error!("start the thread of the API: {error}"),
        }
    }

    async fn work(self, listener: std::net::TcpListener) {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => drop(tokio::spawn(server::serve(listener, self.health.clone()))),
            Err(error) => log::error!("answer probes: {error}"),
        }
        let client = match Client::try_default().await {
            Ok(client) => client,
            Err(error) => return log::error!("reach the API server: {}", text(&error)),
        };
        let watches = self.watches(&client).await;
        let (wanted, heard) = channel::channel(None);
        let health = self.health.clone();
        tokio::spawn(writer::write(client.clone(), heard, health.clone()));
        if let Some(namespace) = &self.config.namespace {
            let identity = format!("{}_{}", self.config.node, std::process::id());
            let source = (client.clone(), watches.redirects());
            let candidate = Candidate::new(source, namespace, identity);
            tokio::spawn(candidate.run(health.clone()));
        }
        tokio::spawn(probe(client, health));
        let lack = needs::of_local_clients(&self.config.settings);
        let pass = Loop {
            has_rules: self.has_last_rules,
            agent: self,
            watches,
            wanted,
            last: Desired::default(),
            saved: None,
            emptied: None,
            is_undefined: false,
            retry: None,
            lack,
        };
        pass.run().await;
    }

    /// Begins to watch as soon as the API server answers.
    async fn watches(&self, client: &Client) -> Watches {
        const TASK: &str = "reach the API server";
        loop {
            self.health.beat();
            let started = Watches::start(client.clone(), &self.config.node, self.health.clone());
            match tokio::time::timeout(RETRY, started).await {
                Ok(Ok(watches)) => {
                    self.health.works(TASK);
                    return watches;
                }
                Ok(Err(error)) => self.health.failed(TASK, text(&error)),
                Err(_) => self.health.failed(TASK, "it does not answer".to_owned()),
            }
            sleep(Duration::from_secs(2)).await;
        }
    }
}

/// Asks the API server again and again whether it answers.
async fn probe(client: Client, health: Health) {
    loop {
        match tokio::time::timeout(PROBE, client.apiserver_version()).await {
            Ok(Ok(_)) => health.contact(),
            Ok(Err(error)) => log::debug!("the API server: {}", text(&error)),
            Err(_) => log::debug!("the API server does not answer"),
        }
        sleep(PROBE).await;
    }
}

/// The passes over the whole state.
struct Loop {
    agent: Agent,
    watches: Watches,
    wanted: channel::Sender<Option<Wanted>>,
    /// Whether rules of the API are in force.
    has_rules: bool,
    /// The outcome of the last pass.
    last: Desired,
    /// The rules of the file.
    saved: Option<Vec<Rule>>,
    /// Since when all objects are gone.
    emptied: Option<Instant>,
    /// Whether their definition is gone, or was since then.
    is_undefined: bool,
    /// When to try again.
    retry: Option<Instant>,
    /// The need of clients on the node that is missing.
    lack: Option<&'static str>,
}

impl Loop {
    async fn run(mut self) {
        let mut ticks: Interval = event_loop::every(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = self.watches.heard() => {
                    sleep(DEBOUNCE).await;
                    self.watches.forget_news();
                    self.pass().await;
                }
                _ = ticks.tick() => {
                    self.agent.health.beat();
                    if self.retry.is_some_and(|at| at <= Instant::now()) {
                        self.pass().await;
                    }
                    self.tell();
                }
            }
        }
    }

    async fn pass(&mut self) {
        const TASK: &str = "read the Node";
        self.retry = None;
        if !self.watches.is_ready() {
            return;
        }
        let health = &self.agent.health;
        let Some(cluster) = self.watches.cluster() else {
            let node = &self.agent.config.node;
            let text = format!("there is no Node {node}; the last rules stay in force");
            health.failed(TASK, text);
            self.retry = Some(Instant::now() + RETRY);
            return;
        };
        health.works(TASK);
        let settings = &self.agent.config.settings;
        let base = Base {
            rules: &settings.rules,
            hides_targets: settings.hide_target,
        };
        let wanted = desired(&cluster, base);
        if cluster.redirects.is_empty() && self.has_rules && !self.may_empty().await {
            return;
        }
        if !cluster.redirects.is_empty() {
            self.emptied = None;
            self.is_undefined = false;
            self.agent.health.works(UNDEFINED);
        }
        self.put(wanted).await;
        let node = cluster.node.as_ref().clone();
        self.wanted.send_replace(Some(Wanted {
            node,
            desired: self.last.clone(),
            failures: self.agent.health.failures(),
        }));
    }

    /// Puts rules in force; when that fails, the next try is later.
    async fn put(&mut self, mut wanted: Desired) {
        const TASK: &str = "apply rules";
        let health = self.agent.health.clone();
        let fixed = &self.agent.config.settings.rules;
        match apply(fixed, &mut wanted, self.agent.on_event).await {
            Ok(rules) => {
                health.works(TASK);
                health.programmed();
                self.has_rules = rules.len() > fixed.len();
                self.save(rules);
            }
            Err(error) => {
                health.failed(TASK, chain(&error));
                health.pass_failed();
                self.retry = Some(Instant::now() + RETRY);
                let rejection = super::reason::Rejection::new(
                    super::reason::Reason::EngineFailed,
                    format!("the last rules stay in force: {}", chain(&error)),
                );
                for outcome in wanted.outcomes_mut() {
                    if outcome.reason.is_programmed() {
                        outcome.reject(rejection.clone());
                    }
                }
            }
        }
        let mut reasons = BTreeMap::new();
        for outcome in wanted.outcomes() {
            *reasons.entry(outcome.reason.to_string()).or_default() += 1;
        }
        health.passed(reasons);
        self.last = wanted;
        heap::trim();
    }

    /// Keeps the rules for the time after a reboot.
    fn save(&mut self, rules: Vec<Rule>) {
        const TASK: &str = "save the rules";
        if self.saved.as_ref() == Some(&rules) {
            return;
        }
        let path = &self.agent.config.state;
        match disk::save(path, &rules) {
            Ok(()) => {
                self.agent.health.works(TASK);
                self.saved = Some(rules);
            }
            Err(error) => {
                let text = format!("{}: {error}", path.display());
                self.agent.health.failed(TASK, text);
            }
        }
    }

    /// Whether all rules may go, now that there is no object: not when the definition of the
    /// objects was deleted with them, for as long as the API may be silent. Whoever makes the
    /// definition again makes the objects after it.
    async fn may_empty(&mut self) -> bool {
        let now = Instant::now();
        let since = *self.emptied.get_or_insert(now);
        let health = &self.agent.health;
        if since.elapsed() >= self.agent.config.stale_after {
            health.works(UNDEFINED);
            return true;
        }
        if since.elapsed() < DOUBT {
            self.retry = Some(since + DOUBT);
            return false;
        }
        self.retry = Some(now + RETRY);
        let why = if self.is_undefined {
            None
        } else {
            let asked = tokio::time::timeout(RETRY, self.watches.is_kind_there()).await;
            match asked {
                Ok(Ok(true)) => {
                    self.retry = None;
                    health.works(UNDEFINED);
                    return true;
                }
                Ok(Ok(false)) => None,
                Ok(Err(error)) => Some(text(&error)),
                Err(_) => Some("the API server does not answer".to_owned()),
            }
        };
        self.is_undefined = why.is_none();
        let deleted = "their definition was deleted; the last rules stay in force for now";
        health.failed(UNDEFINED, why.unwrap_or_else(|| deleted.to_owned()));
        false
    }

    /// Has failures written that began or ended without a pass.
    fn tell(&self) {
        const TASK: &str = "redirect clients on the node";
        // It is known at the start, and stays.
        if let Some(why) = self.lack {
            self.agent.health.failed(TASK, why.to_owned());
        }
        let failures = self.agent.health.failures();
        self.wanted.send_if_modified(|wanted| match wanted {
            Some(wanted) if wanted.failures != failures => {
                wanted.failures = failures;
                true
            }
            _ => false,
        });
    }
}
