//! Bytes that all connections of one side may hold at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The budget. Copies share it.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    left: Arc<AtomicUsize>,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(bytes)),
        }
    }

    /// A share of nothing yet.
    pub(super) fn share(&self) -> Share {
        Share {
            budget: self.clone(),
            held: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }
}

/// A part of the budget; goes back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Budget,
    held: usize,
}

impl Share {
    /// Takes more; false when there is not so much left.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let taken = self
            .budget
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            });
        if taken.is_ok() {
            self.held += bytes;
        }
        taken.is_ok()
    }

    /// Gives back all but so much.
    pub(super) fn shrink(&mut self, keep: usize) {
        let back = self.held.saturating_sub(keep);
        self.held -= back;
        self.budget.left.fetch_add(back, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(0);
    }
}
