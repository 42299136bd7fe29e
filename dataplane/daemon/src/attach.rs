//! Lets one control plane at a time attach.
//!
//! The connection is the lease: while it lives, another control plane is refused; when it ends, its
//! holder is gone and the next one may come. Only processes of the same user, or root, are let in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use hyphae_files::{BindError, Directory, DirectoryError, Socket};
use hyphae_shm::attach::{self, BUSY, FORBIDDEN, Hello, WELCOME};
use hyphae_shm::{Doorbell, Segment};
use rustix::net::RecvFlags;
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
    /// It cannot be made.
    #[error(transparent)]
    Bind(BindError),
    /// Its directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// The listening socket and the lease.
pub(crate) struct Server {
    listener: UnixListener,
    /// `None` only while another one is made.
    socket: Option<Socket>,
    path: PathBuf,
    lease: Option<UnixStream>,
    segment: Segment,
    memory: OwnedFd,
    control_bell: Doorbell,
    worker_bells: Vec<Doorbell>,
    hello: Hello,
}

impl Server {
    /// Takes over `dataplane.sock` in `directory`; a socket of ours that nobody listens on is replaced.
    pub(crate) fn listen(
        directory: &Directory,
        segment: Segment,
        memory: OwnedFd,
        control_bell: Doorbell,
        worker_bells: Vec<Doorbell>,
        hello: Hello,
    ) -> Result<Self, SocketError> {
        let (socket, listener) = bind(directory)?;
        Ok(Self {
            listener,
            path: socket.path(),
            socket: Some(socket),
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
        let there = self.socket.as_ref().is_some_and(Socket::exists);
        if there || self.path.symlink_metadata().is_ok() {
            return;
        }
        // Its lock first, which the next one needs.
        self.socket = None;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let made = Directory::create(directory).map_err(SocketError::from);
        let path = self.path.display();
        match made.and_then(|directory| bind(&directory)) {
            Ok((socket, listener)) => {
                tracing::warn!(%path, "the socket was deleted, and is there again");
                (self.socket, self.listener) = (Some(socket), listener);
            }
            Err(error) => {
                tracing::debug!(%error, "the socket was deleted and could not be made again");
            }
        }
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    pub(crate) fn lease(&self) -> Option<BorrowedFd<'_>> {
        self.lease.as_ref().map(AsFd::as_fd)
    }

    /// Something happened on the lease: its holder has gone. The only byte that it ever writes says that it leaves
    /// in order.
    pub(crate) fn end_lease(&mut self) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        let said = rustix::net::recv(&lease, &mut [0u8; 1], RecvFlags::DONTWAIT);
        if matches!(said, Ok((_, 1))) {
            tracing::info!("control plane has stopped; forwarding goes on with the state it left");
        } else {
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
            && rustix::net::recv(lease, &mut [0u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT)
                .is_ok()
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

fn bind(directory: &Directory) -> Result<(Socket, UnixListener), SocketError> {
    Socket::bind(directory, SOCKET_NAME, 0o600, true).map_err(|error| match error {
        BindError::Live(path) => SocketError::InUse(path),
        error @ (BindError::NotASocket(_)
        | BindError::NotOurs(_)
        | BindError::TooLong(_)
        | BindError::System { .. }) => SocketError::Bind(error),
    })
}
