//! Buffers for payloads. Long payloads use mappings of their own in huge pages: 64 MiB are 16,384 pages of 4 KiB, and
//! faulting in a page costs more than copying its content. Freed mappings are pooled, because the kernel zeroes new
//! memory, and the host of a virtual machine may have to reclaim it first.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hyphae_wire::message::MESSAGE_MAX;
use memmap2::MmapMut;

/// Shortest payload in a mapping of its own: two huge pages of most machines.
const MAPPED_MIN: usize = 4 << 20;
/// Bytes received before a mapping is allocated: announcing a length costs nothing.
const MAPPED_AFTER: usize = 1 << 20;
/// Bytes of idle mappings: two of the longest payloads.
const IDLE_MAX: usize = 2 * MESSAGE_MAX;
/// A reused mapping exceeds its payload by at most this part of it, because budgets count payloads.
const EXCESS_PART: usize = 8;

/// Pool of idle mappings; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Each with whether it was idle at the last [`Self::expire`].
    idle: Arc<Mutex<Vec<(MmapMut, bool)>>>,
}

impl Pool {
    /// A mapping for `len` bytes. `None` if `len` is short or the mapping fails; the heap is used then.
    fn take(&self, len: usize) -> Option<MmapMut> {
        if len < MAPPED_MIN {
            return None;
        }
        let mut pool = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fit = len..=len + len / EXCESS_PART;
        // The last used one, so that surplus mappings become idle.
        if let Some(found) = pool.iter().rposition(|(map, _)| fit.contains(&map.len())) {
            return Some(pool.remove(found).0);
        }
        drop(pool);
        let map = MmapMut::map_anon(len).ok()?;
        // Best effort: works without huge pages.
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(map)
    }

    fn put(&self, map: MmapMut) {
        let mut pool = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.iter().map(|(map, _)| map.len()).sum::<usize>() + map.len() <= IDLE_MAX {
            pool.push((map, false));
        }
    }

    /// Unmaps mappings that were idle since the last call.
    pub fn expire(&self) {
        let mut pool = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle: Vec<_> = pool
            .extract_if(.., |(_, idle)| std::mem::replace(idle, true))
            .collect();
        // Unmapping is slow; not under the lock.
        drop(pool);
        drop(idle);
    }
}

/// A mapping that returns to its pool when dropped.
#[derive(Debug)]
struct Mapped {
    /// `Some` until dropped.
    map: Option<MmapMut>,
    pool: Pool,
}

impl Mapped {
    fn take(pool: &Pool, len: usize) -> Option<Self> {
        let map = Some(pool.take(len)?);
        let pool = pool.clone();
        Some(Self { map, pool })
    }

    fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.map.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Some(map) = self.map.take() {
            self.pool.put(map);
        }
    }
}

/// Buffer that becomes a payload.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    /// Bytes written.
    len: usize,
}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            memory: Memory::Heap(Vec::new()),
            len: 0,
        }
    }
}

#[derive(Debug)]
enum Memory {
    Heap(Vec<u8>),
    Mapped(Mapped),
}

impl Buffer {
    /// A buffer of `len` bytes. The caller must write all of them: they may hold bytes of an earlier payload.
    pub fn to_fill(len: usize, pool: &Pool) -> Self {
        let mapped = Mapped::take(pool, len).map(Memory::Mapped);
        let memory = mapped.unwrap_or_else(|| Memory::Heap(vec![0; len]));
        Self { memory, len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends bytes to a buffer whose final length is `most`.
    pub(crate) fn append(&mut self, bytes: &[u8], most: usize, pool: &Pool) {
        let end = self.len + bytes.len();
        if let Memory::Heap(heap) = &self.memory
            && end > MAPPED_AFTER
            && let Some(mut mapped) = Mapped::take(pool, most)
            && let Some(room) = mapped.bytes_mut().get_mut(..heap.len())
        {
            room.copy_from_slice(heap);
            self.memory = Memory::Mapped(mapped);
        }
        match &mut self.memory {
            Memory::Heap(heap) => {
                if heap.capacity() < end {
                    // Grows with the received bytes, up to the length of the message.
                    let grown = end.max(2 * self.len).min(most);
                    heap.reserve_exact(grown - self.len);
                }
                heap.extend_from_slice(bytes);
            }
            Memory::Mapped(mapped) => {
                if let Some(room) = mapped.bytes_mut().get_mut(self.len..end) {
                    room.copy_from_slice(bytes);
                }
            }
        }
        self.len = end;
    }

    /// Bytes of memory in use.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> usize {
        match &self.memory {
            Memory::Heap(heap) => heap.capacity(),
            Memory::Mapped(_) => self.len,
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(heap) => heap,
            Memory::Mapped(mapped) => mapped.bytes().get(..self.len).unwrap_or_default(),
        }
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(heap) => heap,
            Memory::Mapped(mapped) => mapped.bytes_mut().get_mut(..self.len).unwrap_or_default(),
        }
    }
}

impl From<Buffer> for Bytes {
    fn from(buffer: Buffer) -> Self {
        match buffer.memory {
            Memory::Heap(heap) => heap.into(),
            Memory::Mapped(_) => Self::from_owner(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuses_mappings_until_they_have_been_idle() {
        let (pool, len) = (Pool::default(), MAPPED_MIN);
        let place = |payload: &Bytes| payload.as_ptr();
        let filled = |len, with| {
            let mut buffer = Buffer::to_fill(len, &pool);
            buffer.as_mut().fill(with);
            Bytes::from(buffer)
        };
        let first = filled(len, 1);
        let at = place(&first);
        let part = first.slice(5..);
        drop(first);
        let second = filled(len, 2);
        assert_ne!(place(&second), at, "a slice of the first is in use");
        assert_eq!(part[0], 1);
        drop(part);
        let mut third = Buffer::default();
        for _ in 0..len / 4096 {
            third.append(&[3; 4096], len, &pool);
        }
        let third = Bytes::from(third);
        assert_eq!(place(&third), at);
        assert_eq!(third, vec![3; len]);
        drop((second, third));
        let idle = || pool.idle.lock().unwrap().len();
        assert_eq!(idle(), 2);
        // Too long for the idle mappings, then too short for the longest.
        drop(filled(3 * len, 5));
        assert_eq!(idle(), 3);
        drop(filled(2 * len, 4));
        assert_eq!(idle(), 4);
        pool.expire();
        drop(filled(3 * len, 6));
        pool.expire();
        assert_eq!(idle(), 1, "one was used between the calls");
        pool.expire();
        assert_eq!(idle(), 0);
        let all: Vec<_> = (0..4).map(|n| filled(MESSAGE_MAX, n)).collect();
        drop(all);
        assert_eq!(idle(), 2);
    }
}
