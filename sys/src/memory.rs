//! How the C library's allocator treats the memory of this process.

/// Has large buffers go back to the kernel when they are freed, and the heap's free end too.
///
/// By default the allocator learns from the first large buffer that is freed to keep such ones, up to 64 MiB: good for speed,
/// and dear for a process of which there is one per pod and that is idle most of the time.
pub fn give_back_early() {
    const LIMIT: libc::c_int = 32 << 10;
    // SAFETY: mallopt takes two numbers. It answers 0 for what it does not know, which changes nothing.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LIMIT) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, LIMIT) };
}
