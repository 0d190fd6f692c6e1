//! The parts of the datapath that are functions of their own, and the sockets of the host.

use portredir_common::datapath::{forward, subprog};
use portredir_common::flow::{Admitted, Flow, FlowKey, Original, Segment};
use portredir_common::kernel::forward::{ForwardFlow, FreeSlot};
use portredir_common::kernel::{
    Admission, Assign, Cached, Listeners, Route, SocketCache, Subprograms,
};
use portredir_common::map::rules::PortEntry;
use portredir_common::map::sockets::ListenerKey;
use portredir_common::net::{Flags, Port};
use portredir_common::verdict::Reason;

use super::Mock;

impl Subprograms for Mock {
    fn find_route(
        &self,
        key: &mut FlowKey,
        entry: PortEntry,
        flags: Flags,
    ) -> Result<Route, Reason> {
        subprog::find_route(self, key, entry, flags)
    }

    fn has_begun(&self, key: &mut FlowKey, original: Original, flags: Flags) -> Option<u16> {
        subprog::has_begun(self, key, original, flags)
    }

    fn admit(&self, key: &mut FlowKey, request: &Admission) -> Result<Admitted, Reason> {
        subprog::admit(self, key, request)
    }

    fn find_forward(
        &self,
        key: &mut FlowKey,
        route: Route,
        segment: Segment,
    ) -> Result<ForwardFlow, Reason> {
        forward::find(self, key, route, segment)
    }

    fn begin_forward(
        &self,
        key: &mut FlowKey,
        slot: FreeSlot,
        flags: Flags,
    ) -> Result<Admitted, Reason> {
        forward::begin(self, key, slot, flags)
    }
}

impl Listeners for Mock {
    fn is_in_scope(&self) -> bool {
        self.is_in_scope
    }

    fn is_loopback_allowed(&self) -> bool {
        self.is_loopback_allowed.get()
    }

    fn assign(&self, key: &ListenerKey) -> bool {
        self.asked.borrow_mut().push(*key);
        self.listeners.contains(key)
    }
}

impl Assign for Mock {
    fn assign_listener(&self, key: &FlowKey) -> bool {
        self.assigned.borrow_mut().push(*key);
        !self.is_unserved
    }
}

impl SocketCache for Mock {
    fn cached(&self, ports: (Port, Port)) -> Cached {
        let is_its = |key: &FlowKey| (key.local_port, key.client_port) == ports;
        match &self.cache {
            None if self.is_forwarding => Cached::Forwarded,
            None => Cached::NoSocket,
            Some(cache) => match cache.borrow().iter().find(|(key, _)| is_its(key)) {
                Some((_, flow)) => Cached::Flow(*flow),
                None => Cached::Nothing,
            },
        }
    }

    fn cache(&self, key: &FlowKey, flow: &Flow) {
        if let Some(cache) = &self.cache {
            cache.borrow_mut().entry(*key).or_insert(*flow);
        }
    }
}
