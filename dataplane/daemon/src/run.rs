//! Start, wait, stop.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyphae_driver::{
    AnyDriver, DriverKind, OpenError, Parts, ProbeError, RECEIVE_BUFFERS, TRANSMIT_BUFFERS, tun,
    udp,
};
use hyphae_forward::{Engine, EngineConfig, aes_in_hardware};
use hyphae_notify::Notifier;
use hyphae_shm::attach::{Hello, WELCOME, store_text};
use hyphae_shm::{Doorbell, Layout, Segment, SegmentError};
use hyphae_wire::WorkerId;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::little_endian::{U16, U32, U64};

use crate::attach::{Server, SocketError};
use crate::control::Control;
use crate::cores::{self, Cores, CoresError};
use crate::device::{Keeper, Watch};
use crate::handoff;
use crate::options::Options;
use crate::polling::Polling;
use crate::stream;
use crate::vigil::{Pulse, Vigil, Watched};
use crate::worker::{Worker, WorkerParts};
use hyphae_time::monotonic;

/// How often a port or device that is in use is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// Why a dataplane could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Core list.
    #[error("--cores: {0}")]
    Cores(#[from] CoresError),
    /// Driver.
    #[error("--driver: {0}")]
    Probe(#[from] ProbeError),
    /// Underlay socket.
    #[error(transparent)]
    Bind(#[from] udp::BindError),
    /// Port numbers ran out.
    #[error("--listen: port {0} leaves no room for one port per worker below 65536")]
    Ports(u16),
    /// TUN device.
    #[error(transparent)]
    Tun(#[from] tun::TunError),
    /// Segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Attach socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A worker's driver.
    #[error("worker {worker}: {source}")]
    Driver {
        /// Which worker.
        worker: u16,
        /// Why.
        source: OpenError,
    },
    /// A worker ended.
    #[error("worker {worker} ended: {source}")]
    Worker {
        /// Which worker.
        worker: u16,
        /// Why.
        source: io::Error,
    },
    /// The thread of stream links ended.
    #[error("stream links: {0}")]
    Stream(io::Error),
    /// Another system call.
    #[error("{call}: {source}")]
    System {
        /// Which.
        call: &'static str,
        /// How.
        source: io::Error,
    },
}

fn system(call: &'static str) -> impl Fn(rustix::io::Errno) -> RunError {
    move |error| RunError::System {
        call,
        source: error.into(),
    }
}

/// What a worker thread is started with; the driver is opened on the thread itself.
struct Seat {
    id: WorkerId,
    core: Option<usize>,
    kind: DriverKind,
    parts: Parts,
    engine: Engine,
    control: Control,
    handoff: handoff::Handoff,
    stream: stream::StreamOutlet,
    stats: hyphae_shm::StatsWriter,
    udp_segmentation: bool,
    device: Watch,
    polling: Polling,
    stop: Arc<AtomicBool>,
    pulse: Arc<Pulse>,
    ended: Arc<Doorbell>,
}

/// Runs a dataplane until a signal ends it.
///
/// # Errors
/// When it cannot start, or a worker ends by itself. Errors name the likely cause and the way out.
pub fn run(options: &Options) -> Result<(), RunError> {
    // Blocked before any thread exists, so that signals reach the descriptor and nothing else.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    let blocked = |error: nix::Error| RunError::System {
        call: "signalfd",
        source: error.into(),
    };
    signals.thread_block().map_err(blocked)?;
    let signal_fd = SignalFd::new(&signals).map_err(blocked)?;

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
    let mark = sockets.first().map_or(0, |(_, report)| report.mark);
    if mark != options.mark {
        tracing::warn!(
            mark = options.mark,
            "underlay packets are not marked: SO_MARK needs CAP_NET_ADMIN; routes to gateways that cover the address of \
             a peer are left out (`underlay_mark = 0` makes this message go away)"
        );
    }
    let ports: Vec<u16> = sockets
        .iter()
        .map(|(_, report)| report.local.port())
        .collect();
    let receive_bytes = sockets
        .first()
        .map_or(0, |(_, report)| report.receive_bytes);
    let tun = options
        .tun
        .as_deref()
        .map(|name| {
            let in_use = |error: &tun::TunError| matches!(error, tun::TunError::Busy { .. });
            patiently(options.patience, in_use, || tun::open(name, workers))
        })
        .transpose()?;

    let (segment, memory) = Segment::create(Layout::new(workers))?;
    let control_bell = Arc::new(Doorbell::new().map_err(system("eventfd"))?);
    let bells: Vec<_> = (0..workers)
        .map(|_| Doorbell::new().map(Arc::new))
        .collect::<Result<_, _>>()
        .map_err(system("eventfd"))?;
    let hello = describe(
        options,
        &cores,
        &ports,
        (receive_bytes, mark),
        tun.as_ref(),
        kind,
        &reason,
    );
    let clone = |bell: &Doorbell| {
        bell.try_clone().map_err(|source| RunError::System {
            call: "dup",
            source,
        })
    };
    let server = Server::listen(
        &options.socket_dir,
        segment.clone(),
        memory,
        clone(&control_bell)?,
        bells
            .iter()
            .map(|bell| clone(bell))
            .collect::<Result<_, _>>()?,
        hello,
    )?;

    let stop = Arc::new(AtomicBool::new(false));
    // Raised after the workers have handed over their last frames.
    let stream_stop = Arc::new(AtomicBool::new(false));
    let stream_bell = Arc::new(Doorbell::new().map_err(system("eventfd"))?);
    let at = sockets.first().map(|(_, report)| report.local);
    let listener = stream_listener(options, at, mark);
    let ended = Arc::new(Doorbell::new().map_err(system("eventfd"))?);
    let udp_segmentation = tun.as_ref().is_some_and(|tun| tun.uso);
    let interface = tun.as_ref().map(tun::Tun::interface).transpose();
    let interface = interface.map_err(|source| RunError::System {
        call: "dup",
        source,
    })?;
    let mut keeper = Keeper::new(interface, bells.clone()).map_err(system("eventfd"))?;
    let mut queues = tun.map(|tun| tun.queues).unwrap_or_default().into_iter();
    let mut threads = Vec::new();
    let begun = Arc::new(Doorbell::new().map_err(system("eventfd"))?);
    let mut watched = Vec::new();
    let mut watch = |name: &str, bell: &Arc<Doorbell>| {
        let pulse = Arc::new(Pulse::new(Arc::clone(&begun)));
        watched.push(Watched {
            name: name.to_owned(),
            pulse: Arc::clone(&pulse),
            bell: Arc::clone(bell),
        });
        pulse
    };
    let mut handoffs = handoff::connect(&bells);
    let (outlets, rings) = stream::connect(&mut handoffs, &bells, &stream_bell);
    let stream_seat = stream::Seat {
        rings,
        bell: Arc::clone(&stream_bell),
        listener,
        mark,
        uring: kind == DriverKind::Uring,
        times: stream::Times::default(),
        stop: Arc::clone(&stream_stop),
        pulse: watch("stream", &stream_bell),
    };
    let ends = handoffs.into_iter().zip(outlets);
    for (((n, (socket, _)), (handoff, stream)), core) in (0..).zip(sockets).zip(ends).zip(cores) {
        let id = WorkerId(n);
        let queue: Option<OwnedFd> = queues.next();
        let config = EngineConfig {
            worker: id,
            workers,
            has_tun: queue.is_some(),
        };
        let seat = Seat {
            id,
            core,
            kind,
            parts: Parts {
                socket,
                tun: queue,
                doorbell: clone(&bells[id.as_usize()])?.into_fd(),
                receive_buffers: RECEIVE_BUFFERS,
                transmit_buffers: TRANSMIT_BUFFERS,
            },
            engine: Engine::new(config),
            control: Control::new(
                segment.program_consumer(id),
                segment.punt_producer(id),
                Arc::clone(&control_bell),
            ),
            handoff,
            stream,
            stats: segment.stats_writer(id),
            udp_segmentation,
            device: keeper.watch(),
            polling: Polling::new(options.poll_max),
            stop: Arc::clone(&stop),
            pulse: watch(&format!("worker-{n}"), &bells[id.as_usize()]),
            ended: Arc::clone(&ended),
        };
        let thread = std::thread::Builder::new()
            .name(format!("worker-{n}"))
            .spawn(move || sit(seat))
            .map_err(|source| RunError::System {
                call: "thread",
                source,
            })?;
        threads.push((n, thread));
    }
    let stream_ended = Arc::clone(&ended);
    let stream_thread = std::thread::Builder::new()
        .name("stream".to_owned())
        .spawn(move || {
            let _farewell = Farewell(stream_ended);
            stream::run(stream_seat)
        })
        .map_err(|source| RunError::System {
            call: "thread",
            source,
        })?;
    tracing::info!(
        workers,
        driver = %kind,
        reason,
        ports = ?ports,
        segment_locked = segment.is_locked(),
        "dataplane is up"
    );
    let mut vigil = Vigil::new(Notifier::from_environment(), watched, begun);
    let does = format!("{workers} workers ({kind}) on UDP {ports:?}");
    let waited = wait(server, &signal_fd, &ended, &mut vigil, &mut keeper, &does);
    vigil.stopping();
    stop.store(true, Ordering::Relaxed);
    bells.iter().for_each(|bell| bell.ring());
    let joined = join(threads);
    stream_stop.store(true, Ordering::Relaxed);
    stream_bell.ring();
    let ended = stream_thread.join().unwrap_or_else(|_| {
        Err(io::Error::other(
            "a broken invariant (see the message above)",
        ))
    });
    waited?;
    joined?;
    ended.map_err(RunError::Stream)
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
    let (listen, patience) = (options.listen, options.patience);
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
        bound.push(patiently(patience, in_use, bind)?);
    }
    Ok(bound)
}

/// Tries until it works, fails for another reason than `in_use`, or patience ends: the kernel closes
/// what a ring holds only some time after its process has ended, and that process may have been this
/// one's predecessor.
fn patiently<T, E>(
    patience: Duration,
    in_use: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Err(error) if in_use(&error) && Instant::now() < deadline => {
                std::thread::sleep(RETRY);
            }
            result => return result,
        }
    }
}

