//! One agent of the cluster holds a Lease, and writes the summaries of all objects. The
//! Lease decides nothing about traffic: without a holder only the summaries grow old.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::crd::{API_VERSION, PortRedirect, PortRedirectNode, PortRedirectStatus};
use super::health::Health;
use super::status;
use super::watch::{is_not_found, text};
use super::writer::{LEAST, MANAGER};

/// The name of the Lease.
const NAME: &str = "portredir-agent";

/// The time after which another agent takes a Lease that was not renewed.
const DURATION: Duration = Duration::from_secs(15);

/// The time between two renewals.
const RENEW: Duration = Duration::from_secs(5);

/// The longest time of a request.
const LONGEST: Duration = Duration::from_secs(5);

/// An agent that wants to write the summaries.
pub struct Candidate {
    client: Client,
    redirects: Store<PortRedirect>,
    leases: Api<Lease>,
    identity: String,
    /// The Lease of another agent as it was seen first, by its version: clocks of nodes
    /// differ, so only the own clock tells how old it is.
    seen: Option<(String, Instant)>,
    renewed: Option<Instant>,
    office: Option<Office>,
}

impl Candidate {
    /// An agent with this identity, and a Lease in this namespace. The objects are those
    /// that the agent watches anyway.
    #[must_use]
    pub fn new(
        (client, redirects): (Client, Store<PortRedirect>),
        namespace: &str,
        identity: String,
    ) -> Self {
        Self {
            leases: Api::namespaced(client.clone(), namespace),
            client,
            redirects,
            identity,
            seen: None,
            renewed: None,
            office: None,
        }
    }

    /// Holds the Lease whenever it can be had, and writes summaries while it is held.
    pub async fn run(mut self, health: Health) {
        const TASK: &str = "write summaries";
        loop {
            match timeout(LONGEST, self.step()).await {
                Ok(Ok(())) => health.works(TASK),
                Ok(Err(error)) => health.failed(TASK, text(&error)),
                Err(_) => health.failed(TASK, "the API server does not answer".to_owned()),
            }
            sleep(LEAST).await;
        }
    }

    async fn step(&mut self) -> Result<(), kube::Error> {
        if self.renewed.is_none_or(|at| at.elapsed() >= RENEW) {
            match self.acquire().await {
                Ok(true) => self.renewed = Some(Instant::now()),
                Ok(false) => self.resign(),
                Err(error) => {
                    // Another agent may hold the Lease by now.
                    if self.renewed.is_some_and(|at| at.elapsed() >= DURATION) {
                        self.resign();
                    }
                    return Err(error);
                }
            }
        }
        if self.renewed.is_none() {
            return Ok(());
        }
        let (client, redirects) = (&self.client, &self.redirects);
        let open = || Office::open(client, redirects.clone());
        let office = self.office.get_or_insert_with(open);
        office.write().await
    }

    fn resign(&mut self) {
        self.renewed = None;
        self.office = None;
    }

    /// Takes or renews the Lease, if nobody else holds it.
    async fn acquire(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.leases.get_opt(NAME).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            let created = self.leases.create(&PostParams::default(), &lease).await;
            return won(created);
        };
        if !self.may_take(&lease) {
            return Ok(false);
        }
        // With its version, so that of two agents one is refused.
        lease.spec = Some(self.spec(lease.spec.as_ref()));
        let params = PostParams::default();
        won(self.leases.replace(NAME, &params, &lease).await)
    }

    /// Whether the Lease is free, or this agent's, or was not renewed for long.
    fn may_take(&mut self, lease: &Lease) -> bool {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
        if holder.is_none_or(|holder| holder.is_empty() || holder == self.identity) {
            return true;
        }
        let version = lease.resource_version().unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == version => since.elapsed() >= DURATION,
            _ => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let is_own = |spec: &&LeaseSpec| spec.holder_identity.as_ref() == Some(&self.identity);
        let own = before.filter(is_own);
        let transitions = before.and_then(|spec| spec.lease_transitions);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: now.clone(),
            acquire_time: own.and_then(|spec| spec.acquire_time.clone()).or(now),
            lease_transitions: match own {
                Some(_) => transitions,
                None => transitions.map_or(Some(0), |number| number.checked_add(1)),
            },
            ..LeaseSpec::default()
        }
    }
}

/// Whether a write of the Lease won against those of other agents.
fn won(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// The work of the holder: it alone watches the states of all nodes.
struct Office {
    objects: Api<PortRedirect>,
    redirects: Store<PortRedirect>,
    nodes: Store<PortRedirectNode>,
    task: JoinHandle<()>,
}

impl Drop for Office {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Office {
    fn open(client: &Client, redirects: Store<PortRedirect>) -> Self {
        let (nodes, writer) = reflector::store();
        let states = Api::<PortRedirectNode>::all(client.clone());
        let follow = watcher(states, watcher::Config::default())
            .default_backoff()
            // They are larger than the states themselves.
            .modify(|state| state.managed_fields_mut().clear())
            .reflect(writer)
            .for_each(|_| std::future::ready(()));
        Self {
            objects: Api::all(client.clone()),
            redirects,
            nodes,
            task: tokio::spawn(follow),
        }
    }

    /// Writes each summary that differs from what the object has.
    async fn write(&self) -> Result<(), kube::Error> {
        use futures_util::FutureExt as _;
        let is_listed = self.redirects.wait_until_ready().now_or_never().is_some()
            && self.nodes.wait_until_ready().now_or_never().is_some();
        if !is_listed {
            return Ok(());
        }
        let nodes = self.nodes.state();
        for redirect in self.redirects.state() {
            // It may have been deleted since.
            if self
                .redirects
                .get(&ObjectRef::from_obj(&*redirect))
                .is_none()
            {
                continue;
            }
            let before = redirect.status.clone().unwrap_or_default();
            let mut status = status::of_redirect(&redirect, &nodes);
            status::keep_times(&mut status.conditions, &before.conditions);
            if before == status || is_alike(&before, &status) {
                continue;
            }
            let name = redirect.name_any();
            let patch = json!({
                "apiVersion": API_VERSION, "kind": "PortRedirect",
                "metadata": {"name": name}, "status": status,
            });
            let params = PatchParams::apply(&format!("{MANAGER}-summary")).force();
            let patch = Patch::Apply(&patch);
            match self.objects.patch_status(&name, &params, &patch).await {
                // The object was deleted meanwhile.
                Err(error) if is_not_found(&error) => {}
                result => drop(result?),
            }
        }
        Ok(())
    }
}

/// Whether two summaries differ in times alone: the server keeps seconds.
fn is_alike(one: &PortRedirectStatus, other: &PortRedirectStatus) -> bool {
    let mut other = other.clone();
    for (condition, of_one) in other.conditions.iter_mut().zip(&one.conditions) {
        condition.last_transition_time = of_one.last_transition_time.clone();
    }
    *one == other
}
