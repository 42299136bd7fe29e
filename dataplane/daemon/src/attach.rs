//! Lets one control plane at a time attach.
//!
//! The connection is the lease: while it lives, another control plane is refused; when it ends, its
//! holder is gone and the next one may come. Only processes of the same user, or root, are let in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use hyphae_shm::attach::{self, BUSY, FORBIDDEN, Hello, WELCOME};
use hyphae_shm::{Doorbell, Segment};
use zerocopy::little_endian::{U32, U64};

/// File name of the socket.
pub(crate) const SOCKET_NAME: &str = "dataplane.sock";

/// The socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error(
        "{0}: another dataplane is running with this socket directory; stop it or use another --socket-dir"
    )]
    InUse(PathBuf),
    /// Another failure.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
}

/// The listening socket and the lease.
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    lease: Option<UnixStream>,
    segment: Segment,
    memory: OwnedFd,
    control_bell: Doorbell,
    worker_bells: Vec<Doorbell>,
    hello: Hello,
}

impl Server {
    /// Takes over `dataplane.sock` in `directory`; a socket file that nobody listens on is
    /// replaced.
    pub(crate) fn listen(
        directory: &Path,
        segment: Segment,
        memory: OwnedFd,
        control_bell: Doorbell,
        worker_bells: Vec<Doorbell>,
        hello: Hello,
    ) -> Result<Self, SocketError> {
        let path = directory.join(SOCKET_NAME);
        let listener = bind(&path)?;
        Ok(Self {
            listener,
            path,
            lease: None,
            segment,
            memory,
            control_bell,
            worker_bells,
            hello,
        })
    }

    /// Makes the socket anew where somebody has deleted it: no control plane could ever attach again.
    pub(crate) fn restore(&mut self) {
        let there = std::fs::symlink_metadata(&self.path);
        if !there.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return;
        }
        let made = self.path.parent().map_or(Ok(()), |directory| {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(directory)
        });
        let path = self.path.display();
        match made
            .map_err(|error| error.to_string())
            .and_then(|()| bind(&self.path).map_err(|error| error.to_string()))
        {
            Ok(listener) => {
                tracing::warn!(%path, "the socket was deleted, and is there again");
                self.listener = listener;
            }
            Err(error) => {
                tracing::debug!(error, "the socket was deleted and could not be made again");
            }
        }
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    pub(crate) fn lease(&self) -> Option<BorrowedFd<'_>> {
        self.lease.as_ref().map(AsFd::as_fd)
    }

    /// Something happened on the lease. Its holder never writes, so it has gone.
    pub(crate) fn end_lease(&mut self) {
        if self.lease.take().is_some() {
            tracing::warn!("control plane is gone; forwarding goes on with the state it left");
        }
    }

    /// Somebody knocks.
    pub(crate) fn admit(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        // The holder of the lease may have died just before the newcomer came.
        if let Some(lease) = &self.lease
            && lease.set_nonblocking(true).is_ok()
            && matches!(rustix::io::read(lease, &mut [0u8; 1]), Ok(0))
        {
            self.end_lease();
        }
        match self.offer(&stream) {
            Ok(true) => {
                tracing::info!(
                    generation = self.segment.generation(),
                    "control plane attached"
                );
                self.lease = Some(stream);
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "control plane could not attach"),
        }
    }

    fn offer(&self, stream: &UnixStream) -> Result<bool, attach::AttachError> {
        let refusal = self.refusal(stream);
        if refusal != WELCOME {
            tracing::warn!(
                reason = if refusal == BUSY {
                    "another one is attached"
                } else {
                    "other user"
                },
                "control plane refused"
            );
            attach::offer(stream.as_fd(), &Hello::blank(refusal), &[])?;
            return Ok(false);
        }
        let mut hello = self.hello;
        hello.generation = U64::new(self.segment.raise_generation());
        hello.pid = U32::new(std::process::id());
        let mut fds = vec![self.memory.as_fd(), self.control_bell.as_fd()];
        fds.extend(self.worker_bells.iter().map(AsFd::as_fd));
        attach::offer(stream.as_fd(), &hello, &fds)?;
        Ok(true)
    }

    fn refusal(&self, stream: &UnixStream) -> u32 {
        let ours = rustix::process::geteuid();
        let allowed = rustix::net::sockopt::socket_peercred(stream)
            .is_ok_and(|peer| peer.uid == ours || peer.uid.is_root());
        match (allowed, &self.lease) {
            (false, _) => FORBIDDEN,
            (true, Some(_)) => BUSY,
            (true, None) => WELCOME,
        }
    }
}

fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let fail = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    if UnixStream::connect(path).is_ok() {
        return Err(SocketError::InUse(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::chmod(path, mode).map_err(|error| fail(error.into()))?;
    Ok(listener)
}

impl Drop for Server {
    fn drop(&mut self) {
        // The file is ours: `listen` made it. If it is gone already, so much the better.
        let _ = std::fs::remove_file(&self.path);
    }
}