fn describe(
    options: &Options,
    cores: &[Option<usize>],
    ports: &[u16],
    (receive_bytes, mark): (usize, u32),
    tun: Option<&tun::Tun>,
    kind: DriverKind,
    reason: &str,
) -> Hello {
    let mut hello = Hello::blank(WELCOME);
    hello.underlay_mark = U32::new(mark);
    hello.started = U64::new(monotonic().0);
    // At most 64.
    hello.workers = U16::new(cores.len() as u16);
    hello.aes_hardware = u8::from(aes_in_hardware());
    hello.socket_receive_bytes = U32::new(u32::try_from(receive_bytes).unwrap_or(u32::MAX));
    for (place, port) in hello.ports.iter_mut().zip(ports) {
        place.set(*port);
    }
    for (place, core) in hello.cores.iter_mut().zip(cores) {
        place.set(
            core.and_then(|core| u16::try_from(core).ok())
                .unwrap_or(u16::MAX),
        );
    }
    if let Some(tun) = tun {
        hello.tun_name_len = store_text(&mut hello.tun_name, &tun.name);
    }
    let name = if kind == DriverKind::Epoll {
        "epoll"
    } else {
        "io_uring"
    };
    hello.driver_len = store_text(&mut hello.driver, name);
    let reason = format!("--driver {}: {reason}", options.driver);
    hello.driver_reason_len = store_text(&mut hello.driver_reason, &reason);
    hello
}

