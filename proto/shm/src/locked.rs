//! A page of its own for a secret: never swapped, left out of core dumps, empty in a forked child.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize;

/// Bytes of a [`LockedPage`].
const BYTES: usize = 4096;

/// Memory for a secret that is to be in one place only. Zero at first; wiped when dropped.
pub struct LockedPage {
    start: NonNull<u8>,
    locked: bool,
}

// SAFETY: the mapping belongs to this value alone, and may be used and unmapped by any thread.
unsafe impl Send for LockedPage {}
// SAFETY: shared references only read.
unsafe impl Sync for LockedPage {}

impl LockedPage {
    /// Maps a page. One that cannot be locked is used all the same; see [`Self::is_locked`].
    ///
    /// # Errors
    /// When the kernel has no memory, or does not know `MADV_DONTDUMP` or `MADV_WIPEONFORK`.
    pub fn new() -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), BYTES, access, MapFlags::PRIVATE)? };
        let Some(place) = NonNull::new(start.cast::<u8>()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let mut page = Self {
            start: place,
            locked: false,
        };
        // SAFETY: the range is the mapping made above. None of these calls changes its contents in
        // this process.
        unsafe {
            madvise(start, BYTES, Advice::LinuxDontDump)?;
            madvise(start, BYTES, Advice::LinuxWipeOnFork)?;
            page.locked = mlock(start, BYTES).is_ok();
        }
        Ok(page)
    }

    /// Whether it is never swapped: `RLIMIT_MEMLOCK` allows it.
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this many bytes, is initialised (anonymous memory is zero), lives
        // as long as `self`, and is written through `&mut self` only.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), BYTES) }
    }

    /// The same, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), BYTES) }
    }
}

impl Drop for LockedPage {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        // SAFETY: the mapping was made in `new` and is not used again.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), BYTES) };
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_locked_and_neither_dumped_nor_forked() {
        let mut page = LockedPage::new().unwrap();
        assert!(page.bytes().iter().all(|byte| *byte == 0));
        page.bytes_mut()[..3].copy_from_slice(b"key");
        assert_eq!(&page.bytes()[..4], b"key\0");
        let start = format!("{:x}-", page.bytes().as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let flags = lines
            .find_map(|line| line.strip_prefix("VmFlags:"))
            .unwrap();
        let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
        assert!(has("dd") && has("wf"), "{flags}");
        assert_eq!(has("lo"), page.is_locked(), "{flags}");
    }
}
