//! System V semaphores and shared memory by key: enough to prove who shares an IPC namespace with whom.
//!
//! POSIX shared memory needs nothing from here: it is files below `/dev/shm`.

use std::{io, ptr};

/// The key of a semaphore set or a segment, as `ftok(3)` would make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub i32);

/// Makes a set of one semaphore and gives it a value.
pub fn semaphore_create(key: Key, value: i32) -> io::Result<()> {
    let id = semaphore(key, 1, libc::IPC_CREAT | libc::IPC_EXCL | 0o666)?;
    semaphore_control(id, libc::SETVAL, value).map(drop)
}

/// The value of the semaphore; `NotFound` when this IPC namespace has none of that key.
pub fn semaphore_value(key: Key) -> io::Result<i32> {
    let id = semaphore(key, 0, 0)?;
    semaphore_control(id, libc::GETVAL, 0)
}

/// Removes the semaphore set.
pub fn semaphore_remove(key: Key) -> io::Result<()> {
    let id = semaphore(key, 0, 0)?;
    semaphore_control(id, libc::IPC_RMID, 0).map(drop)
}

/// Makes a segment that holds `data` behind its length.
pub fn segment_create(key: Key, data: &[u8]) -> io::Result<()> {
    let id = segment(key, LENGTH + data.len(), libc::IPC_CREAT | libc::IPC_EXCL | 0o666)?;
    let address = attach(id)?;
    let length = data.len().to_ne_bytes();
    // SAFETY: the segment was made above with room for the length and the data, nobody else knows its id as long as
    // nobody looks the key up, and `address` stays attached until `detach` below. Both sources are live slices.
    unsafe { ptr::copy_nonoverlapping(length.as_ptr(), address, LENGTH) };
    // SAFETY: as above: LENGTH + data.len() bytes belong to the segment.
    let behind = unsafe { address.add(LENGTH) };
    // SAFETY: as above; the two ranges can't overlap since the segment was mapped after `data` was allocated.
    unsafe { ptr::copy_nonoverlapping(data.as_ptr(), behind, data.len()) };
    detach(address)
}

/// What [`segment_create`] wrote; `NotFound` when this IPC namespace has no segment of that key.
pub fn segment_read(key: Key) -> io::Result<Vec<u8>> {
    let id = segment(key, 0, 0)?;
    let size = segment_size(id)?;
    let address = attach(id)?;
    let mut bytes = vec![0; size];
    // SAFETY: the kernel says that the segment has `size` bytes, a segment never shrinks, `address` stays attached
    // until `detach` below, and `bytes` is a fresh allocation of the same length.
    unsafe { ptr::copy_nonoverlapping(address, bytes.as_mut_ptr(), size) };
    detach(address)?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "segment was not made by segment_create");
    let (length, data) = bytes.split_first_chunk::<LENGTH>().ok_or_else(malformed)?;
    data.get(..usize::from_ne_bytes(*length)).map(<[u8]>::to_vec).ok_or_else(malformed)
}

/// Removes the segment once nobody has it attached.
pub fn segment_remove(key: Key) -> io::Result<()> {
    let id = segment(key, 0, 0)?;
    // SAFETY: IPC_RMID ignores the pointer; `id` is a plain number that the kernel checks.
    check(unsafe { libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()) }).map(drop)
}

const LENGTH: usize = size_of::<usize>();

fn semaphore(key: Key, count: i32, flags: i32) -> io::Result<i32> {
    // SAFETY: semget takes three numbers and no pointer.
    check(unsafe { libc::semget(key.0, count, flags) })
}

fn semaphore_control(id: i32, command: i32, value: i32) -> io::Result<i32> {
    // SAFETY: the commands used here take an int or nothing as their fourth argument, so no pointer is read.
    check(unsafe { libc::semctl(id, 0, command, value) })
}

fn segment(key: Key, size: usize, flags: i32) -> io::Result<i32> {
    // SAFETY: shmget takes three numbers and no pointer.
    check(unsafe { libc::shmget(key.0, size, flags) })
}

fn segment_size(id: i32) -> io::Result<usize> {
    // SAFETY: shmid_ds is plain data, for which all zeroes is a valid value.
    let mut status: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: IPC_STAT writes one shmid_ds through the pointer, which is live and exclusive for the call.
    check(unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut status) })?;
    Ok(status.shm_segsz)
}

fn attach(id: i32) -> io::Result<*mut u8> {
    // SAFETY: a null address lets the kernel choose a free range, so nothing mapped is replaced.
    let address = unsafe { libc::shmat(id, ptr::null(), 0) };
    if address.addr() == usize::MAX { Err(io::Error::last_os_error()) } else { Ok(address.cast()) }
}

fn detach(address: *mut u8) -> io::Result<()> {
    // SAFETY: `address` comes from `attach`, and no reference into the segment is ever made.
    check(unsafe { libc::shmdt(address.cast()) }).map(drop)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(salt: u32) -> Key {
        Key((std::process::id().wrapping_mul(16).wrapping_add(salt) & 0x7fff_ffff).cast_signed())
    }

    #[test]
    fn a_semaphore_is_found_by_its_key_until_it_is_removed() {
        let key = key(1);
        assert_eq!(semaphore_value(key).unwrap_err().kind(), io::ErrorKind::NotFound);
        semaphore_create(key, 7).unwrap();
        assert_eq!(semaphore_create(key, 8).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(semaphore_value(key).unwrap(), 7);
        semaphore_remove(key).unwrap();
        assert_eq!(semaphore_value(key).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_segment_gives_back_what_was_written() {
        let key = key(2);
        assert_eq!(segment_read(key).unwrap_err().kind(), io::ErrorKind::NotFound);
        segment_create(key, b"shared by the pod").unwrap();
        assert_eq!(segment_read(key).unwrap(), b"shared by the pod");
        segment_remove(key).unwrap();
        assert_eq!(segment_read(key).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
