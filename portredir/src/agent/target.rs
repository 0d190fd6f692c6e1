//! Where a rule leads on this node: to ports of the node, or to addresses of pods on it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use portredir_common::net::Protocol;

use super::cluster::{Cluster, selects};
use super::crd::{PodTarget, ServiceTarget, Target};
use super::reason::{Reason, Rejection};

/// One target of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The address of a pod; none for the node itself.
    pub host: Option<IpAddr>,
    /// The ports as a rule has them; none for the destination ports.
    pub ports: Option<String>,
}

impl Place {
    const fn here(ports: String) -> Self {
        Self {
            host: None,
            ports: Some(ports),
        }
    }
}

/// The name of a protocol in objects of Kubernetes.
#[must_use]
pub const fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

/// The targets of a rule for a protocol, sorted, each once, and at least one.
///
/// # Errors
///
/// A [`Rejection`] that says what the target lacks.
pub fn places(
    cluster: &Cluster,
    target: &Target,
    protocol: Protocol,
) -> Result<Vec<Place>, Rejection> {
    let mut places = match (target.port, &target.service, &target.pods) {
        (Some(port), None, None) => vec![Place::here(match target.end_port {
            Some(end) => format!("{port}-{end}"),
            None => port.to_string(),
        })],
        (None, Some(_), None) | (None, None, Some(_)) if target.end_port.is_some() => {
            let text = "to.endPort needs to.port";
            return Err(Rejection::new(Reason::Invalid, text));
        }
        (None, Some(service), None) => of_service(cluster, service, protocol)?,
        (None, None, Some(pods)) => of_pods(cluster, pods, protocol)?,
        _ => {
            let text = "exactly one of to.port, to.service and to.pods is needed";
            return Err(Rejection::new(Reason::Invalid, text));
        }
    };
    places.sort();
    places.dedup();
    Ok(places)
}

/// The node port of a Service, or else its ready endpoints on this node.
fn of_service(
    cluster: &Cluster,
    wanted: &ServiceTarget,
    protocol: Protocol,
) -> Result<Vec<Place>, Rejection> {
    let ServiceTarget {
        namespace,
        name,
        port,
    } = wanted;
    let found = cluster.service(namespace, name).ok_or_else(|| {
        let text = format!("there is no Service {namespace}/{name}");
        Rejection::new(Reason::TargetNotFound, text)
    })?;
    let ports = found.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let mut ports = ports.into_iter().flatten();
    let is_it = |of: &&ServicePort| {
        (of.name.as_deref() == Some(port) || of.port.to_string() == *port)
            && of.protocol.as_deref().unwrap_or("TCP") == self::name(protocol)
    };
    let found = ports.find(is_it).ok_or_else(|| {
        let protocol = self::name(protocol);
        let text = format!("Service {namespace}/{name} has no port {port} of {protocol}");
        Rejection::new(Reason::TargetNotFound, text)
    })?;
    match found.node_port {
        Some(node_port) => Ok(vec![Place::here(node_port.to_string())]),
        None => of_endpoints(cluster, wanted, found),
    }
}

fn of_endpoints(
    cluster: &Cluster,
    wanted: &ServiceTarget,
    port: &ServicePort,
) -> Result<Vec<Place>, Rejection> {
    let ServiceTarget {
        namespace, name, ..
    } = wanted;
    let slices = cluster.slices_of(namespace, name).ok_or_else(|| {
        let text = format!(
            "port {} of Service {namespace}/{name} has no node port, and this cluster has no \
             EndpointSlices of version v1, which came with Kubernetes 1.21; give the Service the \
             type NodePort",
            wanted.port
        );
        Rejection::new(Reason::TargetUnsupported, text)
    })?;
    let places: Vec<_> = slices
        .flat_map(|slice| of_slice(cluster, slice, port))
        .collect();
    if places.is_empty() {
        let text = format!("Service {namespace}/{name} has no ready endpoint on this node");
        return Err(Rejection::new(Reason::TargetNotReady, text));
    }
    Ok(places)
}

