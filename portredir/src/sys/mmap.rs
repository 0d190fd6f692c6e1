//! Array maps as memory, so that large data, or data that changes in many places at once,
//! is read and written without a call per element; and the return of unused memory.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use portredir_common::map::bucket::Bucket;
use portredir_common::map::ends::Ends;
use portredir_common::map::packet_path::PacketPath;

/// Lets the allocator return unused memory to the kernel, after much was needed for a
/// moment. Some C libraries keep it otherwise.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "a function of the C library")]
    // SAFETY: malloc_trim(3) may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A type of elements that programs and user space may access at the same time, and for
/// which any bytes are valid.
pub trait Shared: Send + Sync + 'static {}

impl Shared for AtomicU64 {}
impl Shared for Bucket<AtomicU64> {}
impl Shared for Ends<AtomicU64> {}
impl Shared for PacketPath<AtomicU64> {}

/// The elements of an array map that was made with `BPF_F_MMAPABLE`; their size is a
/// multiple of eight.
pub struct Mapped<T: Shared>(&'static [T]);

impl<T: Shared> Mapped<T> {
    /// Maps the first `len` elements.
    ///
    /// # Errors
    ///
    /// When the map has fewer, or is of another kind.
    #[expect(unsafe_code, reason = "memory that the kernel shares")]
    pub fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let bytes = NonZeroUsize::new(len * size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { mmap(None, bytes, prot, MapFlags::MAP_SHARED, map, 0)? };
        // SAFETY: the mapping is as long, begins with a page and so is aligned,
        // and is there until it is dropped. Any bytes are a `T`, which is made
        // of atomic words.
        Ok(Self(unsafe {
            std::slice::from_raw_parts(start.cast().as_ptr(), len)
        }))
    }
}

impl<T: Shared> Drop for Mapped<T> {
    #[expect(unsafe_code, reason = "as above")]
    fn drop(&mut self) {
        let start = NonNull::from(self.0).cast();
        // SAFETY: the whole of our own mapping, without any references left.
        let _ = unsafe { munmap(start, size_of_val(self.0)) };
    }
}

impl<T: Shared> Deref for Mapped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0
    }
}

impl<T: Shared> fmt::Debug for Mapped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements", self.0.len())
    }
}
