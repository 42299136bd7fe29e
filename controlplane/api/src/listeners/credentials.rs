//! Callers of `rpc.sock`, by the credentials that the kernel recorded at connect.

use std::os::fd::AsFd;

use hyphae_shm::peer_groups;
use tokio::net::UnixStream;

use super::peer_uid::{is_overflow_gid, is_overflow_uid};
use crate::authorizer::{Caller, Listener};
use hyphae_config::Allowed;

/// `SO_PEERCRED` and `SO_PEERGROUPS`.
#[derive(Debug)]
struct Credentials {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// The peer of a connection, if it may use the socket, whose file has the group `file_gid`.
pub(super) fn admitted(stream: &UnixStream, allowed: &Allowed, file_gid: u32) -> Option<Caller> {
    let peer = stream.peer_cred().ok()?;
    let (uid, gid) = (peer.uid(), peer.gid());
    let us = rustix::process::geteuid().as_raw();
    let credentials = Credentials {
        uid,
        gid,
        // Without them the primary group still counts.
        groups: peer_groups(stream.as_fd()).unwrap_or_default(),
    };
    credentials
        .admitted(us, allowed, file_gid)
        .then(|| Caller::local(Listener::Unix, uid))
}

impl Credentials {
    fn admitted(&self, us: u32, allowed: &Allowed, file_gid: u32) -> bool {
        // The overflow numbers represent all users and groups of other user namespaces.
        if is_overflow_uid(self.uid) {
            return false;
        }
        let group =
            |gid: &u32| !is_overflow_gid(*gid) && (*gid == file_gid || allowed.gids.contains(gid));
        self.uid == 0
            || self.uid == us
            || allowed.uids.contains(&self.uid)
            || group(&self.gid)
            || self.groups.iter().any(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERFLOW: u32 = 65_534;

    #[test]
    fn users_and_groups_admit_but_for_the_overflow_numbers() {
        let allowed = Allowed {
            uids: vec![7, OVERFLOW],
            gids: vec![70, OVERFLOW],
        };
        let admits = |uid, gid, groups: &[u32]| {
            let groups = groups.to_vec();
            Credentials { uid, gid, groups }.admitted(5, &allowed, 50)
        };
        assert!(admits(0, 1, &[]) && admits(5, 1, &[]) && admits(7, 1, &[]));
        assert!(admits(8, 50, &[]) && admits(8, 70, &[]) && admits(8, 1, &[2, 70]));
        assert!(!admits(8, 1, &[2, 3]));
        // The kernel default.
        assert!(is_overflow_uid(OVERFLOW) && is_overflow_gid(OVERFLOW));
        assert!(!admits(OVERFLOW, 50, &[70]));
        assert!(!admits(8, OVERFLOW, &[OVERFLOW]));
    }
}
