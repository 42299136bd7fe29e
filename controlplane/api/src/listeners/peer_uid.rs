//! User of the process at the other end of a TCP connection on this host.
//!
//! ```text
//!  accept ─ (server, client) ─ SOCK_DIAG_BY_FAMILY ─┐
//!                            └ /proc/net/tcp[6] ────┴─ same 4-tuple, open, owned ─ uid
//! ```
//!
//! Without an exact match the kernel returns a listener on that port, and a socket that its process
//! has closed reads as uid 0 with inode 0. Only an answer that repeats the 4-tuple, is in a state in
//! which its process can still hold it, and has an inode counts.

use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
/// `TCP_ESTABLISHED`, `TCP_FIN_WAIT1`, `TCP_FIN_WAIT2` of the kernel: open, or closed for writing only.
const OPEN_STATES: [u8; 3] = [1, 4, 5];
/// Default overflow uid and gid, where the kernel does not report them.
const OVERFLOW_DEFAULT: u32 = 65_534;

/// A caller whose user is not known.
#[derive(Debug, thiserror::Error)]
pub enum Unidentified {
    /// Neither interface of the kernel can be used.
    #[error("neither sock_diag nor /proc/net/tcp can be read ({0})")]
    Unavailable(io::Error),
    /// Not a socket of this network namespace.
    #[error("no socket of this host is the other end of the connection")]
    NoSocket,
    /// Closed before it was identified.
    #[error("the caller has closed its socket")]
    Closed,
    /// A user of another user namespace.
    #[error(
        "{0} stands for all users without a number in this user namespace and is never admitted; call \
         as another user"
    )]
    Unmapped(u32),
}

/// A TCP socket as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
    uid: u32,
    inode: u64,
}

impl Socket {
    /// Its user, if it is the client's end of a connection and a process holds it.
    fn owner(&self, server: SocketAddr, client: SocketAddr) -> Result<u32, Unidentified> {
        if (self.local, self.remote) != (client, server) {
            return Err(Unidentified::NoSocket);
        }
        if self.inode == 0 || !OPEN_STATES.contains(&self.state) {
            return Err(Unidentified::Closed);
        }
        if is_overflow_uid(self.uid) {
            return Err(Unidentified::Unmapped(self.uid));
        }
        Ok(self.uid)
    }
}

/// Finds users of callers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerUids {
    /// Whether sock_diag answers; else /proc/net/tcp is read.
    sock_diag: bool,
}

impl PeerUids {
    /// Looks up the listener itself: `ENOENT` means "no such socket" as well as "no such module".
    pub(crate) fn probe(listener: SocketAddr) -> Self {
        let listener = canonical(listener);
        let nobody = match listener {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let found = by_sock_diag(SocketAddr::new(nobody, 0), listener);
        if let Err(error) = &found {
            tracing::info!(%error, "sock_diag is not available; callers are found in /proc/net/tcp");
        }
        let sock_diag = found.is_ok();
        Self { sock_diag }
    }

    /// User of the client of a connection, given our end and the other one.
    pub(crate) async fn of(
        self,
        server: SocketAddr,
        client: SocketAddr,
    ) -> Result<u32, Unidentified> {
        let (server, client) = (canonical(server), canonical(client));
        let found = if self.sock_diag {
            by_sock_diag(server, client)
        } else {
            // A line per socket of the host, not on the thread of the engines.
            let read = tokio::task::spawn_blocking(move || by_proc(server, client));
            read.await.unwrap_or_else(|e| Err(io::Error::other(e)))
        };
        owner(found, server, client)
    }
}

fn owner(
    found: io::Result<Socket>,
    server: SocketAddr,
    client: SocketAddr,
) -> Result<u32, Unidentified> {
    match found {
        Ok(socket) => socket.owner(server, client),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Unidentified::NoSocket),
        Err(error) => Err(Unidentified::Unavailable(error)),
    }
}

/// User of the client of a connection, given the answer of sock_diag to request `sequence`.
///
/// # Errors
/// When the answer is not that client's open socket.
pub fn owner_in_answer(
    answer: &[u8],
    sequence: u32,
    server: SocketAddr,
    client: SocketAddr,
) -> Result<u32, Unidentified> {
    owner(parse_answer(answer, sequence), server, client)
}

/// User of the client of a connection, given /proc/net/tcp or tcp6.
///
/// # Errors
/// When no line is that client's open socket.
pub fn owner_in_table(
    table: impl BufRead,
    server: SocketAddr,
    client: SocketAddr,
) -> Result<u32, Unidentified> {
    let found = find_in_table(table, server, client);
    let found = found.and_then(|socket| socket.ok_or(io::ErrorKind::NotFound.into()));
    owner(found, server, client)
}

/// IPv4-mapped addresses as IPv4, without flow label and scope.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether a number stands for users that have none in this user namespace.
pub(super) fn is_overflow_uid(uid: u32) -> bool {
    static UID: LazyLock<u32> = LazyLock::new(|| overflow("/proc/sys/kernel/overflowuid"));
    uid == *UID
}

