//! What the allocator does with freed memory.

/// Lets glibc's allocator keep what is freed instead of handing it back: a training step frees and takes the same
/// gigabytes again and again, and fresh pages come zeroed by the system, one fault each. For the whole process, from
/// the next allocation on; other allocators stay as they are.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Pieces up to this size (the most that glibc takes) come from the heap, which is kept, not from mappings of
        /// their own, which are not.
        const LARGEST_OF_HEAP: i32 = 1 << 30;
        // SAFETY: it changes settings of the allocator, under the allocator's own lock.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_OF_HEAP);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}

/// Hands memory that was freed back to the system where glibc's allocator keeps it: after something large was read and taken
/// apart, and before much is done without it.
pub fn give_freed_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it gives back what nobody holds, under the allocator's own lock.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}
