//! COMPATIBILITY: names of the earlier layout, until nobody uses them.

/// Keys and values of maps.
pub mod abi {
    pub use crate::flow::{Epoch, Flow, FlowKey};
    pub use crate::map::counters::*;
    pub use crate::map::port_remap::*;
    pub use crate::map::rules::*;
    pub use crate::map::sockets::*;
    pub use crate::map::{StateKey, local};
    pub use crate::net::{Addr, LOOPBACK_IFINDEX, Port, Protocol};
}

/// Flow tables.
pub mod bucket {
    pub use crate::map::bucket::*;
}

/// Checksums.
pub mod csum {
    pub use crate::wire::checksum::*;
}

/// What the benchmark sends.
pub mod generator {
    pub use crate::trafficgen::*;
}

/// The datapath.
pub mod redirect {
    pub use crate::datapath::egress::*;
    pub use crate::datapath::fast::*;
    pub use crate::datapath::ingress::*;
    pub use crate::datapath::subprog::*;
    pub use crate::kernel::{Cached, Choice, SocketCache, Tables};
}

/// The engine without packets.
pub mod socket {
    pub use crate::datapath::connect::*;
    pub use crate::datapath::sk_lookup::*;
    pub use crate::kernel::{Client, Listeners};
}
