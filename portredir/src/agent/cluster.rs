//! The objects of the cluster, as far as the rules of one node depend on them.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;
use kube::core::{Selector, SelectorExt as _};

use super::crd::PortRedirect;

/// The label by which an EndpointSlice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The cluster as the agent knows it at one time. The order of objects has no meaning.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// The node of the agent.
    pub node: Arc<Node>,
    /// All PortRedirects.
    pub redirects: Vec<Arc<PortRedirect>>,
    /// All Services.
    pub services: Vec<Arc<Service>>,
    /// All EndpointSlices; `None` where the server does not have them in version v1.
    pub slices: Option<Vec<Arc<EndpointSlice>>>,
    /// The pods of this node.
    pub pods: Vec<Arc<Pod>>,
}

impl Cluster {
    /// The PortRedirects that select this node, older ones first. Those that are being
    /// deleted do not count.
    #[must_use]
    pub fn selected(&self) -> Vec<&PortRedirect> {
        let mut selected: Vec<_> = self
            .redirects
            .iter()
            .map(Arc::as_ref)
            .filter(|redirect| redirect.metadata.deletion_timestamp.is_none())
            .filter(|redirect| match &redirect.spec.node_selector {
                Some(selector) => selects(selector, self.node.as_ref()),
                None => true,
            })
            .collect();
        selected.sort_by_key(|redirect| (redirect.creation_timestamp(), redirect.name_any()));
        selected
    }

    /// A Service.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        let is_it = |service: &&Arc<Service>| {
            service.metadata.name.as_deref() == Some(name)
                && service.metadata.namespace.as_deref() == Some(namespace)
        };
        self.services.iter().find(is_it).map(Arc::as_ref)
    }

    /// The EndpointSlices of a Service; `None` where the server has none in version v1.
    pub fn slices_of(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<impl Iterator<Item = &EndpointSlice>> {
        let is_of_it = move |slice: &&EndpointSlice| {
            slice.metadata.namespace.as_deref() == Some(namespace)
                && slice.labels().get(SERVICE_NAME).map(String::as_str) == Some(name)
        };
        let slices = self.slices.as_ref()?.iter().map(Arc::as_ref);
        Some(slices.filter(is_of_it))
    }

    /// The name of this node.
    #[must_use]
    pub fn node_name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    /// Whether an address is one of this node, and so of a pod with its network.
    #[must_use]
    pub fn is_of_node(&self, addr: IpAddr) -> bool {
        let status = self.node.status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_ref());
        let mut addresses = addresses.into_iter().flatten();
        addresses.any(|known| known.address.parse() == Ok(addr))
    }
}

/// Whether a selector matches the labels of an object. A selector that is not valid matches
/// nothing.
pub fn selects(selector: &LabelSelector, object: &impl kube::Resource) -> bool {
    let labels = object.meta().labels.clone().unwrap_or_default();
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(&labels))
}