/// The same for groups.
pub(super) fn is_overflow_gid(gid: u32) -> bool {
    static GID: LazyLock<u32> = LazyLock::new(|| overflow("/proc/sys/kernel/overflowgid"));
    gid == *GID
}

fn overflow(path: &str) -> u32 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(OVERFLOW_DEFAULT)
}

/// `struct inet_diag_sockid`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SockId {
    source_port: [u8; 2],
    destination_port: [u8; 2],
    source: [u8; 16],
    destination: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct nlmsghdr`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct inet_diag_req_v2` behind its header.
#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    padding: u8,
    states: u32,
    id: SockId,
}

/// `struct inet_diag_msg`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Entry {
    family: u8,
    state: u8,
    timer: u8,
    retransmissions: u8,
    id: SockId,
    expires: u32,
    receive_queue: u32,
    send_queue: u32,
    uid: u32,
    inode: u32,
}

impl Entry {
    fn socket(&self) -> Option<Socket> {
        let family = u16::from(self.family);
        let ip = |bytes: [u8; 16]| match family {
            _ if family == AddressFamily::INET.as_raw() => {
                let [a, b, c, d, ..] = bytes;
                Some(IpAddr::from([a, b, c, d]))
            }
            _ if family == AddressFamily::INET6.as_raw() => Some(IpAddr::from(bytes)),
            _ => None,
        };
        let port = u16::from_be_bytes;
        let local = SocketAddr::new(ip(self.id.source)?, port(self.id.source_port));
        let remote = SocketAddr::new(ip(self.id.destination)?, port(self.id.destination_port));
        Some(Socket {
            local: canonical(local),
            remote: canonical(remote),
            state: self.state,
            uid: self.uid,
            inode: self.inode.into(),
        })
    }
}

