//! The threads of a dataplane: one per worker and one for stream links.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use hyphae_driver::{AnyDriver, DriverKind, DriverParts, RECEIVE_BUFFERS, TRANSMIT_BUFFERS};
use hyphae_forward::{Engine, EngineConfig};
use hyphae_shm::{Doorbell, Segment};
use hyphae_wire::WorkerId;

use crate::control::Control;
use crate::cores;
use crate::device::Keeper;
use crate::error::{RunError, system};
use crate::handoff::{self, Handoff};
use crate::open::HostParts;
use crate::options::Options;
use crate::polling::Polling;
use crate::stream::{self, StreamOutlet};
use crate::watchdog::{Heartbeat, WatchedThread};
use crate::worker::{Turn, Worker, WorkerContext};

/// Doorbells of all threads and of the control plane.
pub(crate) struct Bells {
    pub(crate) control: Arc<Doorbell>,
    pub(crate) workers: Vec<Arc<Doorbell>>,
    stream: Arc<Doorbell>,
    /// Rung when a thread has started its loop.
    pub(crate) begun: Arc<Doorbell>,
    /// Rung when a thread has ended.
    pub(crate) ended: Arc<Doorbell>,
}

impl Bells {
    pub(crate) fn new(workers: u16) -> Result<Self, RunError> {
        let bell = || Doorbell::new().map(Arc::new).map_err(system("eventfd"));
        Ok(Self {
            control: bell()?,
            workers: (0..workers).map(|_| bell()).collect::<Result<_, _>>()?,
            stream: bell()?,
            begun: bell()?,
            ended: bell()?,
        })
    }

    /// The worker's doorbells, duplicated.
    pub(crate) fn worker_copies(&self) -> Result<Vec<Doorbell>, RunError> {
        self.workers.iter().map(|bell| duplicate(bell)).collect()
    }
}

/// A duplicate of a doorbell's descriptor.
pub(crate) fn duplicate(bell: &Doorbell) -> Result<Doorbell, RunError> {
    bell.try_clone().map_err(|source| RunError::System {
        call: "dup",
        source,
    })
}

/// What a worker's thread is started with; the driver is opened on the thread itself.
struct WorkerStart {
    id: WorkerId,
    core: Option<usize>,
    kind: DriverKind,
    driver: DriverParts,
    stream: StreamOutlet,
    udp_segmentation: bool,
    ended: Arc<Doorbell>,
    context: WorkerContext,
}

/// The running threads.
pub(crate) struct Threads {
    workers: Vec<(u16, JoinHandle<Result<(), RunError>>)>,
    stream: JoinHandle<io::Result<()>>,
    stop: Arc<AtomicBool>,
    /// Set after the workers have handed off their last frames.
    stream_stop: Arc<AtomicBool>,
    bells: Arc<Bells>,
}

impl Threads {
    /// Starts all threads; returns them with what the watchdog checks.
    pub(crate) fn start(
        options: &Options,
        host: HostParts,
        listener: Option<TcpListener>,
        segment: &Segment,
        keeper: &Keeper,
        bells: Arc<Bells>,
    ) -> Result<(Self, Vec<WatchedThread>), RunError> {
        let mut launch = Launch {
            options,
            segment,
            keeper,
            bells: &bells,
            // At most 64.
            workers: host.cores.len() as u16,
            kind: host.kind,
            udp_segmentation: host.tun.as_ref().is_some_and(|tun| tun.uso),
            stop: Arc::default(),
            watched: Vec::new(),
        };
        let stream_stop = Arc::default();
        let mut handoffs = handoff::connect(&bells.workers);
        let (outlets, rings) = stream::connect(&mut handoffs, &bells.workers, &bells.stream);
        let stream = stream::StreamContext {
            rings,
            bell: Arc::clone(&bells.stream),
            listener,
            mark: host.mark(),
            uring: host.kind == DriverKind::Uring,
            times: stream::Times::default(),
            stop: Arc::clone(&stream_stop),
            heartbeat: launch.watch("stream", &bells.stream),
        };
        let queues = host.tun.map(|tun| tun.queues).unwrap_or_default();
        let mut queues = queues.into_iter();
        let sockets = host.sockets.into_iter().map(|(socket, _)| socket);
        let rings = handoffs.into_iter().zip(outlets);
        let mut workers = Vec::new();
        for (((n, socket), rings), core) in (0..).zip(sockets).zip(rings).zip(host.cores) {
            let start = launch.worker(WorkerId(n), core, (socket, queues.next()), rings)?;
            workers.push((n, spawn(format!("worker-{n}"), move || run_worker(start))?));
        }
        let ended = ExitNotifier(Arc::clone(&bells.ended));
        let stream = spawn("stream".to_owned(), move || {
            let _ended = ended;
            stream::run(stream)
        })?;
        let (stop, watched) = (launch.stop, launch.watched);
        let threads = Self {
            workers,
            stream,
            stop,
            stream_stop,
            bells,
        };
        Ok((threads, watched))
    }

