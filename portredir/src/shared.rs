//! An array map of 64-bit values as memory of this process: what is written is
//! there for the programs at once.
#![expect(unsafe_code, reason = "memory of the kernel")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The values of a map that was made with `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub struct SharedArray {
    values: NonNull<AtomicU64>,
    count: usize,
}

impl SharedArray {
    /// Of a map with `count` values.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn map(map: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let length =
            NonZeroUsize::new(count * size_of::<u64>()).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping of the kernel's choice; it is as long as the map,
        // else the kernel refuses.
        let values = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, map, 0) }?;
        let values = values.cast();
        Ok(Self { values, count })
    }

    /// Writes one value.
    ///
    /// # Panics
    ///
    /// Behind the end.
    pub fn set(&self, index: u32, value: u64) {
        let index = index as usize;
        assert!(index < self.count, "value {index} of {}", self.count);
        // SAFETY: inside the mapping, which is aligned to pages; the kernel and
        // other processes read and write whole values as well.
        let place = unsafe { self.values.add(index).as_ref() };
        place.store(value, Ordering::Release);
    }
}

impl Drop for SharedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, which nobody else knows.
        let _ = unsafe { munmap(self.values.cast(), self.count * size_of::<u64>()) };
    }
}
