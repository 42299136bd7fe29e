//! Groups of the process at the other end of a Unix socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Groups that are enough for most processes; the kernel reports how many there are otherwise.
const FIRST: usize = 64;

/// Supplementary groups that the peer of a stream socket had when it connected (`SO_PEERGROUPS`,
/// Linux 4.13), beside the primary group, which `SO_PEERCRED` has.
///
/// # Errors
/// When the descriptor is not a connected Unix socket.
pub fn peer_groups<Fd: AsFd>(socket: Fd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; FIRST];
    loop {
        let mut len = libc::socklen_t::try_from(size_of_val(&groups[..]))
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the descriptor is open while `socket` is borrowed. `groups` is writable for `len`
        // bytes, which the kernel does not exceed, and any bytes are valid numbers.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = len as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn groups_of_a_peer_are_those_it_connected_with() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut expected: Vec<u32> = rustix::process::getgroups()
            .unwrap()
            .iter()
            .map(|gid| gid.as_raw())
            .collect();
        let mut found = peer_groups(&near).unwrap();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
        drop(far);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(peer_groups(&file).is_err());
    }
}
