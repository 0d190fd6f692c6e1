//! Captures of the packets on an interface, by tcpdump.

use crate::lab::namespace::Namespace;
use crate::lab::process::{Process, wait_for};

/// Frames that pass an interface and match a filter.
pub struct Capture(Process);

impl Capture {
    /// Starts to listen.
    pub fn start(namespace: &Namespace, interface: &str, filter: &str) -> Self {
        Self(tcpdump(namespace, &["-nUi", interface, "-w", "-", filter]))
    }

    /// Starts to listen for long streams, of which only the first bytes of frames are kept.
    pub fn of_headers(namespace: &Namespace, interface: &str, filter: &str) -> Self {
        let args = [
            "-nUi", interface, "-s", "100", "-B", "16384", "-w", "-", filter,
        ];
        Self(tcpdump(namespace, &args))
    }

    /// The frames so far.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        self.kept().into_iter().map(|(frame, _)| frame).collect()
    }

    /// The first bytes of the frames so far, and the length of each on the interface.
    pub fn kept(&self) -> Vec<(Vec<u8>, u64)> {
        // pcap: a header of 24 bytes; before each frame 16 bytes, of which the
        // third word is how much was kept of it, and the fourth its length.
        let file = self.0.out_bytes();
        let mut rest = file.get(24..).unwrap_or_default();
        let mut frames = Vec::new();
        while let Some((header, behind)) = rest.split_at_checked(16) {
            let word =
                |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
            let Some((frame, behind)) = behind.split_at_checked(word(8) as usize) else {
                break;
            };
            frames.push((frame.to_vec(), word(12).into()));
            rest = behind;
        }
        frames
    }

    /// Waits for a frame.
    pub fn wait_for<T>(&self, what: &str, is_it: impl Fn(&[u8]) -> Option<T>) -> T {
        wait_for(what, || self.frames().iter().find_map(|frame| is_it(frame)))
    }
}

/// Starts tcpdump and waits until it listens. It has to stay root: a change of
/// user makes a process forget that it shall die with its parent.
pub fn tcpdump(namespace: &Namespace, args: &[&str]) -> Process {
    let mut all = vec!["tcpdump", "--immediate-mode", "-Z", "root"];
    all.extend(args);
    let mut process = namespace.start(&all);
    process.wait_for_words("listening on");
    process
}
