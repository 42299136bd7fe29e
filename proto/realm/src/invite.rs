//! Invites: a one-time secret with which a node obtains its first grants from an authority.
//!
//! ```text
//! invite = version u8 (1) ‖ realm (16) ‖ authority (32) ‖ secret (16) ‖ expires u64 LE, Unix ms ‖ checksum (4)
//! text   = "hyi" ‖ base32 (RFC 4648, lower case, without padding)
//! ```
//!
//! The checksum finds mistakes of typing; the secret authenticates. It is presented end to end, over a session with the
//! authority's key, and the authority stores only its digest.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hyphae_wire::PublicKey;

use crate::RealmId;
use crate::hlc::UnixMillis;

/// Life of an invite.
pub const INVITE_LIFE: Duration = Duration::from_secs(86_400);
/// Bytes of a secret.
pub const SECRET_LEN: usize = 16;

const PREFIX: &str = "hyi";
const VERSION: u8 = 1;
const CHECKSUM_LEN: usize = 4;
const BODY_LEN: usize = 1 + 16 + 32 + SECRET_LEN + 8;
const LEN: usize = BODY_LEN + CHECKSUM_LEN;
const TEXT_LEN: usize = (8 * LEN).div_ceil(5);
const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// An invite. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    /// The realm to join.
    pub realm: RealmId,
    /// The authority that issued it.
    pub authority: PublicKey,
    /// The secret.
    pub secret: [u8; SECRET_LEN],
    /// When it expires.
    pub expires: UnixMillis,
}

/// Text that is not an invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInvite {
    /// Not of the form of an invite.
    #[error("not an invite: expected '{PREFIX}' and {TEXT_LEN} letters and digits")]
    Form,
    /// Of another version.
    #[error("the invite is of a newer version ({0}) of the format")]
    Version(u8),
    /// Mistyped.
    #[error("the invite is mistyped: its checksum does not match")]
    Checksum,
}

/// What an authority stores of a secret.
pub fn digest(realm: RealmId, secret: &[u8; SECRET_LEN]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("hyphae invite v1");
    hasher.update(&realm.0).update(secret);
    hasher.finalize().into()
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut sum = [0; CHECKSUM_LEN];
    let mut hasher = blake3::Hasher::new_derive_key("hyphae invite checksum v1");
    hasher.update(body).finalize_xof().fill(&mut sum);
    sum
}

impl Invite {
    fn bytes(&self) -> Vec<u8> {
        let expires = self.expires.0.to_le_bytes();
        let parts: [&[u8]; 5] = [
            &[VERSION],
            &self.realm.0,
            &self.authority.0,
            &self.secret,
            &expires,
        ];
        let body = parts.concat();
        let sum = checksum(&body);
        [&body[..], &sum].concat()
    }
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        let (mut bits, mut pending) = (0u32, 0);
        let mut digit = |value: u32| {
            let digit = DIGITS[value as usize & 31];
            fmt::Write::write_char(f, char::from(digit))
        };
        for byte in self.bytes() {
            bits = bits << 8 | u32::from(byte);
            pending += 8;
            while pending >= 5 {
                pending -= 5;
                digit(bits >> pending)?;
            }
        }
        if pending > 0 {
            digit(bits << (5 - pending))
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (realm, authority) = (self.realm, self.authority);
        write!(f, "Invite({realm} by {authority})")
    }
}

impl FromStr for Invite {
    type Err = InvalidInvite;

    /// Upper case and surrounding white space are accepted.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let text = s.trim().to_ascii_lowercase();
        let digits = text.strip_prefix(PREFIX).ok_or(InvalidInvite::Form)?;
        if digits.len() != TEXT_LEN {
            return Err(InvalidInvite::Form);
        }
        let (mut bits, mut pending) = (0u32, 0);
        let mut bytes = Vec::with_capacity(LEN);
        for digit in digits.bytes() {
            let value = DIGITS.iter().position(|known| *known == digit);
            let value = value.and_then(|value| u32::try_from(value).ok());
            bits = (bits << 5 | value.ok_or(InvalidInvite::Form)?) & 0xfff;
            pending += 5;
            if pending >= 8 {
                pending -= 8;
                bytes.push(u8::try_from(bits >> pending & 0xff).unwrap_or_default());
            }
        }
        let (body, sum) = bytes
            .split_at_checked(BODY_LEN)
            .ok_or(InvalidInvite::Form)?;
        // The checksum covers the version; bits after it must be zero.
        if sum != checksum(body) || bits & ((1 << pending) - 1) != 0 {
            return Err(InvalidInvite::Checksum);
        }
        if body[0] != VERSION {
            return Err(InvalidInvite::Version(body[0]));
        }
        let part = |from: usize, len: usize| &body[from..from + len];
        let form = |_| InvalidInvite::Form;
        Ok(Self {
            realm: RealmId(part(1, 16).try_into().map_err(form)?),
            authority: PublicKey(part(17, 32).try_into().map_err(form)?),
            secret: part(49, SECRET_LEN).try_into().map_err(form)?,
            expires: UnixMillis(u64::from_le_bytes(part(65, 8).try_into().map_err(form)?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite() -> Invite {
        Invite {
            realm: RealmId([1; 16]),
            authority: PublicKey([2; 32]),
            secret: [3; SECRET_LEN],
            expires: UnixMillis(1_700_000_000_000),
        }
    }

    #[test]
    fn an_invite_is_read_back_as_printed() {
        let text = invite().to_string();
        assert_eq!(text.len(), PREFIX.len() + TEXT_LEN);
        assert_eq!(text.parse(), Ok(invite()));
        assert_eq!(format!(" {}\n", text.to_uppercase()).parse(), Ok(invite()));
    }

    #[test]
    fn a_mistyped_invite_is_found() {
        let text = invite().to_string();
        for at in PREFIX.len()..text.len() {
            let other = if text.as_bytes()[at] == b'a' {
                "b"
            } else {
                "a"
            };
            let mut bad = text.clone();
            bad.replace_range(at..=at, other);
            assert_eq!(bad.parse::<Invite>(), Err(InvalidInvite::Checksum), "{at}");
        }
        for bad in [
            "",
            "hyi",
            &text[1..],
            &text[..text.len() - 1],
            &text.replace('a', "1"),
        ] {
            assert_eq!(bad.parse::<Invite>(), Err(InvalidInvite::Form), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let shown = format!("{:?}", invite());
        assert!(
            !shown.contains("0303") && !shown.contains("3, 3"),
            "{shown}"
        );
    }
}
