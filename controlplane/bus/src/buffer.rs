//! Memory for payloads. That of long ones is mapped by itself and asked for in large pages: of pages of 4 KiB a
//! message of 64 MiB takes 16,384, and to get each of them costs more than to copy what it holds.

use bytes::Bytes;
use memmap2::MmapMut;

/// Bytes from which on a payload lies in memory of its own: two large pages of most machines.
const MAPPED_MIN: usize = 4 << 20;
/// So much of it has to have come before: what is announced costs nothing.
const MAPPED_AFTER: usize = 1 << 20;

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
    Mapped(MmapMut),
}

impl Buffer {
    /// So many bytes, all zero, to be written.
    pub fn zeroed(len: usize) -> Self {
        let memory = map(len).map_or_else(|| Memory::Heap(vec![0; len]), Memory::Mapped);
        Self { memory, len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds bytes to a buffer that will have `most` in the end.
    pub(crate) fn append(&mut self, bytes: &[u8], most: usize) {
        let end = self.len + bytes.len();
        if let Memory::Heap(heap) = &self.memory
            && end > MAPPED_AFTER
            && let Some(mut mapped) = map(most)
            && let Some(room) = mapped.get_mut(..heap.len())
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
                if let Some(room) = mapped.get_mut(self.len..end) {
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

/// Memory of its own for so many bytes. `None` for few, and where the kernel has none: then the heap says so.
fn map(len: usize) -> Option<MmapMut> {
    if len < MAPPED_MIN {
        return None;
    }
    let map = MmapMut::map_anon(len).ok()?;
    // A kernel without large pages has small ones.
    let _ = map.advise(memmap2::Advice::HugePage);
    Some(map)
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(heap) => heap,
            Memory::Mapped(mapped) => mapped.get(..self.len).unwrap_or_default(),
        }
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(heap) => heap,
            Memory::Mapped(mapped) => mapped.get_mut(..self.len).unwrap_or_default(),
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
