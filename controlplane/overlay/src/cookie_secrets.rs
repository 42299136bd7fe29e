//! Secrets of cookies and handshake numbers.

use hyphae_time::Nanos;
use hyphae_wire::guard;
use zeroize::Zeroize;

/// Secrets that cookies and handshake numbers are made with.
#[derive(Default)]
pub(crate) struct CookieSecrets {
    pub(crate) current: [u8; 32],
    pub(crate) previous: [u8; 32],
    /// Time of the next rotation; adoption does not defer it.
    pub(crate) due: Nanos,
}

impl CookieSecrets {
    /// A handshake number whose answers the workers accept.
    pub(crate) fn number(&self, random: u32) -> u32 {
        guard::number(&self.current, random)
    }
}

impl Drop for CookieSecrets {
    fn drop(&mut self) {
        self.current.zeroize();
        self.previous.zeroize();
    }
}