    /// Stops the workers, then the stream thread; the first error of either.
    pub(crate) fn stop(self) -> Result<(), RunError> {
        self.stop.store(true, Ordering::Relaxed);
        self.bells.workers.iter().for_each(|bell| bell.ring());
        let mut result = Ok(());
        for (worker, thread) in self.workers {
            let ended = thread.join().unwrap_or_else(|_| {
                let source = broken_invariant();
                Err(RunError::Worker { worker, source })
            });
            result = result.and(ended);
        }
        self.stream_stop.store(true, Ordering::Relaxed);
        self.bells.stream.ring();
        let stream = self
            .stream
            .join()
            .unwrap_or_else(|_| Err(broken_invariant()));
        result.and(stream.map_err(RunError::Stream))
    }
}

fn broken_invariant() -> io::Error {
    io::Error::other("a broken invariant (see the message above)")
}

/// What all workers are started with.
struct Launch<'a> {
    options: &'a Options,
    segment: &'a Segment,
    keeper: &'a Keeper,
    bells: &'a Bells,
    workers: u16,
    kind: DriverKind,
    udp_segmentation: bool,
    stop: Arc<AtomicBool>,
    watched: Vec<WatchedThread>,
}

impl Launch<'_> {
    fn watch(&mut self, name: &str, bell: &Arc<Doorbell>) -> Arc<Heartbeat> {
        let heartbeat = Arc::new(Heartbeat::new(Arc::clone(&self.bells.begun)));
        self.watched.push(WatchedThread {
            name: name.to_owned(),
            heartbeat: Arc::clone(&heartbeat),
            bell: Arc::clone(bell),
        });
        heartbeat
    }

    fn worker(
        &mut self,
        id: WorkerId,
        core: Option<usize>,
        (socket, tun): (OwnedFd, Option<OwnedFd>),
        (handoff, stream): (Handoff, StreamOutlet),
    ) -> Result<WorkerStart, RunError> {
        let bell = &self.bells.workers[id.as_usize()];
        let context = WorkerContext {
            engine: Engine::new(EngineConfig {
                worker: id,
                workers: self.workers,
                has_tun: tun.is_some(),
            }),
            control: Control::new(
                self.segment.program_consumer(id),
                self.segment.punt_producer(id),
                Arc::clone(&self.bells.control),
            ),
            handoff,
            stats: self.segment.stats_writer(id),
            device: self.keeper.watch(),
            polling: Polling::new(self.options.poll_max),
            stop: Arc::clone(&self.stop),
            heartbeat: self.watch(&format!("worker-{}", id.0), bell),
        };
        let driver = DriverParts {
            socket,
            tun,
            doorbell: duplicate(bell)?.into_fd(),
            receive_buffers: RECEIVE_BUFFERS,
            transmit_buffers: TRANSMIT_BUFFERS,
        };
        Ok(WorkerStart {
            id,
            core,
            kind: self.kind,
            driver,
            stream,
            udp_segmentation: self.udp_segmentation,
            ended: Arc::clone(&self.bells.ended),
            context,
        })
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, RunError> {
    let thread = std::thread::Builder::new().name(name).spawn(run);
    thread.map_err(|source| RunError::System {
        call: "thread",
        source,
    })
}

/// Notifies the main thread when a thread ends, by return or panic.
struct ExitNotifier(Arc<Doorbell>);

impl Drop for ExitNotifier {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// Body of a worker's thread.
fn run_worker(start: WorkerStart) -> Result<(), RunError> {
    let _ended = ExitNotifier(start.ended);
    let worker = start.id.0;
    if let Some(core) = start.core {
        cores::pin(core).map_err(system("sched_setaffinity"))?;
    }
    let driver = hyphae_driver::open(start.kind, start.driver)
        .map_err(|source| RunError::Driver { worker, source })?;
    let turn = Turn::new(start.stream, start.udp_segmentation);
    let result = match driver {
        AnyDriver::Uring(driver) => Worker::new(*driver, start.context, turn).run(),
        AnyDriver::Epoll(driver) => Worker::new(*driver, start.context, turn).run(),
    };
    result.map_err(|source| RunError::Worker { worker, source })
}
