//! The heap of the C library.

/// Gives memory that nobody uses back to the kernel. The C library keeps it otherwise, and a
/// process that works on much now and then stays as large as it was at its largest.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "a function of the C library")]
    // SAFETY: malloc_trim(3) may be called by any thread, and touches free memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
}
