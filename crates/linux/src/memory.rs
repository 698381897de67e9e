//! How the allocator treats memory that is not needed now.

/// Keeps a process small that lives long and mostly sleeps: threads share one heap, and large blocks go back to the
/// kernel as soon as they are freed ([mallopt(3)](https://man7.org/linux/man-pages/man3/mallopt.3.html)). An allocator
/// that is not glibc's does as it does.
pub fn stay_small() {
    #[cfg(target_env = "gnu")]
    {
        /// Above it, a block is a mapping of its own.
        const MAPPED_FROM_BYTES: libc::c_int = 512 * 1024;
        /// Free memory at the end of the heap, above which it goes back.
        const TRIMMED_FROM_BYTES: libc::c_int = 128 * 1024;
        let settings = [
            (libc::M_ARENA_MAX, 1),
            (libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES),
            (libc::M_TRIM_THRESHOLD, TRIMMED_FROM_BYTES),
        ];
        for (parameter, value) in settings {
            // SAFETY: mallopt(3) takes any value; what it does not understand it leaves as it is.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}

/// Gives free memory within the heap back to the kernel ([malloc_trim(3)](https://man7.org/linux/man-pages/man3/malloc_trim.3.html)).
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
