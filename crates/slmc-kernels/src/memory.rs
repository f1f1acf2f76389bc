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

/// Asks the system to take the memory under these bytes away for now: they are there again when they are read. What is
/// left of a mapped file that has been read then counts no longer as this process's memory. Elsewhere than on Linux
/// nothing happens.
pub fn page_out(bytes: &[u8]) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const PAGE: usize = 4096;
        let start = bytes.as_ptr() as usize;
        let first = start.next_multiple_of(PAGE);
        let end = (start + bytes.len()) / PAGE * PAGE;
        if first < end {
            // SAFETY: the range lies inside the slice, and the advice changes no content. Refused, it does nothing.
            #[allow(unsafe_code)]
            unsafe {
                libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_PAGEOUT);
            }
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = bytes;
}