/// The ready endpoints of a slice on this node.
fn of_slice(cluster: &Cluster, slice: &EndpointSlice, port: &ServicePort) -> Vec<Place> {
    let ports = slice.ports.iter().flatten();
    let mut same = ports.filter(|of| {
        of.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
            && of.protocol.as_deref().unwrap_or("TCP") == port.protocol.as_deref().unwrap_or("TCP")
    });
    let Some(number) = same.find_map(|of| of.port) else {
        return Vec::new();
    };
    let is_ready = |conditions: &k8s_openapi::api::discovery::v1::EndpointConditions| {
        conditions.ready != Some(false) && conditions.terminating != Some(true)
    };
    let endpoints = slice.endpoints.iter().filter(|endpoint| {
        endpoint.node_name.as_deref() == Some(cluster.node_name())
            && endpoint.conditions.as_ref().is_none_or(is_ready)
    });
    // The addresses of an endpoint are equivalent.
    let addresses = endpoints.filter_map(|endpoint| endpoint.addresses.first()?.parse().ok());
    addresses
        .map(|addr: IpAddr| Place {
            host: (!cluster.is_of_node(addr)).then_some(addr),
            ports: Some(number.to_string()),
        })
        .collect()
}

/// The newest pod, if it has the network of the node; else all pods with an address of
/// their own. Only pods that are ready and stay are meant.
fn of_pods(
    cluster: &Cluster,
    wanted: &PodTarget,
    protocol: Protocol,
) -> Result<Vec<Place>, Rejection> {
    let all = cluster.pods.iter().map(AsRef::as_ref).filter(|pod: &&Pod| {
        pod.metadata.namespace.as_deref() == Some(wanted.namespace.as_str())
            && selects(&wanted.selector, *pod)
    });
    let all: Vec<_> = all.collect();
    if all.is_empty() {
        let text = format!(
            "no pod in namespace {} on this node has these labels",
            wanted.namespace
        );
        return Err(Rejection::new(Reason::TargetNotFound, text));
    }
    let mut ready: Vec<_> = all.into_iter().filter(|pod| is_ready(pod)).collect();
    ready.sort_by_key(|pod| (pod.creation_timestamp(), pod.name_any()));
    let Some(newest) = ready.last() else {
        let text = format!(
            "no pod with these labels in namespace {} on this node is ready",
            wanted.namespace
        );
        return Err(Rejection::new(Reason::TargetNotReady, text));
    };
    if has_node_network(newest) {
        return Ok(vec![of_host_pod(newest, wanted, protocol)?]);
    }
    let others = ready.iter().filter(|pod| !has_node_network(pod));
    let places: Result<Vec<_>, _> = others
        .map(|pod| of_own_addresses(pod, wanted, protocol))
        .collect();
    Ok(places?.into_iter().flatten().collect())
}

/// The port of a pod that has the network of the node.
fn of_host_pod(pod: &Pod, wanted: &PodTarget, protocol: Protocol) -> Result<Place, Rejection> {
    let Some(port) = &wanted.port else {
        let text = format!(
            "pod {} has the network of the node, so the target needs a port: to.pods.port",
            pod.name_any()
        );
        return Err(Rejection::new(Reason::TargetUnsupported, text));
    };
    Ok(Place::here(number(pod, port, protocol)?))
}

/// The addresses of a pod that has its own: of each IP version one.
fn of_own_addresses(
    pod: &Pod,
    wanted: &PodTarget,
    protocol: Protocol,
) -> Result<Vec<Place>, Rejection> {
    let port = wanted.port.as_ref();
    let ports = port.map(|port| number(pod, port, protocol)).transpose()?;
    let status = pod.status.as_ref();
    let all = status.and_then(|status| status.pod_ips.as_ref());
    let all = all.into_iter().flatten().map(|one| one.ip.as_str());
    let one = status.and_then(|status| status.pod_ip.as_deref());
    let places = all
        .chain(one)
        .filter_map(|text| text.parse().ok())
        .map(|addr| Place {
            host: Some(addr),
            ports: ports.clone(),
        });
    Ok(places.collect())
}

/// The number of a container port that is given by name or by number.
fn number(pod: &Pod, port: &str, protocol: Protocol) -> Result<String, Rejection> {
    if port.parse::<u16>().is_ok() {
        return Ok(port.to_owned());
    }
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let found = ports.find(|of| {
        of.name.as_deref() == Some(port)
            && of.protocol.as_deref().unwrap_or("TCP") == name(protocol)
    });
    match found {
        Some(found) => Ok(found.container_port.to_string()),
        None => Err(Rejection::new(
            Reason::TargetNotFound,
            format!(
                "pod {} has no container port {port} of {}",
                pod.name_any(),
                name(protocol)
            ),
        )),
    }
}

/// Whether a pod has the network of the node.
#[must_use]
pub fn has_node_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

/// Whether a pod is ready, and stays.
fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
