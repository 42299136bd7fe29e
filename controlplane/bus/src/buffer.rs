//! Memory for payloads. That of long ones is mapped by itself and asked for in large pages: of pages of 4 KiB a
//! message of 64 MiB takes 16,384, and to get each of them costs more than to copy what it holds. What one payload has
//! left is kept for the next one for a while, because the kernel makes new memory zero first, and a host that lends it
//! to a virtual machine may have to find it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hyphae_wire::message::MESSAGE_MAX;
use memmap2::MmapMut;

/// Bytes from which on a payload lies in memory of its own: two large pages of most machines.
const MAPPED_MIN: usize = 4 << 20;
/// So much of it has to have come before: what is announced costs nothing.
const MAPPED_AFTER: usize = 1 << 20;
/// Bytes that are kept: two of the longest payloads.
const KEPT_MAX: usize = 2 * MESSAGE_MAX;
/// Memory may be longer than the payload that gets it, by one of so many parts of that: budgets count payloads.
const LONGER_PART: usize = 8;

/// Memory that payloads have left; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// With each, whether it was there at the last [`Self::expire`].
    kept: Arc<Mutex<Vec<(MmapMut, bool)>>>,
}

impl Pool {
    /// Memory for so many bytes. `None` for few, and where the kernel has none: then the heap says so.
    fn take(&self, len: usize) -> Option<MmapMut> {
        if len < MAPPED_MIN {
            return None;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let fit = len..=len + len / LONGER_PART;
        // The one that was used last, so that one that is not needed is found to be idle.
        if let Some(found) = kept.iter().rposition(|(map, _)| fit.contains(&map.len())) {
            return Some(kept.remove(found).0);
        }
        drop(kept);
        let map = MmapMut::map_anon(len).ok()?;
        // A kernel without large pages has small ones.
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(map)
    }

    fn give(&self, map: MmapMut) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().map(|(map, _)| map.len()).sum::<usize>() + map.len() <= KEPT_MAX {
            kept.push((map, false));
        }
    }

    /// Gives back to the kernel what nobody has used since the last time.
    pub fn expire(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let idle: Vec<_> = kept
            .extract_if(.., |(_, idle)| std::mem::replace(idle, true))
            .collect();
        // That takes the kernel some time.
        drop(kept);
        drop(idle);
    }
}

/// Mapped memory; it goes back where it is from.
#[derive(Debug)]
struct Mapped {
    /// There until it is dropped.
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
            self.pool.give(map);
        }
    }
}

/// Bytes that become a payload.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    /// So many are written.
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
    /// So many bytes, all of them to be written: what they are before may be of another payload.
    pub fn to_fill(len: usize, pool: &Pool) -> Self {
        let mapped = Mapped::take(pool, len).map(Memory::Mapped);
        let memory = mapped.unwrap_or_else(|| Memory::Heap(vec![0; len]));
        Self { memory, len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds bytes to a buffer that will have `most` in the end.
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
                    // It grows with what has arrived, to no more than the message needs.
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

    /// Bytes of memory in use at most.
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
    fn memory_of_long_payloads_is_used_again_until_it_has_been_idle() {
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
        assert_ne!(place(&second), at, "a part of the first is still in use");
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
        let kept = || pool.kept.lock().unwrap().len();
        assert_eq!(kept(), 2);
        // One that is too long for what is kept, then one that is too short for that.
        drop(filled(3 * len, 5));
        assert_eq!(kept(), 3);
        drop(filled(2 * len, 4));
        assert_eq!(kept(), 4);
        pool.expire();
        drop(filled(3 * len, 6));
        pool.expire();
        assert_eq!(kept(), 1, "one was in use meanwhile");
        pool.expire();
        assert_eq!(kept(), 0);
        let all: Vec<_> = (0..4).map(|n| filled(MESSAGE_MAX, n)).collect();
        drop(all);
        assert_eq!(kept(), 2);
    }
}
