//! The stream thread: one runtime, a task per connection, and the loop that takes frames from the
//! workers.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyphae_driver::udp::set_mark;
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_shm::{Doorbell, RECORD_MAX};
use hyphae_wire::{Endpoint, FrameKind, WorkerId};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use zerocopy::little_endian::U64;

use super::connection::{self, Times};
use super::outbox::Outbox;
use super::rings::{COUNTERS, COUNTS_LEN, Counts, DROPS, OVERRUNS_AT, Rings};
use super::socket::{Plain, Socket, Uring};
use super::table::{Limits, Refused, Table, Way};
use crate::watchdog::Heartbeat;

/// How long opening a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Frames taken per worker before connections get their turn.
const BUDGET: usize = 1024;
/// How often worker 0 is told what was counted.
const COUNT_INTERVAL: Duration = Duration::from_millis(100);
/// Wait after accepting has failed: most likely the process has no descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long the last frames may take to leave when the process stops.
const LAST_FRAMES_TIMEOUT: Duration = Duration::from_millis(200);
/// Entries of the ring that reads and writes are submitted through.
const URING_ENTRIES: u32 = 1024;

/// What the thread is started with.
pub(crate) struct StreamContext {
    pub(crate) rings: Rings,
    pub(crate) bell: Arc<Doorbell>,
    /// Not when nothing is to be accepted.
    pub(crate) listener: Option<std::net::TcpListener>,
    /// Mark of what is sent; 0 for none.
    pub(crate) mark: u32,
    /// Whether the kernel lets this process use io_uring and it is to be used.
    pub(crate) uring: bool,
    pub(crate) times: Times,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) heartbeat: Arc<Heartbeat>,
}

/// What tasks share.
pub(crate) struct Shared {
    mark: u32,
    rings: RefCell<Rings>,
    table: RefCell<Table>,
    counts: [Cell<u64>; COUNTS_LEN],
    counted: Notify,
    pub(super) times: Times,
}

/// Runs the thread until it is told to stop.
///
/// # Errors
/// When there is no runtime to be had.
pub(crate) fn run(context: StreamContext) -> io::Result<()> {
    if context.uring {
        let mut builder = tokio_uring::builder();
        builder.entries(URING_ENTRIES);
        match tokio_uring::Runtime::new(&builder) {
            Ok(runtime) => return runtime.block_on(serve::<Uring>(context)),
            Err(error) => {
                tracing::warn!(%error, "no io_uring for stream links; they use plain sockets");
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, serve::<Plain>(context))
}

async fn serve<S: Socket>(context: StreamContext) -> io::Result<()> {
    let shared = Rc::new(Shared {
        mark: context.mark,
        rings: RefCell::new(context.rings),
        table: RefCell::new(Table::new(Limits::default())),
        counts: [const { Cell::new(0) }; COUNTS_LEN],
        counted: Notify::new(),
        times: context.times,
    });
    if let Some(listener) = context.listener {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        tokio::task::spawn_local(accept::<S>(listener, Rc::clone(&shared)));
    }
    tokio::task::spawn_local(report(Rc::clone(&shared)));
    let bell = watch(context.bell)?;
    let mut scratch = vec![0; RECORD_MAX];
    while !context.stop.load(Ordering::Relaxed) {
        context.heartbeat.beat();
        if shared.take::<S>(&mut scratch) {
            // The connections write what they were given, and read.
            tokio::task::yield_now().await;
            continue;
        }
        if shared.rings.borrow_mut().sleep() {
            let mut rung = bell.readable().await?;
            bell.get_ref().clear();
            rung.clear_ready();
        }
        shared.rings.borrow_mut().wake();
    }
    shared.take::<S>(&mut scratch);
    let open = shared.table.borrow().outboxes();
    let last_frames = async {
        for outbox in &open {
            outbox.written().await;
        }
    };
    // Whoever does not take them in time does not get them.
    let _ = tokio::time::timeout(LAST_FRAMES_TIMEOUT, last_frames).await;
    for outbox in &open {
        outbox.close();
    }
    // The tasks close their sockets; what is in flight ends with that.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    Ok(())
}

async fn accept<S: Socket>(listener: TcpListener, shared: Rc<Shared>) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "accepting a stream link failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        // An IPv4 address comes from a `[::]` socket in another form than endpoints give.
        let from = Endpoint::from(from).to_socket_addr();
        let admitted = shared.table.borrow_mut().admit(from);
        match admitted {
            Ok(outbox) => {
                shared.count(Counter::StreamAccepted);
                let shared = Rc::clone(&shared);
                tokio::task::spawn_local(async move {
                    attend::<S>(stream, from, true, &outbox, &shared).await;
                });
            }
            Err(Refused::Full) => shared.count(Counter::StreamRefusedFull),
            Err(Refused::Source) => shared.count(Counter::StreamRefusedSource),
        }
    }
}

async fn connect(to: SocketAddr, mark: u32) -> io::Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    set_mark(socket.as_fd(), mark)?;
    socket.connect(to).await
}