/// Tells the main thread however a thread ends.
struct Farewell(Arc<Doorbell>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// The listening socket of stream links, if there is to be one and it can be had: datagrams alone
/// are worth running for.
fn stream_listener(options: &Options, at: Option<SocketAddr>, mark: u32) -> Option<TcpListener> {
    let address = at.filter(|_| options.stream_listen)?;
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    match patiently(options.patience, in_use, || {
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

/// A worker's thread.
fn sit(seat: Seat) -> Result<(), RunError> {
    let _farewell = Farewell(Arc::clone(&seat.ended));
    let worker = seat.id.0;
    if let Some(core) = seat.core {
        cores::pin(core).map_err(system("sched_setaffinity"))?;
    }
    let open = |source| RunError::Driver { worker, source };
    let Seat {
        engine,
        control,
        handoff,
        stream,
        stats,
        udp_segmentation,
        device,
        polling,
        stop,
        pulse,
        ..
    } = seat;
    let parts = WorkerParts {
        engine,
        control,
        handoff,
        stream,
        stats,
        udp_segmentation,
        device,
        polling,
        stop,
        pulse,
    };
    let result = match hyphae_driver::open(seat.kind, seat.parts).map_err(open)? {
        AnyDriver::Uring(driver) => Worker::new(*driver, parts).run(),
        AnyDriver::Epoll(driver) => Worker::new(*driver, parts).run(),
    };
    result.map_err(|source| RunError::Worker { worker, source })
}

/// How often it is looked whether the socket file is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Serves control planes until a signal comes or a worker ends.
fn wait(
    mut server: Server,
    signals: &SignalFd,
    ended: &Doorbell,
    vigil: &mut Vigil,
    keeper: &mut Keeper,
    does: &str,
) -> Result<(), RunError> {
    loop {
        server.restore();
        vigil.look(Instant::now());
        let has = if server.lease().is_some() {
            "control plane attached"
        } else {
            "no control plane: forwarding goes on with what the last one left"
        };
        vigil.status(&format!("{does}; {has}"));
        let waits = [vigil.wait(Instant::now()), keeper.poll(monotonic())];
        let timeout = waits.into_iter().flatten().fold(LOOK, Duration::min);
        let timeout = Timespec::try_from(timeout).ok();
        let readable = PollFlags::IN;
        let (ended_fd, listener) = (ended.as_fd(), server.listener());
        let (begun, lost) = (vigil.begun().as_fd(), keeper.lost().as_fd());
        let mut fds = vec![
            PollFd::new(signals, readable),
            PollFd::new(&ended_fd, readable),
            PollFd::new(&listener, readable),
            PollFd::new(&begun, readable),
            PollFd::new(&lost, readable),
        ];
        let lease = server.lease();
        if let Some(lease) = &lease {
            fds.push(PollFd::new(lease, readable));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(system("poll")(error)),
        }
        let happened: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if happened[0] || happened[1] {
            return Ok(());
        }
        if happened[4] {
            keeper.note_lost();
        }
        if happened.get(5) == Some(&true) {
            server.end_lease();
        }
        if happened[2] {
            server.admit();
        }
    }
}

fn join(threads: Vec<(u16, JoinHandle<Result<(), RunError>>)>) -> Result<(), RunError> {
    let mut result = Ok(());
    for (worker, thread) in threads {
        let ended = thread.join().unwrap_or_else(|_| {
            let source = io::Error::other("a broken invariant (see the message above)");
            Err(RunError::Worker { worker, source })
        });
        result = result.and(ended);
    }
    result
}
