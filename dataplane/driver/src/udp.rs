//! The underlay socket of a worker: bound, with the options that trains need.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind as bind_socket, socket_with, sockopt,
};

/// What a socket is wanted to have.
#[derive(Clone, Copy, Debug)]
pub struct SocketOptions {
    /// Bytes of datagrams that may wait to be received.
    pub receive_bytes: usize,
    /// Bytes of datagrams that may wait to be sent.
    pub send_bytes: usize,
    /// Mark of what is sent, for rules of policy routing and packet filters; 0 for none.
    pub mark: u32,
}

impl Default for SocketOptions {
    /// 16 MiB each way: about 250 trains. No mark.
    fn default() -> Self {
        Self {
            receive_bytes: 16 << 20,
            send_bytes: 16 << 20,
            mark: 0,
        }
    }
}

/// What a socket got.
#[derive(Clone, Copy, Debug)]
pub struct SocketReport {
    /// Where it is bound, with the port that the kernel chose if none was given.
    pub local: SocketAddr,
    /// As in [`SocketOptions`]; less than asked for when `net.core.rmem_max` limits it and the
    /// process may not exceed it (`CAP_NET_ADMIN`).
    pub receive_bytes: usize,
    /// As `receive_bytes`, by `net.core.wmem_max`.
    pub send_bytes: usize,
    /// Whether the kernel joins datagrams into trains (`UDP_GRO`).
    pub gro: bool,
    /// As in [`SocketOptions`]; 0 when the process may not mark (`CAP_NET_ADMIN`).
    pub mark: u32,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port is taken.
    #[error(
        "bind {address}: EADDRINUSE: another process has UDP port {}, perhaps another hyphae; \
         stop it (`ss -ulpn` names it) or listen on another port (--listen)", address.port()
    )]
    InUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// No interface has the address.
    #[error(
        "bind {address}: EADDRNOTAVAIL: no interface of this host has the address; --listen \
         [::]:PORT takes all of them"
    )]
    NotAvailable {
        /// The address asked for.
        address: SocketAddr,
    },
    /// A privileged port.
    #[error(
        "bind {address}: EACCES: ports below net.ipv4.ip_unprivileged_port_start need \
         CAP_NET_BIND_SERVICE"
    )]
    NotPermitted {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The kernel has no IPv6.
    #[error("bind {address}: EAFNOSUPPORT: this kernel has no IPv6; listen on 0.0.0.0 instead")]
    NoIpv6 {
        /// The address asked for.
        address: SocketAddr,
    },
    /// Anything else that the kernel says.
    #[error("{call} for {address}: {source}")]
    Other {
        /// The address asked for.
        address: SocketAddr,
        /// What failed.
        call: &'static str,
        /// How.
        source: io::Error,
    },
}

