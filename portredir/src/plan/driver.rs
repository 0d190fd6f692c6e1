//! The drivers of network cards on which `auto` takes native XDP, and where portredir was
//! tried with them.

/// Drivers of real NICs whose native XDP costs no offload that matters. The list leaves
/// out `virtio_net` (guest TSO and GRO go off), `vmxnet3` (LRO goes off) and `veth` (the
/// peer's TSO goes off and bulk TCP falls to a quarter). A test compares it with
/// `docs/LIMITS.md`.
pub(super) const NATIVE_XDP_DRIVERS: [NativeDriver; 20] = [
    NativeDriver::untried("atlantic"),
    NativeDriver::untried("bnxt_en"),
    NativeDriver::untried("ena"),
    NativeDriver::untried("fbnic"),
    NativeDriver::untried("funeth"),
    NativeDriver::untried("gve"),
    NativeDriver::untried("i40e"),
    NativeDriver::untried("ice"),
    NativeDriver::untried("idpf"),
    NativeDriver {
        name: "igb",
        tried: Tried::Emulated,
    },
    NativeDriver::untried("igc"),
    NativeDriver::untried("ionic"),
    NativeDriver::untried("ixgbe"),
    NativeDriver::untried("ixgbevf"),
    NativeDriver::untried("mana"),
    NativeDriver::untried("mlx4_en"),
    NativeDriver::untried("mlx5_core"),
    NativeDriver::untried("nfp"),
    NativeDriver::untried("qede"),
    NativeDriver::untried("sfc"),
];

/// A driver on which `auto` takes native XDP.
#[derive(Clone, Copy)]
pub(super) struct NativeDriver {
    pub(super) name: &'static str,
    pub(super) tried: Tried,
}

/// Where portredir was tried with a driver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tried {
    /// On the emulated card of a virtual machine, by `cargo xtask test --cards`.
    Emulated,
    /// Nowhere.
    Nowhere,
}

impl NativeDriver {
    const fn untried(name: &'static str) -> Self {
        Self {
            name,
            tried: Tried::Nowhere,
        }
    }

    /// The entry of a driver, if `auto` takes native XDP there.
    pub(super) fn find(name: &str) -> Option<Self> {
        let mut all = NATIVE_XDP_DRIVERS.into_iter();
        all.find(|driver| driver.name == name)
    }
}

/// The drivers that reset the link when native XDP is attached or detached, as tests with
/// emulated cards show: `igb_xdp_setup` in drivers/net/ethernet/intel/igb/igb_main.c
/// closes the interface and opens it again, and `vmxnet3_xdp_set` in
/// drivers/net/vmxnet3/vmxnet3_xdp.c quiesces the device.
const RESET_LINK: [&str; 2] = ["igb", "vmxnet3"];

/// A note on what attaching and detaching native XDP does to the link.
pub(super) fn note(driver: &str) -> Option<String> {
    if RESET_LINK.contains(&driver) {
        return Some(format!(
            "driver {driver} resets the link when native XDP is attached or detached; --engine tc \
             does not"
        ));
    }
    let listed = NativeDriver::find(driver)?;
    (listed.tried == Tried::Nowhere).then(|| {
        format!(
            "native XDP was not tried with driver {driver}, which may reset the link when it is \
             attached or detached; --engine tc does not"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: &str = include_str!("../../../docs/LIMITS.md");

    /// The drivers that a line of the document names after some words.
    fn named(words: &str) -> Vec<&'static str> {
        let (_, rest) = LIMITS.split_once(words).expect("the words");
        let (names, _) = rest.split_once('.').expect("a sentence");
        let parts = names.split('`').skip(1).step_by(2);
        parts.collect()
    }

    #[test]
    fn the_document_names_each_driver_and_where_it_was_tried() {
        let listed = |tried| {
            let all = NATIVE_XDP_DRIVERS.into_iter();
            let some = all.filter(|driver| driver.tried == tried);
            some.map(|driver| driver.name).collect::<Vec<_>>()
        };
        assert_eq!(
            named("tried on an emulated card with"),
            listed(Tried::Emulated)
        );
        assert_eq!(named("not tried with"), listed(Tried::Nowhere));
    }
}
