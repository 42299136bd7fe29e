//! Work that leaves nothing on the stack.

use std::hint::black_box;

/// Bytes of stack that are wiped: several times what handshakes and signatures use.
const DEPTH: usize = 64 * 1024;

/// Does `work`, and wipes the stack that it has used: values that were moved or passed on leave copies
/// there, which nothing else overwrites for as long as a thread sleeps. What `work` returns must not be
/// secret. For handshakes and records with keys, not for packets.
pub fn on_wiped_stack<T>(work: impl FnOnce() -> T) -> T {
    let result = apart(work);
    wipe();
    result
}

/// A frame of its own, at the same place as that of [`wipe`].
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe() {
    // Read by nobody as far as the compiler knows, except for this.
    black_box(&mut [0u8; DEPTH]);
}
