//! Writes the state of the node to the API, at most every two seconds, and tells events.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Patch, PatchParams};
use kube::core::Request;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::crd::{API_VERSION, PortRedirectNode, PortRedirectNodeStatus};
use super::desired::Desired;
use super::health::Health;
use super::status;
use super::watch::text;
use crate::sys::heap;

/// The shortest time between two writes.
pub const LEAST: Duration = Duration::from_secs(2);

/// The longest time of a write.
const LONGEST: Duration = Duration::from_secs(10);

/// The most events of one pass: events are for people, and the status has all.
const MOST_EVENTS: usize = 16;

/// The name of the writer of fields.
pub const MANAGER: &str = "portredir-agent";

/// The state that the loop wants to be known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// The node, which owns the object.
    pub node: Node,
    /// The outcome for the rules.
    pub desired: Desired,
    /// The failures.
    pub failures: Vec<String>,
}

/// Writes whenever something new is wanted; ends with the sender.
pub async fn write(client: Client, mut wanted: watch::Receiver<Option<Wanted>>, health: Health) {
    let mut writer = Writer {
        objects: Api::all(client.clone()),
        client,
        recorder: None,
        written: None,
        told: BTreeMap::new(),
    };
    while wanted.changed().await.is_ok() {
        loop {
            let now = wanted.borrow_and_update().clone();
            let Some(now) = now else { break };
            match timeout(LONGEST, writer.write(&now, &health)).await {
                Ok(Ok(())) => health.works("write status"),
                Ok(Err(error)) => health.failed("write status", text(&error)),
                Err(_) => health.failed("write status", "the API server does not answer".into()),
            }
            let is_written = writer.is_written(&now);
            sleep(LEAST).await;
            if is_written {
                break;
            }
        }
    }
}

struct Writer {
    client: Client,
    objects: Api<PortRedirectNode>,
    /// The events of the last minutes: one that comes again is counted, not told anew.
    recorder: Option<Recorder>,
    written: Option<PortRedirectNodeStatus>,
    /// The reason that was told last, by PortRedirect and rule.
    told: BTreeMap<(String, String), String>,
}

impl Writer {
    fn is_written(&self, wanted: &Wanted) -> bool {
        let status = status::of_node(&wanted.desired, &wanted.failures);
        self.written
            .as_ref()
            .is_some_and(|written| same(written, &status))
    }

    async fn write(&mut self, wanted: &Wanted, health: &Health) -> Result<(), kube::Error> {
        let name = wanted.node.name_any();
        let mut status = status::of_node(&wanted.desired, &wanted.failures);
        if let Some(written) = &self.written {
            if same(written, &status) {
                return Ok(());
            }
            status::keep_times(&mut status.conditions, &written.conditions);
        }
        let params = PatchParams::apply(MANAGER).force();
        if self.written.is_none() {
            let object = object(&wanted.node);
            let patch = Patch::Apply(&object);
            let there = self.objects.patch(&name, &params, &patch).await?;
            if let Some(there) = there.status {
                status::keep_times(&mut status.conditions, &there.conditions);
            }
        }
        let patch = json!({
            "apiVersion": API_VERSION, "kind": "PortRedirectNode",
            "metadata": {"name": name}, "status": status,
        });
        let result = self.send(&name, &params, &Patch::Apply(&patch)).await;
        if result.as_ref().is_err_and(super::watch::is_not_found) {
            // Somebody deleted the object; the next write makes it again.
            self.written = None;
        }
        result?;
        self.written = Some(status);
        health.status_written();
        heap::trim();
        self.tell(&name, &wanted.desired).await;
        Ok(())
    }

    /// Sends the state, and leaves the answer unread: with the notes of who manages which
    /// field it is some times as large as the state.
    async fn send(
        &self,
        name: &str,
        params: &PatchParams,
        patch: &Patch<&serde_json::Value>,
    ) -> Result<(), kube::Error> {
        let request = Request::new(self.objects.resource_url())
            .patch_subresource("status", name, params, patch)
            .map_err(kube::Error::BuildRequest)?;
        self.client.request_text(request).await.map(drop)
    }

    /// Tells an event for each rule whose reason is another one than before, and bad.
    async fn tell(&mut self, node: &str, desired: &Desired) {
        let recorder = self.recorder.get_or_insert_with(|| {
            let reporter = Reporter {
                controller: MANAGER.to_owned(),
                instance: Some(node.to_owned()),
            };
            Recorder::new(self.client.clone(), reporter)
        });
        let mut told = BTreeMap::new();
        let mut left = MOST_EVENTS;
        for redirect in &desired.redirects {
            for rule in &redirect.rules {
                let key = (redirect.name.clone(), rule.name.clone());
                let reason = rule.reason.to_string();
                let is_old = self.told.get(&key) == Some(&reason);
                told.insert(key, reason.clone());
                if is_old || rule.message.is_empty() || left == 0 {
                    continue;
                }
                left -= 1;
                let event = Event {
                    type_: EventType::Warning,
                    reason,
                    note: Some(format!("{node}: rule {}: {}", rule.name, rule.message)),
                    action: "Program".to_owned(),
                    secondary: None,
                };
                let about = ObjectReference {
                    api_version: Some(API_VERSION.to_owned()),
                    kind: Some("PortRedirect".to_owned()),
                    name: Some(redirect.name.clone()),
                    uid: Some(redirect.uid.clone()),
                    ..ObjectReference::default()
                };
                if let Err(error) = recorder.publish(&event, &about).await {
                    log::debug!("event: {}", text(&error));
                }
            }
        }
        self.told = told;
    }
}

/// The object of a node, without its status.
fn object(node: &Node) -> serde_json::Value {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.name_any(),
        uid: node.uid().unwrap_or_default(),
        ..OwnerReference::default()
    };
    json!({
        "apiVersion": API_VERSION, "kind": "PortRedirectNode", "spec": {},
        "metadata": {"name": node.name_any(), "ownerReferences": [owner]},
    })
}

/// Whether two states differ in times alone.
fn same(one: &PortRedirectNodeStatus, other: &PortRedirectNodeStatus) -> bool {
    let mut other = other.clone();
    for (condition, of_one) in other.conditions.iter_mut().zip(&one.conditions) {
        condition.last_transition_time = of_one.last_transition_time.clone();
    }
    *one == other
}