fn address_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// Asks the kernel for the socket whose local end is `client`.
fn by_sock_diag(server: SocketAddr, client: SocketAddr) -> io::Result<Socket> {
    let family = match client {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let sequence = u32::from(client.port()) << 16 | u32::from(server.port());
    let request = Request {
        header: Header {
            len: u32::try_from(size_of::<Request>()).map_err(io::Error::other)?,
            kind: SOCK_DIAG_BY_FAMILY,
            flags: NLM_F_REQUEST,
            sequence,
            port: 0,
        },
        family: u8::try_from(family.as_raw()).map_err(io::Error::other)?,
        protocol: IPPROTO_TCP,
        extensions: 0,
        padding: 0,
        states: u32::MAX,
        id: SockId {
            source_port: client.port().to_be_bytes(),
            destination_port: server.port().to_be_bytes(),
            source: address_bytes(client.ip()),
            destination: address_bytes(server.ip()),
            interface: 0,
            // INET_DIAG_NOCOOKIE
            cookie: [u32::MAX; 2],
        },
    };
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    // Connected: only the kernel's answers are received.
    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    rustix::net::send(&socket, request.as_bytes(), SendFlags::empty())?;
    let mut buffer = [0_u8; 1024];
    // The kernel has answered before it returns from `send`.
    let (len, _) = rustix::net::recv(&socket, &mut buffer, RecvFlags::DONTWAIT)?;
    parse_answer(&buffer[..len], sequence)
}

/// `NLMSG_ERROR` holds a negative error number.
fn parse_answer(answer: &[u8], sequence: u32) -> io::Result<Socket> {
    let malformed = || io::Error::other("sock_diag: malformed answer");
    let (header, rest) = Header::read_from_prefix(answer).map_err(|_| malformed())?;
    if header.kind == SOCK_DIAG_BY_FAMILY && header.sequence == sequence {
        let (entry, _) = Entry::read_from_prefix(rest).map_err(|_| malformed())?;
        return entry.socket().ok_or_else(malformed);
    }
    let (error, _) = i32::read_from_prefix(rest).map_err(|_| malformed())?;
    Err(io::Error::from_raw_os_error(error.saturating_neg()))
}

/// Finds the socket in the text tables of the kernel.
fn by_proc(server: SocketAddr, client: SocketAddr) -> io::Result<Socket> {
    let mut unreadable = None;
    // A client that speaks IPv4 over an IPv6 socket is in the second one.
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) => {
                unreadable = Some(error);
                continue;
            }
        };
        if let Some(socket) = find_in_table(BufReader::new(file), server, client)? {
            return Ok(socket);
        }
    }
    match unreadable {
        Some(error) => Err(io::Error::other(error)),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

fn find_in_table(
    table: impl BufRead,
    server: SocketAddr,
    client: SocketAddr,
) -> io::Result<Option<Socket>> {
    for line in table.lines() {
        let found = proc_line(&line?);
        let found = found.filter(|it| (it.local, it.remote) == (client, server));
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// A line of /proc/net/tcp or tcp6; `None` for the head.
fn proc_line(line: &str) -> Option<Socket> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, state, _, _, _, uid, _, inode, ..] = fields[..] else {
        return None;
    };
    Some(Socket {
        local: proc_address(local)?,
        remote: proc_address(remote)?,
        state: u8::from_str_radix(state, 16).ok()?,
        uid: uid.parse().ok()?,
        inode: inode.parse().ok()?,
    })
}

/// Words of 32 bits in the byte order of the host, as hex; the port behind a colon.
fn proc_address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let word = |n: usize| {
        let word = u32::from_str_radix(words.get(8 * n..8 * n + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match words.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut bytes = [0; 16];
            for (n, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(n)?);
            }
            IpAddr::from(bytes)
        }
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(canonical(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    /// A connection whose server listens at one address and whose client calls another.
    fn pair(listen: &str, call: Ipv6Addr) -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind(listen).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ip = if listener.local_addr().unwrap().is_ipv4() {
            call.to_canonical()
        } else {
            IpAddr::V6(call)
        };
        let client = TcpStream::connect((ip, port)).unwrap();
        let server = listener.accept().unwrap().0;
        (listener, server, client)
    }

    async fn both(server: &TcpStream, client: SocketAddr) -> [Result<u32, Unidentified>; 2] {
        let ours = server.local_addr().unwrap();
        let (diag, proc) = (PeerUids { sock_diag: true }, PeerUids { sock_diag: false });
        [diag.of(ours, client).await, proc.of(ours, client).await]
    }

    #[tokio::test]
    async fn a_caller_over_either_family_has_the_user_of_its_process() {
        let us = rustix::process::getuid().as_raw();
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        for (listen, call) in [
            ("127.0.0.1:0", mapped),
            ("[::1]:0", Ipv6Addr::LOCALHOST),
            // The client's socket is of IPv6, its addresses are of IPv4.
            ("[::]:0", mapped),
        ] {
            let (listener, server, client) = pair(listen, call);
            assert!(PeerUids::probe(listener.local_addr().unwrap()).sock_diag);
            for found in both(&server, client.local_addr().unwrap()).await {
                assert_eq!(found.unwrap(), us, "{listen} {call}");
            }
            client.shutdown(Shutdown::Write).unwrap();
            for found in both(&server, client.local_addr().unwrap()).await {
                assert_eq!(found.unwrap(), us, "half closed {listen} {call}");
            }
        }
    }

    #[tokio::test]
    async fn a_closed_caller_and_a_listener_are_nobody() {
        let (_listener, server, client) = pair("127.0.0.1:0", Ipv4Addr::LOCALHOST.to_ipv6_mapped());
        let there = client.local_addr().unwrap();
        drop(client);
        for found in both(&server, there).await {
            let nobody = matches!(found, Err(Unidentified::Closed | Unidentified::NoSocket));
            assert!(nobody, "{found:?}");
        }
        // The kernel returns the listener for a client that does not exist.
        let never = SocketAddr::new(there.ip(), server.local_addr().unwrap().port());
        for found in both(&server, never).await {
            assert!(matches!(found, Err(Unidentified::NoSocket)), "{found:?}");
        }
    }

    #[test]
    fn states_inode_and_overflow_user_decide() {
        let (server, client) = ("127.0.0.1:8990", "127.0.0.1:40000");
        let (server, client) = (server.parse().unwrap(), client.parse().unwrap());
        let open = Socket {
            local: client,
            remote: server,
            state: 1,
            uid: 7,
            inode: 9,
        };
        let of = |socket: Socket| socket.owner(server, client);
        assert_eq!(of(open).unwrap(), 7);
        for state in 0..=13 {
            let found = of(Socket { state, ..open });
            assert_eq!(found.is_ok(), [1, 4, 5].contains(&state), "{state}");
        }
        let gone = Socket {
            uid: 0,
            inode: 0,
            state: 5,
            ..open
        };
        assert!(matches!(of(gone), Err(Unidentified::Closed)));
        let unmapped = Socket {
            uid: overflow("/proc/sys/kernel/overflowuid"),
            ..open
        };
        assert!(matches!(of(unmapped), Err(Unidentified::Unmapped(_))));
    }

    #[test]
    fn lines_of_proc_are_read_as_the_kernel_writes_them() {
        let line = "   1: 0100007F:231E 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  \
                    1000        0 4711 1 0000000000000000 20 4 30 10 -1";
        let socket = proc_line(line).unwrap();
        // 127.0.0.1 as a little-endian host writes it.
        let ip = IpAddr::from(0x0100_007F_u32.to_ne_bytes());
        assert_eq!(socket.local, SocketAddr::new(ip, 8990));
        assert_eq!(socket.remote, SocketAddr::new(ip, 40_000));
        assert_eq!((socket.state, socket.uid, socket.inode), (1, 1000, 4711));
        for bad in [
            "",
            "sl local_address rem_address st",
            "1: 01:1 zz:2 01 0 0 0 0 0 0",
        ] {
            assert_eq!(proc_line(bad), None, "{bad}");
        }
    }
}
