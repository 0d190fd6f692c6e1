//! The objects of the Kubernetes API: what users write, and what each node answers. The
//! files in `deploy/crds` are made of these types.
//!
//! Rules of validation keep to the functions that Kubernetes 1.25 knows: an older server
//! would refuse a whole definition for one newer function.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The group and version of the objects.
pub const API_VERSION: &str = "portredir.io/v1alpha1";

/// Ports that are redirected on the nodes that it selects.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "portredir.io",
    version = "v1alpha1",
    kind = "PortRedirect",
    plural = "portredirects",
    shortname = "prd",
    category = "portredir",
    status = "PortRedirectStatus",
    derive = "PartialEq",
    doc = "Ports that are redirected on the nodes that it selects.",
    printcolumn(name = "Ports", type_ = "string", json_path = ".status.summary"),
    printcolumn(
        name = "Selected",
        type_ = "integer",
        json_path = ".status.nodes.selected"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "integer",
        json_path = ".status.nodes.programmed"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = "1"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PortRedirectSpec {
    /// The nodes that redirect; without it all nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// Also allow ports that may lock somebody out: SSH, the kubelet, the API server, DHCP.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// The redirected ports. Each rule has a name, by which a patch finds it.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub rules: Vec<RedirectRule>,
}

/// One redirected port, or one range of ports.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("!has(self.endPort) || self.endPort >= self.port").message("endPort must not be less than port"),
    validation = Rule::new("!has(self.to.endPort) || (has(self.to.port) && has(self.endPort) && self.to.endPort - self.to.port == self.endPort - self.port)").message("port to endPort and to.port to to.endPort must have the same number of ports"),
    validation = Rule::new("!has(self.to.port) || has(self.endPort) || self.to.port != self.port").message("to.port must differ from port")
)]
#[serde(rename_all = "camelCase")]
pub struct RedirectRule {
    /// The name, once in this object; conditions and metrics show it.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The port that clients connect to.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// The last port of a range that begins with port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i32>,
    /// TCP, UDP, or both of them.
    #[serde(default)]
    pub protocol: Protocol,
    /// The addresses of the node that clients connect to; without it all addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(max = 39), regex(pattern = "^[0-9a-fA-F.:]+$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub addresses: Vec<String>,
    /// The clients, as CIDRs; without it all clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(max = 43), regex(pattern = "^[0-9a-fA-F.:]+/[0-9]{1,3}$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub from: Vec<String>,
    /// The interfaces on which packets come in, as names or globs; without it all that the
    /// agent uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 15)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub interfaces: Vec<String>,
    /// Where the packets go.
    pub to: Target,
}

/// The protocols of a rule.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// TCP alone.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP alone.
    #[serde(rename = "UDP")]
    Udp,
    /// TCP and UDP.
    Both,
}

/// Where packets go: exactly one of port, service and pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("[has(self.port), has(self.service), has(self.pods)].filter(x, x).size() == 1").message("exactly one of port, service and pods is needed"),
    validation = Rule::new("!has(self.endPort) || (has(self.port) && self.endPort >= self.port)").message("endPort needs port, and must not be less than port")
)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// A port of the node itself, where a hostNetwork pod or a service of the host listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// The last port of a range that begins with port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i32>,
    /// A Service: its node port, or else its ready endpoints on the same node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceTarget>,
    /// Ready pods on the same node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodTarget>,
}

/// The port of a Service.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceTarget {
    /// The namespace of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The name of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The name or the number of a port of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub port: String,
}

/// Pods, and a port of them.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodTarget {
    /// The namespace of the pods.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The labels of the pods.
    pub selector: LabelSelector,
    /// The name or the number of a container port. Without it the destination ports stay
    /// as they are, for pods that have an address of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub port: Option<String>,
}

/// The state of a PortRedirect on all nodes together.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PortRedirectStatus {
    /// The generation that the rest of the status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The ports, as kubectl shows them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// The numbers of nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// Accepted and Ready. A condition that is not met names a node and the rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

/// Numbers of nodes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// The nodes whose agents have answered that they are selected.
    pub selected: i32,
    /// Those on which every rule is in force.
    pub programmed: i32,
    /// Those on which a rule is not in force.
    pub failed: i32,
}

/// The answer of one node, named as the node and owned by it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "portredir.io",
    version = "v1alpha1",
    kind = "PortRedirectNode",
    plural = "portredirectnodes",
    shortname = "prdn",
    category = "portredir",
    status = "PortRedirectNodeStatus",
    derive = "PartialEq",
    doc = "What one node redirects, written by the agent of the node.",
    printcolumn(
        name = "Programmed",
        type_ = "integer",
        json_path = ".status.programmed"
    ),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failed"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(
        name = "Kernel",
        type_ = "string",
        json_path = ".status.kernel",
        priority = "1"
    )
)]
pub struct PortRedirectNodeSpec {}

/// The redirects of one node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PortRedirectNodeStatus {
    /// The version of the agent.
    pub version: String,
    /// The release of the kernel.
    pub kernel: String,
    /// The number of rules in force.
    pub programmed: i32,
    /// The number of rules that are not in force.
    pub failed: i32,
    /// Ready, Degraded and Complete: whether everything is listed.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// The PortRedirects that select the node.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub redirects: Vec<RedirectState>,
    /// The number of PortRedirects that select the node and are not listed, because the
    /// object would be too large.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unlisted: i32,
}

/// The state of one PortRedirect on a node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RedirectState {
    /// The name of the PortRedirect.
    pub name: String,
    /// The generation that the state is about.
    pub generation: i64,
    /// The state of each rule.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub rules: Vec<RuleState>,
    /// The number of rules that are not listed, because the object would be too large.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unlisted: i32,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// The state of one rule on a node.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RuleState {
    /// The name of the rule in its PortRedirect.
    pub name: String,
    /// Whether the rule is in force.
    pub programmed: bool,
    /// The reason in one word: Programmed, Shadows, Conflicted, Protected, TargetNotFound,
    /// TargetNotReady, TargetUnsupported, Invalid, LimitExceeded or EngineFailed.
    pub reason: String,
    /// The reason in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The rule as `portredir rules` prints it, in parts where it has several addresses or
    /// networks of clients. At most eight are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
}
