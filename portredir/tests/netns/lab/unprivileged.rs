//! A user without rights, inside of this process: to the kernel users belong to
//! threads.

/// Runs a function as the user `nobody`, in the network namespace of this thread.
pub fn as_unprivileged_user<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            give_up_rights();
            f()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => panic!("{}", crate::message(&*panic).unwrap_or("?")),
        }
    })
}

/// By system calls, as the functions of the C library change all threads
/// (nptl(7)). With its user the thread loses its capabilities (capabilities(7)).
#[expect(unsafe_code, reason = "system calls")]
fn give_up_rights() {
    const NOBODY: libc::c_long = 65_534;
    let none: *const libc::gid_t = std::ptr::null();
    // SAFETY: plain numbers, and a list without members.
    let results = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, 0_usize, none),
            libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY),
            libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY),
        ]
    };
    assert_eq!(results, [0; 3], "become nobody");
}
