//! Underlay sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// What is asked of a socket.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Receive and send buffer asked for, bytes.
    pub buffer_bytes: u32,
}

impl Default for Options {
    fn default() -> Self {
        // A burst of 64 trains of 64 KiB: what a worker can be behind by a few milliseconds.
        Self { buffer_bytes: 4 * 1024 * 1024 }
    }
}

/// A socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody has it.
    #[error(
        "UDP port {port} is in use{on}: another Hyphae or another program listens there; choose \
         another with --listen"
    )]
    InUse {
        /// Port.
        port: u16,
        /// " on ADDRESS" when one was named.
        on: String,
    },
    /// Not ours.
    #[error("cannot listen on {0}: this host does not have that address; check --listen")]
    NotLocal(SocketAddr),
    /// Privileged port.
    #[error("cannot listen on UDP port {0}: ports below 1024 need CAP_NET_BIND_SERVICE")]
    Privileged(u16),
    /// Another failure.
    #[error("{call} for {address}: {source}")]
    System {
        /// Which call.
        call: &'static str,
        /// For which address.
        address: SocketAddr,
        /// How.
        source: io::Error,
    },
}

/// A bound socket and what the kernel granted it.
#[derive(Debug)]
pub struct Bound {
    /// The socket: blocking, because io_uring waits inside the kernel; the epoll driver asks per call.
    pub socket: OwnedFd,
    /// Where it listens.
    pub address: SocketAddr,
    /// Receive buffer, bytes, as the kernel counts them.
    pub receive_bytes: u32,
    /// Whether the kernel merges trains (UDP_GRO, Linux 5.0).
    pub merges: bool,
}

const UDP_GRO: libc::c_int = 104;

/// Opens and binds an underlay socket. `[::]` serves IPv4 as well.
///
/// # Errors
/// When the address cannot be had; the error names the likely cause.
pub fn bind(address: SocketAddr, options: Options) -> Result<Bound, BindError> {
    let system = |call| move |source: io::Error| BindError::System { call, address, source };
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket =
        rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| system("socket")(error.into()))?;
    let set = |level, name, value| set_option(&socket, level, name, value);
    let ipv6 = family == AddressFamily::INET6;
    if ipv6 {
        let dual = i32::from(address.ip() != IpAddr::from([0u16; 8]));
        set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, dual).map_err(system("IPV6_V6ONLY"))?;
    }
    // Nothing is fragmented: a frame that does not fit the path is an error that shows.
    let v4 = set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO);
    if !ipv6 {
        v4.map_err(system("IP_MTU_DISCOVER"))?;
    } else {
        set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
            .map_err(system("IPV6_MTU_DISCOVER"))?;
    }
    let merges = set(libc::SOL_UDP, UDP_GRO, 1).is_ok();
    // Counting is worth having, not worth failing for.
    let _ = set(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
    let bytes = i32::try_from(options.buffer_bytes).unwrap_or(i32::MAX);
    for (force, plain) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    ] {
        // FORCE needs CAP_NET_ADMIN; without it the kernel cuts to net.core.[rw]mem_max.
        if set(libc::SOL_SOCKET, force, bytes).is_err() {
            set(libc::SOL_SOCKET, plain, bytes).map_err(system("SO_RCVBUF"))?;
        }
    }
    rustix::net::bind(&socket, &address).map_err(|error| match error {
        rustix::io::Errno::ADDRINUSE => {
            let on = if address.ip().is_unspecified() {
                String::new()
            } else {
                format!(" on {}", address.ip())
            };
            BindError::InUse { port: address.port(), on }
        }
        rustix::io::Errno::ADDRNOTAVAIL => BindError::NotLocal(address),
        rustix::io::Errno::ACCESS => BindError::Privileged(address.port()),
        other => system("bind")(other.into()),
    })?;
    let address = local_address(&socket).map_err(system("getsockname"))?;
    let receive_bytes = rustix::net::sockopt::socket_recv_buffer_size(&socket)
        .map_err(|error| system("SO_RCVBUF")(error.into()))?;
    let receive_bytes = u32::try_from(receive_bytes).unwrap_or(u32::MAX);
    Ok(Bound { socket, address, receive_bytes, merges })
}

pub(crate) fn is_ipv4(socket: &OwnedFd) -> io::Result<bool> {
    Ok(local_address(socket)?.is_ipv4())
}

fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    let address = rustix::net::getsockname(socket)?;
    SocketAddr::try_from(address).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn set_option(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the kernel reads one int from the address of a live local of that size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
