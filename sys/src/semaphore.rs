//! Named POSIX semaphores: enough to prove who shares `/dev/shm`, and so memory, with whom.

use std::{ffi::CStr, io, ptr::NonNull};

/// An open semaphore.
#[derive(Debug)]
pub struct Semaphore(NonNull<libc::sem_t>);

impl Semaphore {
    /// Makes one of that name (`/name`) with a value; an error if it is there.
    pub fn create(name: &CStr, value: u32) -> io::Result<Self> {
        let mode: libc::mode_t = 0o666;
        // SAFETY: the name is NUL-terminated and lives through the call; with O_CREAT the function reads a mode and an
        // unsigned value, and both are given in their types.
        let semaphore = unsafe { libc::sem_open(name.as_ptr(), libc::O_CREAT | libc::O_EXCL, mode, value) };
        Self::opened(semaphore)
    }

    /// Opens the one of that name.
    pub fn open(name: &CStr) -> io::Result<Self> {
        // SAFETY: the name is NUL-terminated and lives through the call; without O_CREAT no further argument is read.
        let semaphore = unsafe { libc::sem_open(name.as_ptr(), 0) };
        Self::opened(semaphore)
    }

    fn opened(semaphore: *mut libc::sem_t) -> io::Result<Self> {
        if semaphore == libc::SEM_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(semaphore).map(Self).ok_or_else(|| io::Error::other("sem_open answered nothing"))
    }

    /// Adds one.
    pub fn post(&self) -> io::Result<()> {
        // SAFETY: the pointer comes from `sem_open` and is closed only when this is dropped.
        check(unsafe { libc::sem_post(self.0.as_ptr()) })
    }

    /// Waits until there is one to take.
    pub fn wait(&self) -> io::Result<()> {
        // SAFETY: the pointer comes from `sem_open` and is closed only when this is dropped.
        check(unsafe { libc::sem_wait(self.0.as_ptr()) })
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        // SAFETY: the pointer comes from `sem_open`, is closed once, and is not used afterwards.
        unsafe { libc::sem_close(self.0.as_ptr()) };
    }
}

/// Removes the name.
pub fn remove(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is NUL-terminated and lives through the call.
    check(unsafe { libc::sem_unlink(name.as_ptr()) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn what_one_posts_another_takes() {
        let name = CString::new(format!("/vaina-sys-{}", std::process::id())).unwrap();
        assert_eq!(Semaphore::open(&name).unwrap_err().kind(), io::ErrorKind::NotFound);
        let one = Semaphore::create(&name, 0).unwrap();
        assert_eq!(Semaphore::create(&name, 0).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        one.post().unwrap();
        Semaphore::open(&name).unwrap().wait().unwrap();
        remove(&name).unwrap();
        assert_eq!(Semaphore::open(&name).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
