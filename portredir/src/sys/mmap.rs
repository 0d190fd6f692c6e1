//! Array maps as memory, so that large maps are read and written without a system call
//! per element.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use portredir_common::abi::Hot;
use portredir_common::bucket::Bucket;

/// Makes the allocator return unused memory to the kernel. glibc keeps the memory
/// otherwise; other C libraries do not.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "a function of the C library")]
    // SAFETY: the function may be called at any time (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A type of elements that programs and user space may access at the same time. Every bit
/// pattern is a valid element.
pub trait Shared: Send + Sync + 'static {}

impl Shared for Bucket<AtomicU64> {}
impl Shared for Hot<AtomicU64> {}

/// The elements of an array map with `BPF_F_MMAPABLE`. Their size is a multiple of eight.
pub struct Mapped<T: Shared>(&'static [T]);

impl<T: Shared> Mapped<T> {
    /// Maps the first `len` elements.
    ///
    /// # Errors
    ///
    /// The map has fewer elements, or is of another kind.
    #[expect(unsafe_code, reason = "memory that the kernel shares")]
    pub fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let bytes = NonZeroUsize::new(len * size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the mapping is new, at an address that the kernel chooses.
        let start = unsafe { mmap(None, bytes, prot, MapFlags::MAP_SHARED, map, 0)? };
        // SAFETY: the mapping has this length, begins with a page and so is aligned, and
        // exists until it is dropped. Every bit pattern is a valid `T`, which consists of
        // atomic words.
        Ok(Self(unsafe {
            std::slice::from_raw_parts(start.cast().as_ptr(), len)
        }))
    }
}

impl<T: Shared> Drop for Mapped<T> {
    #[expect(unsafe_code, reason = "as above")]
    fn drop(&mut self) {
        let start = NonNull::from(self.0).cast();
        // SAFETY: the whole mapping is ours, and no reference to it exists any more.
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
