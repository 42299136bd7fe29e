//! The segment: a sealed memfd with two rings and a stats block per worker.
//!
//! ```text
//! | header 4096 | worker 0: program ring | punt ring | counters | peers | worker 1 … |
//! ```
//!
//! The dataplane creates it, maps it and keeps the descriptor; a control plane receives the
//! descriptor when it attaches. The seals forbid resizing, so a mapping can never fault. Every part
//! begins on a page. Program records carry keys: their rings are locked in memory where the limits
//! allow, and the whole mapping is left out of core dumps.
//!
//! Each end of each ring and each stats writer is taken by one holder at a time per mapping; a second
//! take while the first lives is a bug and panics. One control plane at a time is the attach server's
//! duty: in one process the table of taken ends keeps producers and consumers single, between
//! processes the lease does.

#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyphae_wire::WorkerId;
use hyphae_wire::index::WORKERS_MAX;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::memory::{Owner, RingMemory};
use crate::record::{FibReplace, LinkInstall, NEXT_HOPS_MAX, PEERS_MAX, SessionInstall};
use crate::ring::{Consumer, Indices, Producer, RECORD_MAX};
use crate::stats::{COUNTERS, Counter, DropReason};
use crate::stats_block::{PeerLine, StatsReader, StatsWriter};

/// Version of everything in the segment; raised with every change of a record or of the layout.
pub const ABI_VERSION: u64 = 4;

const COOKIE: u64 = u64::from_ne_bytes(*b"hyphae\0\x01");
const PAGE: usize = 4096;

// Ends of a worker's parts, as they are counted in the table of taken ones.
const PROGRAM_PRODUCER: usize = 0;
const PROGRAM_CONSUMER: usize = 1;
const PUNT_PRODUCER: usize = 2;
const PUNT_CONSUMER: usize = 3;
const STATS_WRITER: usize = 4;
const ENDS: usize = 5;

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Workers, 1 to 64.
    pub workers: u16,
    /// Bytes of each program ring, a power of two.
    pub program_bytes: u32,
    /// Bytes of each punt ring, a power of two.
    pub punt_bytes: u32,
}

impl Layout {
    /// The usual sizes.
    pub fn new(workers: u16) -> Self {
        Self {
            workers,
            program_bytes: 256 * 1024,
            punt_bytes: 1024 * 1024,
        }
    }

    fn check(self) -> Result<Self, SegmentError> {
        let ring = |bytes: u32| {
            bytes.is_power_of_two() && bytes as usize > 2 * RECORD_MAX && bytes <= 1 << 30
        };
        let ok = (1..=WORKERS_MAX).contains(&self.workers)
            && ring(self.program_bytes)
            && ring(self.punt_bytes);
        if ok {
            Ok(self)
        } else {
            Err(SegmentError::Layout(self))
        }
    }

    /// Offset of a worker's parts: program ring, punt ring, counters, peers, end.
    fn offsets(self, worker: u16) -> [usize; 5] {
        let sizes = [
            size_of::<Indices>() + self.program_bytes as usize,
            size_of::<Indices>() + self.punt_bytes as usize,
            COUNTERS * 8,
            PEERS_MAX as usize * size_of::<PeerLine>(),
        ]
        .map(|size| size.next_multiple_of(PAGE));
        let mut at = PAGE + usize::from(worker) * sizes.iter().sum::<usize>();
        let mut offsets = [at; 5];
        for (offset, size) in offsets[1..].iter_mut().zip(sizes) {
            at += size;
            *offset = at;
        }
        offsets
    }

    fn total(self) -> usize {
        self.offsets(self.workers - 1)[4]
    }

