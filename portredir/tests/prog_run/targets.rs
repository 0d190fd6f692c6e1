//! Targets with an address, and the flows to them, in the maps of the programs.

use aya::maps::Array;
use portredir_common::map::hash::Seed;

use crate::packet::mock::forward::Live;
use crate::packet::scenario::Plan;
use crate::rig::Rig;

impl Rig {
    /// Gives all rules the targets of a plan.
    pub fn set_plan(&mut self, plan: &Plan) {
        let targets: Vec<_> = (1..).zip(plan.targets(self.rules)).collect();
        let slots = plan.slots(self.rules).into_iter();
        let slots: Vec<_> = slots.map(|(_, slot)| slot).collect();
        let services = plan.services(self.rules);
        let datapath = self.datapath();
        datapath.set_targets(&targets).expect("write targets");
        let pointers = datapath.pointers(&slots, &services);
        pointers.expect("the maps of slots and services").write();
    }

    /// Forgets all flows to targets with an address.
    pub fn clear_forwards(&mut self) {
        self.forwards.remove(|_, _, _| true);
    }

    /// The flows to targets with an address that are live, without their times.
    pub fn live(&self) -> Vec<Live> {
        let live = self.forwards.live();
        live.map(|flow| Live::of(flow.protocol, flow.own, flow.entry))
            .collect()
    }

    /// The seed of hashes, which choose the slots of clients.
    pub fn seed(&mut self) -> Seed {
        let map = self.datapath().map("SEED");
        let map = Array::<_, Seed>::try_from(map).expect("of one seed");
        map.get(&0, 0).expect("read the seed")
    }
}
