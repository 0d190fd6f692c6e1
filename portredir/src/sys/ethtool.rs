//! Driver names and offload settings, by the ethtool ioctl.
//!
//! Generic XDP switches LRO and hardware GRO off and leaves them off
//! (`generic_xdp_install` in `net/core/dev.c`), and so does native XDP of some drivers with LRO
//! (`vmxnet3_xdp_set`), so portredir restores them.

#![expect(unsafe_code, reason = "the one system call that no library wraps")]

use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

// include/uapi/linux/sockios.h. The C libraries have it in other types than ioctl takes.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

// include/uapi/linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const GSTRING_LEN: usize = 32;

/// The offloads that attaching XDP may switch off.
pub const CLEARED_BY_XDP: [&str; 2] = ["rx-lro", "rx-gro-hw"];

/// The driver of an interface, `None` where it has none.
#[must_use]
pub fn driver(interface: &str) -> Option<String> {
    // struct ethtool_drvinfo: the name is 32 bytes behind `cmd`.
    let mut request = Request::new(ETHTOOL_GDRVINFO, 196);
    request.send(interface).ok()?;
    let answer = request.bytes();
    let name = CStr::from_bytes_until_nul(&answer[4..36]).ok()?;
    let name = name.to_str().ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Which of `names` are on. The names are those that `ethtool -k` prints for raw
/// features.
///
/// # Errors
///
/// When the interface is gone or has no features.
pub fn features(interface: &str, names: &[&str]) -> io::Result<Vec<bool>> {
    let strings = strings(interface)?;
    // struct ethtool_gfeatures: size, then available, requested, active and
    // never-changed bits for each 32 features.
    let blocks = strings.len().div_ceil(32);
    let mut request = Request::new(ETHTOOL_GFEATURES, 8 + blocks * 16);
    request.set(1, u32::try_from(blocks).expect("few features"));
    request.send(interface)?;
    Ok(names
        .iter()
        .map(|name| {
            strings
                .iter()
                .position(|s| s == name)
                .is_some_and(|bit| request.word(2 + bit / 32 * 4 + 2) & (1 << (bit % 32)) != 0)
        })
        .collect())
}

/// The state of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// The driver uses the feature.
    On,
    /// The driver does not use the feature.
    Off,
}

/// Asks the driver to switch a feature on or off.
///
/// # Errors
///
/// When the interface is gone or does not know the feature.
pub fn set_feature(interface: &str, name: &str, to: Switch) -> io::Result<()> {
    let strings = strings(interface)?;
    let bit = strings
        .iter()
        .position(|s| s == name)
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
    // struct ethtool_sfeatures: size, then valid and requested bits.
    let blocks = strings.len().div_ceil(32);
    let mut request = Request::new(ETHTOOL_SFEATURES, 8 + blocks * 8);
    request.set(1, u32::try_from(blocks).expect("few features"));
    let mask = 1 << (bit % 32);
    request.set(2 + bit / 32 * 2, mask);
    let requested = match to {
        Switch::On => mask,
        Switch::Off => 0,
    };
    request.set(2 + bit / 32 * 2 + 1, requested);
    request.send(interface)
}

/// The names of all features that this kernel has.
fn strings(interface: &str) -> io::Result<Vec<String>> {
    // struct ethtool_sset_info: reserved word, 64-bit mask, then the length.
    let mut info = Request::new(ETHTOOL_GSSET_INFO, 20);
    info.set(2, 1 << ETH_SS_FEATURES);
    info.send(interface)?;
    let count = info.word(4) as usize;
    // struct ethtool_gstrings: set, length, then 32 bytes for each.
    let mut request = Request::new(ETHTOOL_GSTRINGS, 12 + count * GSTRING_LEN);
    request.set(1, ETH_SS_FEATURES);
    request.set(2, u32::try_from(count).expect("few features"));
    request.send(interface)?;
    let bytes = request.bytes();
    Ok(bytes[12..12 + count * GSTRING_LEN]
        .chunks_exact(GSTRING_LEN)
        .map(|name| {
            let end = name.iter().position(|&b| b == 0).unwrap_or(GSTRING_LEN);
            String::from_utf8_lossy(&name[..end]).into_owned()
        })
        .collect())
}

/// An ethtool command and room for its answer, in words of native order.
struct Request {
    words: Vec<u32>,
}

impl Request {
    fn new(command: u32, len_bytes: usize) -> Self {
        let mut words = vec![0; len_bytes.div_ceil(4)];
        words[0] = command;
        Self { words }
    }

    fn set(&mut self, index: usize, word: u32) {
        self.words[index] = word;
    }

    fn word(&self, index: usize) -> u32 {
        self.words[index]
    }

    fn bytes(&self) -> Vec<u8> {
        self.words
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect()
    }

    fn send(&mut self, interface: &str) -> io::Result<()> {
        let mut ifr_name: [c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
        if interface.len() >= ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from.cast_signed() as c_char;
        }
        let fd = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let mut ifreq = libc::ifreq {
            ifr_name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: self.words.as_mut_ptr().cast(),
            },
        };
        // SAFETY: the kernel reads and writes what the command in the first
        // word says, for which the caller made room.
        let ret = unsafe { libc::ioctl(fd.as_raw_fd(), SIOCETHTOOL, &raw mut ifreq) };
        if ret < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// The offloads of an interface that XDP may switch off.
#[must_use]
pub fn features_on(interface: &str) -> Vec<&'static str> {
    let names = CLEARED_BY_XDP;
    let on = features(interface, &names).unwrap_or_default();
    names
        .into_iter()
        .zip(on)
        .filter_map(|(name, is_on)| is_on.then_some(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_features_and_no_driver() {
        assert_eq!(driver("lo"), None);
        let on = features("lo", &["tx-tcp-segmentation", "no-such-feature"]).expect("features");
        assert!(on[0]);
        assert!(!on[1]);
    }

    #[test]
    fn unknown_interface() {
        assert!(features("no-such-if", &[]).is_err());
        assert!(features("a-name-that-is-much-too-long", &[]).is_err());
    }
}
