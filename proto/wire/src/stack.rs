//! Computation that leaves no secrets on the stack.

use std::hint::black_box;

/// Bytes of stack to wipe: several times the need of handshakes and signatures.
const DEPTH: usize = 64 * 1024;

/// Runs `work` and wipes the stack that it used: values that were moved or passed leave copies there, which a
/// sleeping thread never overwrites. The result must not be secret. For handshakes and records with keys, not
/// for packets.
pub fn on_wiped_stack<T>(work: impl FnOnce() -> T) -> T {
    let result = apart(work);
    wipe();
    result
}

/// A stack frame at the same place as that of [`wipe`].
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe() {
    // Prevents the compiler from removing the write.
    black_box(&mut [0u8; DEPTH]);
}
