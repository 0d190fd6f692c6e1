//! The Bloom filter of clients that were given another port: the map `REMAPPED`.

use crate::net::{Addr, Port};

/// The element of `REMAPPED`, and the byte in it, of a client that was given another port.
/// A byte stands for many clients, and is never cleared: it tells where a look into
/// `REMAP` is worth while.
#[inline(always)]
#[must_use]
pub const fn remap_bloom_slot(client: Addr, port: Port) -> (u32, usize) {
    let [low, high] = client.long_words();
    let port = port.half() as u64;
    let mixed = (low ^ high ^ port << 16).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let place = (mixed >> (64 - 16)) as u32;
    (place >> 6, place as usize & 63)
}

/// The number of elements of `REMAPPED`, of 64 bytes each.
pub const REMAP_BLOOM_ELEMENTS: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_inside_the_map() {
        for a in 0..=255 {
            for b in 0..=255 {
                let v4 = Addr::v4([10, 1, a, b]);
                let (element, byte) = remap_bloom_slot(v4, Port::new(1024 + u16::from(b)));
                assert!((element as usize) < REMAP_BLOOM_ELEMENTS && byte < 64);
            }
        }
    }
}