/// Opens the underlay socket at `address`. A `[::]` socket carries IPv4 too. A socket that is bound to
/// no address of its own reports the local address of each train. Datagrams are never
/// fragmented: what does not fit the interface's MTU is refused, and what the path does not carry
/// is lost, whatever ICMP messages say, because the overlay probes its paths itself.
///
/// # Errors
/// [`BindError`], worded for the operator.
pub fn bind(
    address: SocketAddr,
    options: SocketOptions,
) -> Result<(OwnedFd, SocketReport), BindError> {
    let other = |call| {
        move |source: io::Error| BindError::Other {
            address,
            call,
            source,
        }
    };
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket =
        socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(|error| {
            match error {
                rustix::io::Errno::AFNOSUPPORT if address.is_ipv6() => {
                    BindError::NoIpv6 { address }
                }
                error => other("socket")(error.into()),
            }
        })?;
    if address.is_ipv6() {
        let only = !address.ip().is_unspecified();
        sockopt::set_ipv6_v6only(&socket, only)
            .map_err(|error| other("IPV6_V6ONLY")(error.into()))?;
    }
    never_fragment(socket.as_fd(), address).map_err(other("IP_MTU_DISCOVER"))?;
    let receive = (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF);
    let send = (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF);
    let receive_bytes =
        size_buffer(socket.as_fd(), receive, options.receive_bytes).map_err(other("SO_RCVBUF"))?;
    let send_bytes =
        size_buffer(socket.as_fd(), send, options.send_bytes).map_err(other("SO_SNDBUF"))?;
    set(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1).map_err(other("SO_RXQ_OVFL"))?;
    if address.ip().is_unspecified() {
        report_local(socket.as_fd(), address)?;
    }
    // Without it every datagram arrives alone: slow, but it works.
    let gro = set(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
    // Only some hosts need it, and a process without the capability has no TUN device either.
    let mark = set_mark(socket.as_fd(), options.mark).map_or(0, |()| options.mark);
    bind_socket(&socket, &address).map_err(|error| match error {
        rustix::io::Errno::ADDRINUSE => BindError::InUse { address },
        rustix::io::Errno::ADDRNOTAVAIL => BindError::NotAvailable { address },
        rustix::io::Errno::ACCESS => BindError::NotPermitted { address },
        error => other("bind")(error.into()),
    })?;
    let local = local_address(socket.as_fd()).map_err(other("getsockname"))?;
    Ok((
        socket,
        SocketReport {
            local,
            receive_bytes,
            send_bytes,
            gro,
            mark,
        },
    ))
}

/// Marks what a socket sends (`SO_MARK`), and what the kernel sends for it, such as the answer of a listening one. 0 is
/// no mark.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`.
pub fn set_mark(socket: BorrowedFd<'_>, mark: u32) -> io::Result<()> {
    if mark == 0 {
        return Ok(());
    }
    let mark = i32::from_ne_bytes(mark.to_ne_bytes());
    set(socket, libc::SOL_SOCKET, libc::SO_MARK, mark)
}

/// Where `socket` is bound.
pub(crate) fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    Ok(rustix::net::getsockname(socket)?.try_into()?)
}

/// Has the kernel report which local address a datagram was sent to. `IPV6_PKTINFO` reports IPv4
/// addresses too, as mapped ones.
fn report_local(socket: BorrowedFd<'_>, address: SocketAddr) -> Result<(), BindError> {
    let (level, name, call) = if address.is_ipv4() {
        (libc::SOL_IP, libc::IP_PKTINFO, "IP_PKTINFO")
    } else {
        (libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO")
    };
    set(socket, level, name, 1).map_err(|source| BindError::Other {
        address,
        call,
        source,
    })
}

fn never_fragment(socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() {
        set(
            socket,
            libc::SOL_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        )?;
    }
    // On an IPv6 socket too: it rules the mapped addresses.
    set(
        socket,
        libc::SOL_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_PROBE,
    )
}

/// Asks for `bytes` beyond the system's limit, else within it; returns what the socket has.
fn size_buffer(
    socket: BorrowedFd<'_>,
    (force, plain): (i32, i32),
    bytes: usize,
) -> io::Result<usize> {
    let wanted = i32::try_from(bytes).unwrap_or(i32::MAX / 2);
    if set(socket, libc::SOL_SOCKET, force, wanted).is_err() {
        set(socket, libc::SOL_SOCKET, plain, wanted)?;
    }
    // The kernel keeps twice what was asked for, for its own bookkeeping.
    let has = if plain == libc::SO_RCVBUF {
        sockopt::socket_recv_buffer_size(socket)?
    } else {
        sockopt::socket_send_buffer_size(socket)?
    };
    Ok(has / 2)
}

fn set(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the option value is an `int` of four bytes on this stack frame, which is the size
    // passed; the kernel copies it during the call. All options set here take an `int`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            4,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_reports_what_it_got() {
        let options = SocketOptions {
            receive_bytes: 100_000,
            send_bytes: 100_000,
            ..SocketOptions::default()
        };
        let (_socket, report) = bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
        assert_ne!(report.local.port(), 0);
        assert!(report.gro);
        assert!(
            report.receive_bytes >= 100_000 && report.send_bytes >= 100_000,
            "{report:?}"
        );
    }

    #[test]
    fn a_port_in_use_is_explained() {
        let (_first, report) =
            bind("127.0.0.1:0".parse().unwrap(), SocketOptions::default()).unwrap();
        let error = bind(report.local, SocketOptions::default()).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }));
        assert!(
            error.to_string().contains("another process has UDP port"),
            "{error}"
        );
    }

    #[test]
    fn an_address_of_nobody_is_explained() {
        let error = bind("192.0.2.1:0".parse().unwrap(), SocketOptions::default()).unwrap_err();
        assert!(matches!(error, BindError::NotAvailable { .. }), "{error}");
    }
}