    /// Differs when either side was built with other counters, limits or sizes of the large records.
    /// A change of meaning is what [`ABI_VERSION`] is raised for.
    fn hash(self) -> u64 {
        let counters = Counter::ALL.iter().map(|counter| counter.name());
        let drops = DropReason::ALL.iter().map(|reason| reason.name());
        let sizes = [
            self.total(),
            PEERS_MAX as usize,
            NEXT_HOPS_MAX,
            RECORD_MAX,
            size_of::<PeerLine>(),
            size_of::<Indices>(),
            size_of::<LinkInstall>(),
            size_of::<SessionInstall>(),
            size_of::<FibReplace>(),
        ]
        .map(usize::to_le_bytes);
        let names = counters
            .chain(drops)
            .flat_map(|name| name.bytes().chain([0]));
        // FNV-1a: short, and the same in every build.
        names
            .chain(sizes.into_iter().flatten())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            })
    }
}

/// Why a segment could not be made or mapped.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// Sizes out of range.
    #[error("segment layout is out of range: {0:?}")]
    Layout(Layout),
    /// A system call failed.
    #[error("{call} of the shared segment: {source}")]
    System {
        /// Which.
        call: &'static str,
        /// How.
        source: Errno,
    },
    /// Not a Hyphae segment.
    #[error("the descriptor is not a Hyphae segment")]
    Cookie,
    /// Another version.
    #[error(
        "the dataplane's segment has ABI version {found}, this control plane needs {ABI_VERSION}: \
         restart the older of the two"
    )]
    Version {
        /// What the segment says.
        found: u64,
    },
    /// Same version, other contents.
    #[error("the dataplane's segment has another layout: both planes must be of the same build")]
    LayoutHash,
    /// The size is not what the header says, or the seals that keep it so are missing.
    #[error("the segment is not sealed, or its size is not what its header says")]
    Seals,
}

#[repr(C)]
struct Header {
    cookie: AtomicU64,
    abi_version: AtomicU64,
    workers: AtomicU64,
    program_bytes: AtomicU64,
    punt_bytes: AtomicU64,
    total: AtomicU64,
    hash: AtomicU64,
    generation: AtomicU64,
}

/// One mapping of a segment in this process.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
    locked: bool,
    layout: Layout,
    /// Ends handed out, [`ENDS`] per worker.
    taken: Mutex<Vec<bool>>,
}

// SAFETY: the mapping stays where it is until drop; all access goes through atomics (header, stats)
// or rings whose ends are handed out once.
unsafe impl Send for Mapping {}
// SAFETY: as above; `taken` is behind a mutex.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn taken(&self) -> MutexGuard<'_, Vec<bool>> {
        // A panic on a second take leaves the table as it should be.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; rings and stats hold a clone of the segment,
        // so nothing refers to it any more. Unmapping our own mapping does not fail.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A mapped segment; clones share the mapping.
#[derive(Clone)]
pub struct Segment(Arc<Mapping>);

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

impl Segment {
    /// Makes a segment and maps it. The descriptor is for control planes.
    ///
    /// # Errors
    /// When the sizes are out of range or the system refuses memory.
    pub fn create(layout: Layout) -> Result<(Self, OwnedFd), SegmentError> {
        let layout = layout.check()?;
        let system = |call| move |source| SegmentError::System { call, source };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = |flags| rustix::fs::memfd_create("hyphae-segment", flags);
        // Some hosts demand that memory files are never executable (vm.memfd_noexec); kernels before
        // 6.3 do not know the flag.
        let fd = memfd(flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|error| {
                if error == Errno::INVAL {
                    memfd(flags)
                } else {
                    Err(error)
                }
            })
            .map_err(system("creation"))?;
        rustix::fs::ftruncate(&fd, layout.total() as u64).map_err(system("sizing"))?;
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(system("sealing"))?;
        let segment = Self::map(&fd, layout)?;
        let header = segment.header();
        let fields = [
            (&header.abi_version, ABI_VERSION),
            (&header.workers, u64::from(layout.workers)),
            (&header.program_bytes, u64::from(layout.program_bytes)),
            (&header.punt_bytes, u64::from(layout.punt_bytes)),
            (&header.total, layout.total() as u64),
            (&header.hash, layout.hash()),
            (&header.cookie, COOKIE),
        ];
        fields
            .into_iter()
            .for_each(|(field, value)| field.store(value, Ordering::Release));
        Ok((segment, fd))
    }

