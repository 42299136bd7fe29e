//! Stream links: frames over TCP, for networks that let no UDP through.
//!
//! One thread serves all connections, by `tokio-uring` where io_uring is used and by plain tokio
//! elsewhere. A worker whose frame is for a stream (see
//! [`Endpoint::is_stream`](hyphae_wire::Endpoint::is_stream)) hands it over through a ring instead
//! of to its socket; a frame that was read goes to the worker that owns its session, as if it had
//! come in a datagram. So workers know nothing of connections, and neither does the control plane:
//! the first message of a handshake to a stream opens its connection.
//!
//! Frames are copied here. This is for reachability, not for speed.
//!
//! * `framing`: where a frame begins and ends
//! * `outbox`: what waits for one connection, bounded
//! * `table`: which connections there are and may be
//! * `socket`, `connection`, `serve`: the thread

mod connection;
mod framing;
mod outbox;
mod rings;
mod serve;
mod socket;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use hyphae_driver::udp::set_mark;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

pub(crate) use connection::Times;
pub(crate) use rings::{COUNTERS, DROPS, OVERRUNS_AT, StreamOutlet, connect, parse_counts};
pub(crate) use serve::{StreamContext, run};

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: i32 = 128;

/// Opens the listening socket at the address of worker 0's datagram socket; like that one, `[::]`
/// serves IPv4 too.
pub(crate) fn listen_at(address: SocketAddr, mark: u32) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    // Connections of a predecessor may still be winding down.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Answers to a connection that is being opened are the kernel's, and what is accepted has it too.
    set_mark(socket.as_fd(), mark)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}
