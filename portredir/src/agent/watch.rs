//! The objects of the API server, kept up to date in memory.

use std::error::Error as _;
use std::fmt::Debug;

use futures_util::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::{self, Lookup, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::cluster::Cluster;
use super::crd::{API_VERSION, PortRedirect};
use super::health::Health;
use crate::loader::chain;

/// The version of EndpointSlices that the agent knows.
const SLICES: &str = "discovery.k8s.io/v1";

/// The watches of one agent.
pub struct Watches {
    client: Client,
    nodes: Store<Node>,
    redirects: Store<PortRedirect>,
    services: Store<Service>,
    slices: Option<Store<EndpointSlice>>,
    pods: Store<Pod>,
    news: mpsc::Receiver<()>,
}

/// Where a watch tells its news.
#[derive(Clone)]
struct Teller {
    news: mpsc::Sender<()>,
    health: Health,
}

impl Watches {
    /// Begins to watch. Must be called inside a runtime.
    ///
    /// # Errors
    ///
    /// The API server does not tell which kinds it has.
    pub async fn start(client: Client, node: &str, health: Health) -> Result<Self, kube::Error> {
        let has_slices = match client.list_api_group_resources(SLICES).await {
            Ok(_) => true,
            Err(error) if is_not_found(&error) => false,
            Err(error) => return Err(error),
        };
        let (news, heard) = mpsc::channel(1);
        let teller = Teller { news, health };
        let all = watcher::Config::default;
        let own = all().fields(&format!("metadata.name={node}"));
        let pods = all().fields(&format!("spec.nodeName={node}"));
        Ok(Self {
            nodes: teller.follow(Api::all(client.clone()), own, "watch Nodes"),
            redirects: teller.follow(Api::all(client.clone()), all(), "watch PortRedirects"),
            services: teller.follow(Api::all(client.clone()), all(), "watch Services"),
            slices: has_slices
                .then(|| teller.follow(Api::all(client.clone()), all(), "watch EndpointSlices")),
            pods: teller.follow(Api::all(client.clone()), pods, "watch Pods"),
            client,
            news: heard,
        })
    }

    /// The PortRedirects, without the notes of who manages which field.
    #[must_use]
    pub fn redirects(&self) -> Store<PortRedirect> {
        self.redirects.clone()
    }

    /// Waits for the next news.
    pub async fn heard(&mut self) {
        if self.news.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Forgets the news that came until now.
    pub fn forget_news(&mut self) {
        while self.news.try_recv().is_ok() {}
    }

    /// Whether every kind was listed once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let has_slices = self.slices.as_ref().is_none_or(is_listed);
        has_slices
            && is_listed(&self.nodes)
            && is_listed(&self.redirects)
            && is_listed(&self.services)
            && is_listed(&self.pods)
    }

    /// The objects as they are now; `None` where the own Node does not exist.
    #[must_use]
    pub fn cluster(&self) -> Option<Cluster> {
        Some(Cluster {
            node: self.nodes.state().first()?.clone(),
            redirects: self.redirects.state(),
            services: self.services.state(),
            slices: self.slices.as_ref().map(Store::state),
            pods: self.pods.state(),
        })
    }

    /// Whether the server still takes new PortRedirects. While their definition is being
    /// deleted, the server deletes all objects first.
    ///
    /// # Errors
    ///
    /// The API server does not answer.
    pub async fn is_kind_there(&self) -> Result<bool, kube::Error> {
        match self.client.list_api_group_resources(API_VERSION).await {
            Ok(list) => Ok(list.resources.iter().any(|kind| {
                kind.name == "portredirects" && kind.verbs.iter().any(|verb| verb == "create")
            })),
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Teller {
    /// Keeps the objects of a kind in memory, without the notes of who manages which field.
    fn follow<K>(&self, api: Api<K>, config: watcher::Config, task: &'static str) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Lookup<DynamicType = ()>,
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let (store, writer) = reflector::store();
        let teller = self.clone();
        let objects = watcher(api, config)
            .default_backoff()
            .modify(|object| object.managed_fields_mut().clear())
            .reflect(writer)
            .for_each(move |event| {
                teller.hear(task, event);
                std::future::ready(())
            });
        tokio::spawn(objects);
        store
    }

    fn hear<K>(&self, task: &'static str, event: watcher::Result<watcher::Event<K>>) {
        match event {
            // It comes before the server was asked.
            Ok(watcher::Event::Init) => {}
            Ok(_) => {
                self.health.works(task);
                self.health.contact();
                // One note is enough for all news until the next pass.
                let _ = self.news.try_send(());
            }
            Err(error) => self.health.failed(task, watch_text(&error)),
        }
    }
}

fn is_listed<K>(store: &Store<K>) -> bool
where
    K: Lookup + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    store.wait_until_ready().now_or_never().is_some()
}

/// Whether the server says that it has no such thing.
#[must_use]
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// An error of the API in one line.
#[must_use]
pub fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => chain(error),
    }
}

fn watch_text(error: &watcher::Error) -> String {
    let source = error.source().and_then(|source| source.downcast_ref());
    source.map_or_else(|| chain(error), text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_list_that_begins_is_no_answer_of_the_server() {
        const TASK: &str = "watch Services";
        let (news, mut heard) = mpsc::channel(1);
        let health = Health::new(Duration::from_millis(200));
        let teller = Teller { news, health };
        teller.health.programmed();
        teller.health.failed(TASK, "refused".to_owned());
        std::thread::sleep(Duration::from_millis(250));
        teller.hear(TASK, Ok(watcher::Event::<Service>::Init));
        assert!(!teller.health.is_ready() && heard.try_recv().is_err());
        assert_eq!(teller.health.failures(), ["watch Services: refused"]);
        teller.hear(TASK, Ok(watcher::Event::<Service>::InitDone));
        assert!(teller.health.is_ready() && heard.try_recv().is_ok());
        assert!(teller.health.failures().is_empty());
    }
}