    /// Maps a segment that a dataplane sent.
    ///
    /// # Errors
    /// When it is not a segment, of another version or build, or not sealed.
    pub fn attach(fd: &OwnedFd) -> Result<Self, SegmentError> {
        let system = |call| move |source| SegmentError::System { call, source };
        let seals = rustix::fs::fcntl_get_seals(fd).map_err(|_| SegmentError::Cookie)?;
        let size = rustix::fs::fstat(fd).map_err(system("size"))?.st_size;
        let size = usize::try_from(size).unwrap_or(0);
        if !seals.contains(SEALS) || size < PAGE {
            return Err(SegmentError::Seals);
        }
        // The header is read through the file first: nothing is mapped before its size is known.
        let mut words = [0u8; size_of::<Header>()];
        rustix::io::pread(fd, &mut words, 0).map_err(system("reading"))?;
        let (words, _) = words.as_chunks();
        let mut words = words.iter().map(|word| u64::from_ne_bytes(*word));
        let mut next = || words.next().unwrap_or(0);
        if next() != COOKIE {
            return Err(SegmentError::Cookie);
        }
        let found = next();
        if found != ABI_VERSION {
            return Err(SegmentError::Version { found });
        }
        let layout = Layout {
            workers: u16::try_from(next()).unwrap_or(0),
            program_bytes: u32::try_from(next()).unwrap_or(0),
            punt_bytes: u32::try_from(next()).unwrap_or(0),
        }
        .check()?;
        let (total, hash) = (next(), next());
        if hash != layout.hash() {
            return Err(SegmentError::LayoutHash);
        }
        if total != layout.total() as u64 || size != layout.total() {
            return Err(SegmentError::Seals);
        }
        Self::map(fd, layout)
    }

