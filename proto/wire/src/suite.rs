//! Cipher suites and their negotiation.

use std::fmt;
use std::str::FromStr;

/// AEAD of link headers and end-to-end payloads. Both suites have 32-byte keys, 12-byte nonces and 16-byte
/// tags, so frames do not depend on the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    /// RFC 8439; every node supports it.
    ChaCha20Poly1305,
    /// NIST SP 800-38D; selected when both ends have AES in hardware.
    Aes256Gcm,
}

impl Suite {
    /// The bit of this suite in a [`SuiteSet`] and its code in records.
    pub const fn code(self) -> u8 {
        match self {
            Self::ChaCha20Poly1305 => 1,
            Self::Aes256Gcm => 2,
        }
    }

    /// The suite of a code, if there is one.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::ChaCha20Poly1305),
            2 => Some(Self::Aes256Gcm),
            _ => None,
        }
    }

    /// Name as in configuration and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Error of parsing a suite name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown cipher suite '{0}': use chacha20-poly1305 or aes-256-gcm")]
pub struct UnknownSuite(pub String);

impl FromStr for Suite {
    type Err = UnknownSuite;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        [Self::ChaCha20Poly1305, Self::Aes256Gcm]
            .into_iter()
            .find(|suite| suite.name() == s)
            .ok_or_else(|| UnknownSuite(s.to_owned()))
    }
}

/// Set of offered suites, as in a handshake payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuiteSet(pub u8);

impl SuiteSet {
    /// A set of one.
    pub const fn only(suite: Suite) -> Self {
        Self(suite.code())
    }

    /// Both suites, the offer of a node with AES in hardware.
    pub const fn all() -> Self {
        Self(Suite::ChaCha20Poly1305.code() | Suite::Aes256Gcm.code())
    }

    /// Whether `suite` is offered.
    pub const fn contains(self, suite: Suite) -> bool {
        self.0 & suite.code() != 0
    }

    /// The suite of two offers: AES-256-GCM when both have it, else ChaCha20-Poly1305, else none.
    pub fn agree(self, other: Self) -> Option<Suite> {
        [Suite::Aes256Gcm, Suite::ChaCha20Poly1305]
            .into_iter()
            .find(|suite| self.contains(*suite) && other.contains(*suite))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_prefers_aes_and_is_symmetric() {
        let chacha = SuiteSet::only(Suite::ChaCha20Poly1305);
        let aes = SuiteSet::only(Suite::Aes256Gcm);
        assert_eq!(
            SuiteSet::all().agree(SuiteSet::all()),
            Some(Suite::Aes256Gcm)
        );
        assert_eq!(SuiteSet::all().agree(chacha), Some(Suite::ChaCha20Poly1305));
        assert_eq!(chacha.agree(SuiteSet::all()), Some(Suite::ChaCha20Poly1305));
        assert_eq!(chacha.agree(aes), None);
        assert_eq!(SuiteSet(0xfc).agree(SuiteSet(0xfc)), None);
    }

    #[test]
    fn names_and_codes_round_trip() {
        for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
            assert_eq!(suite.name().parse(), Ok(suite));
            assert_eq!(Suite::from_code(suite.code()), Some(suite));
        }
        assert!("aes".parse::<Suite>().is_err());
        assert_eq!(Suite::from_code(3), None);
    }
}
