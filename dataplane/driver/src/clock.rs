//! Whether something keeps the host's clock right.

use std::io;

/// Asks the kernel, and changes nothing (adjtimex(2) with no mode set, which everybody may call).
///
/// # Errors
/// What the kernel says.
pub fn is_synchronised() -> io::Result<bool> {
    // SAFETY: `timex` is plain numbers and padding, for which all zeroes are a valid value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel reads and writes one `timex` at the address of a local variable that is one;
    // the reference lives until the call returns.
    let state = unsafe { libc::adjtimex(&mut timex) };
    if state == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers_everybody_and_the_same_twice() {
        let first = super::is_synchronised().unwrap();
        assert_eq!(super::is_synchronised().unwrap(), first);
    }
}