    fn map(fd: &OwnedFd, layout: Layout) -> Result<Self, SegmentError> {
        let len = layout.total();
        let system = |call| move |source| SegmentError::System { call, source };
        // SAFETY: a new shared mapping at an address of the kernel's choice aliases no Rust object.
        // The file is at least `len` long and sealed against shrinking (create, attach).
        let base = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                fd,
                0,
            )
        }
        .map_err(system("mapping"))?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(SegmentError::System {
            call: "mapping",
            source: Errno::INVAL,
        })?;
        // Both are hardening only: an unprivileged process may not be allowed to lock this much.
        let lock = |worker| {
            let [program, punt, ..] = layout.offsets(worker);
            // SAFETY: the range is inside the mapping made above (Layout::offsets); locking does not
            // touch its contents.
            unsafe { rustix::mm::mlock(base.add(program).as_ptr().cast(), punt - program).is_ok() }
        };
        let locked = (0..layout.workers).all(lock);
        // SAFETY: the range is the mapping made above; this advice does not touch its contents.
        let _ = unsafe { rustix::mm::madvise(base.as_ptr().cast(), len, Advice::LinuxDontDump) };
        let taken = Mutex::new(vec![false; usize::from(layout.workers) * ENDS]);
        Ok(Self(Arc::new(Mapping {
            base,
            len,
            locked,
            layout,
            taken,
        })))
    }

    /// What it holds.
    pub fn layout(&self) -> Layout {
        self.0.layout
    }

    /// Whether the program rings are locked in memory, so that keys in flight never reach a swap
    /// device.
    pub fn is_locked(&self) -> bool {
        self.0.locked
    }

    /// How many control planes have attached.
    pub fn generation(&self) -> u64 {
        self.header().generation.load(Ordering::Acquire)
    }

    /// Counts an attach; returns the new generation.
    pub fn raise_generation(&self) -> u64 {
        // Wraps: any process that maps the segment can have stored anything here.
        self.header()
            .generation
            .fetch_add(1, Ordering::AcqRel)
            .wrapping_add(1)
    }

    /// The control plane's end of a worker's program ring. What a predecessor wrote and did not
    /// publish is wiped.
    ///
    /// # Panics
    /// When the worker does not exist or the end is taken.
    pub fn program_producer(&self, worker: WorkerId) -> Producer {
        let mut producer = Producer::new(self.ring(worker, PROGRAM_PRODUCER));
        producer.wipe_free();
        producer
    }

    /// A worker's end of its program ring. Records are wiped as they are read.
    ///
    /// # Panics
    /// When the worker does not exist or the end is taken.
    pub fn program_consumer(&self, worker: WorkerId) -> Consumer {
        Consumer::new(self.ring(worker, PROGRAM_CONSUMER), true)
    }

    /// A worker's end of its punt ring.
    ///
    /// # Panics
    /// When the worker does not exist or the end is taken.
    pub fn punt_producer(&self, worker: WorkerId) -> Producer {
        Producer::new(self.ring(worker, PUNT_PRODUCER))
    }

    /// The control plane's end of a worker's punt ring.
    ///
    /// # Panics
    /// When the worker does not exist or the end is taken.
    pub fn punt_consumer(&self, worker: WorkerId) -> Consumer {
        Consumer::new(self.ring(worker, PUNT_CONSUMER), false)
    }

    /// A worker's stats block, to write.
    ///
    /// # Panics
    /// When the worker does not exist or the writer is taken.
    pub fn stats_writer(&self, worker: WorkerId) -> StatsWriter {
        StatsWriter::new(self.stats_reader(worker), self.take(worker, STATS_WRITER))
    }

    /// A worker's stats block, to read; any number of readers may exist.
    ///
    /// # Panics
    /// When the worker does not exist.
    pub fn stats_reader(&self, worker: WorkerId) -> StatsReader {
        assert!(
            worker.0 < self.0.layout.workers,
            "worker {} exists",
            worker.0
        );
        let [.., counters, peers, _] = self.0.layout.offsets(worker.0);
        // SAFETY: both offsets are inside the mapping with their whole arrays (Layout::offsets and
        // total), page aligned, zeroed by the kernel, and only ever accessed as atomics. The clone
        // keeps the mapping alive.
        unsafe {
            let (counters, peers) = (self.0.base.add(counters), self.0.base.add(peers));
            StatsReader::new(counters.cast(), peers.cast(), self.clone())
        }
    }

    fn ring(&self, worker: WorkerId, end: usize) -> RingMemory {
        let held = self.take(worker, end);
        let layout = self.0.layout;
        let [program, punt, ..] = layout.offsets(worker.0);
        let (offset, capacity) = match end {
            PROGRAM_PRODUCER | PROGRAM_CONSUMER => (program, layout.program_bytes),
            _ => (punt, layout.punt_bytes),
        };
        // SAFETY: indices and data lie inside the mapping (Layout::offsets), page aligned; the owner
        // keeps it mapped. `take` hands each end to one holder at a time, so there is one producer and
        // one consumer in this process and, by the attach lease, one process on either side.
        unsafe {
            RingMemory::mapped(
                self.0.base.add(offset).cast(),
                self.0.base.add(offset + size_of::<Indices>()),
                capacity as usize,
                Box::new(held),
            )
        }
    }

    fn take(&self, worker: WorkerId, end: usize) -> Held {
        assert!(
            worker.0 < self.0.layout.workers,
            "worker {} exists",
            worker.0
        );
        let slot = worker.as_usize() * ENDS + end;
        let taken = std::mem::replace(&mut self.0.taken()[slot], true);
        assert!(!taken, "each end of the segment has one holder");
        Held {
            segment: self.clone(),
            slot,
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: the first page of the mapping, which `self` keeps; all fields are atomics.
        unsafe { self.0.base.cast::<Header>().as_ref() }
    }
}

/// An end that is taken, until this is dropped. Keeps the mapping alive.
pub(crate) struct Held {
    segment: Segment,
    slot: usize,
}

impl Owner for Held {
    fn alone(&self, act: &mut dyn FnMut()) -> bool {
        let taken = self.segment.0.taken();
        let end = self.slot % ENDS;
        // The two ends of a ring are an even number and the next.
        let alone = !taken[self.slot - end + (end ^ 1)];
        if alone {
            act();
        }
        alone
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.segment.0.taken()[self.slot] = false;
    }
}
