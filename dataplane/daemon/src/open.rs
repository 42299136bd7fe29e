//! What a dataplane opens before its threads start, and what can fail for an operator's reason: sockets, TUN device,
//! choice of driver and cores.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hyphae_driver::{DriverKind, tun, udp};
use hyphae_forward::aes_in_hardware;
use hyphae_shm::attach::{Hello, WELCOME, store_text};
use hyphae_time::monotonic;
use zerocopy::little_endian::{U16, U32, U64};

use crate::cores::Cores;
use crate::error::RunError;
use crate::options::Options;
use crate::stream;

/// Interval of attempts at a port or device that is in use.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The parts of the host that a dataplane works on.
pub(crate) struct HostParts {
    /// Core of each worker, 1 to 64 workers.
    pub(crate) cores: Vec<Option<usize>>,
    pub(crate) kind: DriverKind,
    /// Why that driver, in one line for log and status.
    pub(crate) reason: String,
    /// Underlay socket of each worker.
    pub(crate) sockets: Vec<(OwnedFd, udp::SocketReport)>,
    pub(crate) tun: Option<tun::Tun>,
}

impl HostParts {
    pub(crate) fn open(options: &Options) -> Result<Self, RunError> {
        let cores = options.cores.resolve()?;
        if options.cores == Cores::Auto && cores.contains(&None) {
            tracing::info!(
                "threads of other processes are pinned to cores that workers would have: those workers are not pinned"
            );
        }
        // At most 64 (Cores).
        let workers = cores.len() as u16;
        let (kind, reason) = choose(options.driver)?;
        let sockets = bind(options, workers)?;
        let open = |name: &String| {
            let in_use = |error: &tun::TunError| matches!(error, tun::TunError::Busy { .. });
            retry_while_busy(options.busy_timeout, in_use, || tun::open(name, workers))
        };
        let mut parts = Self {
            cores,
            kind,
            reason,
            sockets,
            tun: None,
        };
        if parts.mark() != options.mark {
            tracing::warn!(
                mark = options.mark,
                "underlay packets are not marked: SO_MARK needs CAP_NET_ADMIN; routes to gateways that cover the address of \
                 a peer are left out (`underlay_mark = 0` makes this message go away)"
            );
        }
        parts.tun = options.tun.as_ref().map(open).transpose()?;
        Ok(parts)
    }

    /// Mark of underlay packets as set; 0 without the privilege.
    pub(crate) fn mark(&self) -> u32 {
        self.sockets.first().map_or(0, |(_, report)| report.mark)
    }

    /// UDP port of each worker.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let reports = self.sockets.iter();
        reports.map(|(_, report)| report.local.port()).collect()
    }

    /// What control planes are sent when they attach.
    pub(crate) fn hello(&self, options: &Options) -> Hello {
        let receive_bytes = self
            .sockets
            .first()
            .map_or(0, |(_, report)| report.receive_bytes);
        let mut hello = Hello::blank(WELCOME);
        hello.underlay_mark = U32::new(self.mark());
        hello.started = U64::new(monotonic().0);
        // At most 64.
        hello.workers = U16::new(self.cores.len() as u16);
        hello.aes_hardware = u8::from(aes_in_hardware());
        hello.socket_receive_bytes = U32::new(u32::try_from(receive_bytes).unwrap_or(u32::MAX));
        for (place, port) in hello.ports.iter_mut().zip(self.ports()) {
            place.set(port);
        }
        for (place, core) in hello.cores.iter_mut().zip(&self.cores) {
            place.set(
                core.and_then(|core| u16::try_from(core).ok())
                    .unwrap_or(u16::MAX),
            );
        }
        if let Some(tun) = &self.tun {
            hello.tun_name_len = store_text(&mut hello.tun_name, &tun.name);
        }
        let name = if self.kind == DriverKind::Epoll {
            "epoll"
        } else {
            "io_uring"
        };
        hello.driver_len = store_text(&mut hello.driver, name);
        let reason = format!("--driver {}: {}", options.driver, self.reason);
        hello.driver_reason_len = store_text(&mut hello.driver_reason, &reason);
        hello
    }

    /// The listening socket of stream links; `None` when it is disabled or cannot be opened, which does not end the
    /// dataplane: datagrams alone are worth running for.
    pub(crate) fn stream_listener(&self, options: &Options) -> Option<TcpListener> {
        let at = self.sockets.first().map(|(_, report)| report.local);
        let mark = self.mark();
        let address = at.filter(|_| options.stream_listen)?;
        let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
        match retry_while_busy(options.busy_timeout, in_use, || {
            stream::listen_at(address, mark)
        }) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(
                    %address,
                    %error,
                    "stream links are not accepted: another process may have the TCP port (`ss -tlpn` \
                     names it); `[stream] listen = false` makes this message go away"
                );
                None
            }
        }
    }
}

/// The driver to use, and why, in one line for log and status.
fn choose(wanted: DriverKind) -> Result<(DriverKind, String), RunError> {
    if wanted == DriverKind::Uring {
        hyphae_driver::probe()?;
    }
    let (kind, obstacle) = wanted.resolve();
    let reason = match (wanted, obstacle) {
        (DriverKind::Auto, None) => "io_uring is available".to_owned(),
        (_, Some(error)) => error.to_string(),
        (_, None) => "asked for".to_owned(),
    };
    Ok((kind, reason))
}

fn bind(options: &Options, workers: u16) -> Result<Vec<(OwnedFd, udp::SocketReport)>, RunError> {
    let listen = options.listen;
    let sockets = udp::SocketOptions {
        mark: options.mark,
        ..udp::SocketOptions::default()
    };
    let mut bound = Vec::new();
    for n in 0..workers {
        let mut address = listen;
        // Port 0 lets the kernel choose for every worker.
        if listen.port() != 0 {
            let port = listen
                .port()
                .checked_add(n)
                .ok_or(RunError::Ports(listen.port()))?;
            address.set_port(port);
        }
        let in_use = |error: &udp::BindError| matches!(error, udp::BindError::InUse { .. });
        let bind = || udp::bind(address, sockets);
        bound.push(retry_while_busy(options.busy_timeout, in_use, bind)?);
    }
    Ok(bound)
}

/// Repeats `attempt` until it succeeds, fails for another reason than `in_use`, or the timeout has passed. The
/// kernel closes what an io_uring refers to only some time after its process has ended, and that process may have
/// been this one's predecessor.
fn retry_while_busy<T, E>(
    timeout: Duration,
    in_use: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let deadline = Instant::now() + timeout;
    loop {
        match attempt() {
            Err(error) if in_use(&error) && Instant::now() < deadline => {
                std::thread::sleep(RETRY_INTERVAL);
            }
            result => return result,
        }
    }
}
