//! How the C library's allocator keeps memory.

/// Allocations from this size are the kernel's, and go back to it at once when they are freed. It is glibc's own first choice;
/// setting it keeps glibc from raising it to megabytes when a large table is freed, after which tables that grow leave
/// holes.
#[cfg(target_env = "gnu")]
const FROM_KERNEL_BYTES: libc::c_int = 128 * 1024;

/// Makes the allocator keep little that is free; to be called before threads are started.
///
/// All threads share one arena. glibc makes eight for each processor, and memory that is free in one can't be used by
/// another, so that a daemon with many threads that seldom allocate keeps several times what it needs. Other C libraries
/// have no such settings.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (setting, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, FROM_KERNEL_BYTES),
        (libc::M_TRIM_THRESHOLD, FROM_KERNEL_BYTES),
    ] {
        // SAFETY: `mallopt` changes a number of the allocator, under the allocator's own lock.
        unsafe {
            libc::mallopt(setting, value);
        }
    }
}

/// Gives free memory back to the kernel, also from between what is in use. Takes about a millisecond for ten mebibytes.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` locks what it walks through, and touches only what nobody holds.
    unsafe {
        libc::malloc_trim(0);
    }
}
