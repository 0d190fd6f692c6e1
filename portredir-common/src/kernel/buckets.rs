//! The buckets of the flow tables, as the look-ups in them need these.

use core::ops::Deref;

use crate::flow::{FlowKey, FlowTable};
use crate::map::bucket::Bucket;
use crate::map::entry::Word;
use crate::map::hash::Hash;
use crate::net::Port;

/// The buckets of the flow tables.
pub trait FlowBuckets {
    /// The words of a bucket.
    type Word: Word;

    /// A bucket, for as long as a look-up lasts.
    type Bucket<'a>: Deref<Target = Bucket<Self::Word>>
    where
        Self: 'a;

    /// The hash of a translated flow.
    fn hash(&self, key: &FlowKey) -> Hash;

    /// The bucket of a flow; always `Some`, but the verifier does not know.
    fn bucket(&self, table: FlowTable, hash: Hash) -> Option<Self::Bucket<'_>>;

    /// The [`Shares::udp_slot`](crate::map::bucket::Shares::udp_slot) of a place.
    fn udp_slot(&self, hash: Hash, place: usize) -> u32;

    /// Keeps the ports of the UDP flow that got a slot, and the time, for lists of flows.
    fn keep_ports(&self, slot: u32, client_port: Port, target: Port);

    /// Keeps the addresses of the UDP flow that got a slot.
    fn keep_addrs(&self, slot: u32, key: &FlowKey);
}
