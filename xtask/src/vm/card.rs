//! The network cards of a guest.

use clap::ValueEnum;

/// A model of network card that QEMU emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Card {
    /// A card of virtual machines.
    VirtioNet,
    /// Intel 82576.
    Igb,
    /// A card of VMware's virtual machines.
    Vmxnet3,
    /// Intel 82574L, whose driver has no native XDP.
    E1000e,
}

impl Card {
    /// All models.
    pub const ALL: [Self; 4] = [Self::VirtioNet, Self::Igb, Self::Vmxnet3, Self::E1000e];

    /// The name of the device in QEMU.
    pub const fn device(self) -> &'static str {
        match self {
            Self::VirtioNet => "virtio-net-pci",
            Self::Igb => "igb",
            Self::Vmxnet3 => "vmxnet3",
            Self::E1000e => "e1000e",
        }
    }

    /// The name of the driver in Linux.
    pub const fn driver(self) -> &'static str {
        match self {
            Self::VirtioNet => "virtio_net",
            Self::Igb => "igb",
            Self::Vmxnet3 => "vmxnet3",
            Self::E1000e => "e1000e",
        }
    }

    /// The arguments of QEMU for two cards that are wired to each other. Pairs of one
    /// guest have different numbers.
    pub fn pair(self, number: u8) -> Vec<String> {
        let device = self.device();
        let end = |end: u8| {
            let id = 2 * number + end;
            // A card on PCI Express needs a root port of its own.
            [
                "-netdev".to_owned(),
                format!("hubport,id=n{id},hubid={number}"),
                "-device".to_owned(),
                format!("pcie-root-port,id=rp{id},chassis={id},slot={id}"),
                "-device".to_owned(),
                format!("{device},bus=rp{id},netdev=n{id},mac=52:54:00:00:00:{id:02x},romfile="),
            ]
        };
        [end(0), end(1)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_shares_a_hub_and_nothing_with_other_pairs() {
        let first = Card::Igb.pair(0);
        let second = Card::Vmxnet3.pair(1);
        assert!(first.contains(&"hubport,id=n1,hubid=0".to_owned()));
        assert!(second.contains(&"hubport,id=n2,hubid=1".to_owned()));
        let devices = |args: &[String]| {
            let devices = args.iter().filter(|arg| arg.contains("netdev="));
            devices.cloned().collect::<Vec<_>>()
        };
        assert_eq!(
            devices(&second),
            [
                "vmxnet3,bus=rp2,netdev=n2,mac=52:54:00:00:00:02,romfile=",
                "vmxnet3,bus=rp3,netdev=n3,mac=52:54:00:00:00:03,romfile=",
            ]
        );
    }
}
