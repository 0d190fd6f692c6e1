//! COMPATIBILITY: names of the earlier layout, until nobody uses them. To be deleted at
//! the end, with the lines in `lib.rs`, `flow.rs` and `wire.rs` that say so.

/// Keys and values of maps.
pub mod abi {
    pub use crate::flow::{Epoch, Flow, FlowKey};
    pub use crate::map::counters::*;
    pub use crate::map::rules::*;
    pub use crate::map::rules::{
        LOCAL_ADDR_SLOTS as OWN_PLACES, PacketPath as Hot, PreviousTargets as Old,
        local_addr_slot as own_place,
    };
    pub use crate::map::sockets::*;
    pub use crate::map::{StateKey, local};
    pub use crate::net::{Addr, LOOPBACK_IFINDEX, Port, Protocol};
}

/// Flow tables.
pub mod bucket {
    pub use crate::map::bucket::*;
    pub use crate::map::entry::*;
    pub use crate::map::hash::{Hash, Seed};
}

/// Traffic of the benchmark.
pub mod generator {
    pub use crate::trafficgen::*;
}
