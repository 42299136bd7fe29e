//! Names of realms and grants: 16 bytes, written as 32 hex digits.

use std::fmt;
use std::str::FromStr;

/// Bytes of an id.
pub const ID_LEN: usize = 16;

/// Invalid text form of an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an id: expected 32 lower-case hex digits")]
pub struct InvalidId(pub String);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; ID_LEN]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                hex(s).map(Self).ok_or_else(|| InvalidId(s.to_owned()))
            }
        }
    };
}

id! {
    /// Id of a realm: derived from its first authority ([`crate::realm::realm_id`]).
    RealmId
}

id! {
    /// Id of a grant: random, chosen by its issuer. A renewed grant retains it, so a revocation by id stays in force.
    GrantId
}

fn hex(s: &str) -> Option<[u8; ID_LEN]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let digits: &[u8; 2 * ID_LEN] = s.as_bytes().try_into().ok()?;
    let mut id = [0; ID_LEN];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_as_hex_digits_and_read_back() {
        let id = GrantId(std::array::from_fn(|n| u8::try_from(17 * n).unwrap_or(0)));
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "0011", "00112233445566778899AABBCCDDEEFF"] {
            assert_eq!(bad.parse::<RealmId>(), Err(InvalidId(bad.to_owned())));
        }
    }
}