async fn dial<S: Socket>(to: SocketAddr, outbox: Rc<Outbox>, shared: Rc<Shared>) {
    match tokio::time::timeout(CONNECT, connect(to, shared.mark)).await {
        Ok(Ok(stream)) => {
            shared.count(Counter::StreamConnected);
            attend::<S>(stream, to, false, &outbox, &shared).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(%to, %error, "no stream link");
            shared.count(Counter::StreamConnectFailed);
            shared.end(to, &outbox);
        }
        Err(_) => {
            tracing::debug!(%to, "no stream link in time");
            shared.count(Counter::StreamConnectFailed);
            shared.end(to, &outbox);
        }
    }
}

/// Serves an open connection to its end.
async fn attend<S: Socket>(
    stream: TcpStream,
    address: SocketAddr,
    inbound: bool,
    outbox: &Rc<Outbox>,
    shared: &Rc<Shared>,
) {
    match S::new(stream) {
        Ok(socket) => {
            let endpoint = Endpoint::from(address).stream();
            let end = connection::run(&socket, endpoint, inbound, outbox, shared).await;
            tracing::debug!(%endpoint, ?end, "stream link has ended");
            end.counter()
                .into_iter()
                .for_each(|counter| shared.count(counter));
        }
        Err(error) => tracing::debug!(%address, %error, "stream link cannot be used"),
    }
    shared.count(Counter::StreamEnded);
    shared.end(address, outbox);
}

/// Tells worker 0 what was counted, now and then.
async fn report(shared: Rc<Shared>) {
    loop {
        shared.counted.notified().await;
        let mut counts: Counts = [U64::ZERO; COUNTS_LEN];
        for (place, count) in counts.iter_mut().zip(&shared.counts) {
            place.set(count.get());
        }
        let told = shared.rings.borrow_mut().push_counts(&counts);
        if told {
            shared.counts.iter().for_each(|count| count.set(0));
            shared.rings.borrow_mut().publish();
        } else {
            shared.counted.notify_one();
        }
        tokio::time::sleep(COUNT_INTERVAL).await;
    }
}

impl Shared {
    /// Moves frames of the workers to their connections. True when there were any.
    fn take<S: Socket>(self: &Rc<Self>, scratch: &mut [u8]) -> bool {
        let (now, mut refused, mut down, mut sent) = (Instant::now(), 0, 0, 0);
        let mut rings = self.rings.borrow_mut();
        let any = rings.take(BUDGET, scratch, |to, frame| {
            let to = to.to_socket_addr();
            let kind = frame.first().copied().and_then(FrameKind::from_code);
            let first = kind == Some(FrameKind::HandshakeInit);
            let way = self.table.borrow_mut().way(to, first, now);
            let outbox = match way {
                Way::Open(outbox) => outbox,
                Way::Dial(outbox) => {
                    let (opening, shared) = (Rc::clone(&outbox), Rc::clone(self));
                    tokio::task::spawn_local(dial::<S>(to, opening, shared));
                    outbox
                }
                Way::None => {
                    down += 1;
                    return;
                }
            };
            if outbox.push(frame, now) {
                sent += 1;
            } else {
                refused += 1;
            }
        });
        drop(rings);
        self.add(counter_at(Counter::StreamTxFrames), sent);
        self.add(drop_at(DropReason::StreamQueue), refused);
        self.add(drop_at(DropReason::StreamDown), down);
        any
    }

    /// Lets frames of a connection into the rings of the workers, and makes them visible.
    pub(super) fn receive<T>(
        &self,
        read: impl FnOnce(&mut dyn FnMut(WorkerId, &Endpoint, &[u8])) -> T,
    ) -> T {
        let (mut received, mut lost) = (0, 0);
        let mut rings = self.rings.borrow_mut();
        let result = read(&mut |worker, from, frame| {
            received += 1;
            lost += u64::from(!rings.push(worker, from, frame));
        });
        rings.publish();
        drop(rings);
        self.add(counter_at(Counter::StreamRxFrames), received);
        self.add(OVERRUNS_AT, lost);
        result
    }

    /// Forgets a connection; what it has not written is lost.
    fn end(&self, address: SocketAddr, outbox: &Rc<Outbox>) {
        self.add(drop_at(DropReason::StreamDown), outbox.close());
        let mut table = self.table.borrow_mut();
        table.ended(address, outbox, Instant::now());
    }

    fn count(&self, counter: Counter) {
        self.add(counter_at(counter), 1);
    }

    fn add(&self, at: usize, n: u64) {
        if n > 0
            && let Some(count) = self.counts.get(at)
        {
            count.set(count.get() + n);
            self.counted.notify_one();
        }
    }
}

fn counter_at(counter: Counter) -> usize {
    let at = COUNTERS.iter().position(|known| *known == counter);
    at.unwrap_or(COUNTS_LEN)
}

fn drop_at(reason: DropReason) -> usize {
    let at = DROPS.iter().position(|known| *known == reason);
    at.map_or(COUNTS_LEN, |at| COUNTERS.len() + at)
}

/// Watches a doorbell.
#[allow(
    deprecated,
    reason = "deprecated for types that do not own their descriptor; this one does, and the \
              replacement is an unsafe function"
)]
fn watch<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, Interest::READABLE)
}
