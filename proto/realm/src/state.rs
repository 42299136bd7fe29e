//! Node states: what a member publishes about itself, key → value, under one signed head.
//!
//! The head names its version, an HLC value that only grows, and a root hash over all entries, so anyone can relay and
//! store a state, and nobody can alter it or return to an older one. The root is flat, a hash over the hashes of all
//! entries in the order of their keys: with 1,024 keys it costs less than one signature.
//!
//! Keys that begin with `$` belong to the system: [`ADVERT`], [`LOAD`], [`GRANT_PREFIX`], [`INTEREST_PREFIX`].

use std::borrow::Borrow;
use std::fmt;

use hyphae_wire::PublicKey;

use crate::codec::{Format, FormatError, Reader, Unknown, Writer};
use crate::signed::{Signable, Signed};
use crate::{GrantId, Hlc, RealmId};

/// Keys of users in a state.
pub const KEYS_MAX: usize = 1_024;
/// Keys of the system in a state.
pub const SYSTEM_KEYS_MAX: usize = 1_024;
/// Bytes of a key.
pub const KEY_LEN_MAX: usize = 255;
/// Bytes of a value.
pub const VALUE_LEN_MAX: usize = 64 << 10;
/// Bytes of a state: keys, values and 32 for each entry.
pub const STATE_LEN_MAX: usize = 1 << 20;

/// Key of the advert, see [`crate::Advert`].
pub const ADVERT: &str = "$advert";
/// Key of the load: changes are sent once a minute at most.
pub const LOAD: &str = "$load";
/// Keys of grants: this prefix and the id of the grant; the values are signed grants.
pub const GRANT_PREFIX: &str = "$grant/";
/// Keys of interest in topics, for publish/subscribe.
pub const INTEREST_PREFIX: &str = "$interest/";

/// Key of an entry: 1 to 255 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateKey(String);

impl StateKey {
    /// Checks a key; `None` when it is invalid.
    pub fn new(text: &str) -> Option<Self> {
        let valid = (1..=KEY_LEN_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        valid.then(|| Self(text.to_owned()))
    }

    /// The key of a grant.
    pub fn grant(id: GrantId) -> Self {
        Self(format!("{GRANT_PREFIX}{id}"))
    }

    /// Whether it belongs to the system.
    pub fn is_system(&self) -> bool {
        self.0.starts_with('$')
    }

    /// Whether changes of it are sent after 20 ms rather than 500: grants and interest.
    pub fn is_urgent(&self) -> bool {
        self.0.starts_with(GRANT_PREFIX) || self.0.starts_with(INTEREST_PREFIX)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for StateKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// An entry of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// Its key.
    pub key: StateKey,
    /// Version of the head that it was last changed by.
    pub version: Hlc,
    /// Its value, at most 64 KiB.
    pub value: Vec<u8>,
}

impl StateEntry {
    /// Hash of the entry, from which [`state_root`] is computed.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("hyphae state entry v1");
        let key_len = u64::try_from(self.key.0.len()).unwrap_or(u64::MAX);
        hasher.update(&key_len.to_le_bytes());
        hasher.update(self.key.0.as_bytes());
        hasher.update(&self.version.0.to_le_bytes());
        hasher.update(&self.value);
        hasher.finalize().into()
    }

    /// Bytes that it counts with.
    pub fn cost(&self) -> usize {
        self.key.0.len() + self.value.len() + 32
    }
}

/// Root hash of a state: over the hashes of its entries, in the order of their keys.
pub fn state_root<'a>(hashes: impl IntoIterator<Item = &'a [u8; 32]>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("hyphae state root v1");
    for hash in hashes {
        hasher.update(hash);
    }
    hasher.finalize().into()
}

impl Format for StateEntry {
    const LEN_MAX: usize = KEY_LEN_MAX + VALUE_LEN_MAX + 32;

    fn write(&self, writer: &mut Writer) {
        writer.bytes(1, self.key.0.as_bytes());
        writer.number(2, self.version.0);
        writer.non_empty(3, &self.value);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let value = reader.non_empty(3)?;
        if value.len() > VALUE_LEN_MAX {
            return Err(FormatError::Value(3));
        }
        let entry = Self {
            key: StateKey::new(&reader.text(1, KEY_LEN_MAX)?).ok_or(FormatError::Value(1))?,
            version: Hlc(reader.number(2)?),
            value: value.to_vec(),
        };
        // The hash of an entry covers these fields only; others would be unsigned.
        match reader.unknown().fields().next() {
            Some((tag, _)) => Err(FormatError::Value(tag)),
            None => Ok(entry),
        }
    }
}

/// Head of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateHead {
    /// The realm.
    pub realm: RealmId,
    /// The member, which signs it.
    pub owner: PublicKey,
    /// Its version.
    pub version: Hlc,
    /// [`state_root`] of its entries.
    pub root: [u8; 32],
    /// The member has left the realm; the head is retained until its grant expires.
    pub left: bool,
    /// Fields of newer versions of the format.
    pub unknown: Unknown,
}

impl Format for StateHead {
    const LEN_MAX: usize = 512;

    fn write(&self, writer: &mut Writer) {
        writer.bytes(1, &self.realm.0);
        writer.bytes(2, &self.owner.0);
        writer.number(3, self.version.0);
        writer.bytes(4, &self.root);
        writer.flag(5, self.left);
        writer.unknown(&self.unknown);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            realm: RealmId(reader.array(1)?),
            owner: PublicKey(reader.array(2)?),
            version: Hlc(reader.number(3)?),
            root: reader.array(4)?,
            left: reader.flag(5)?,
            unknown: reader.unknown(),
        })
    }
}

impl Signable for StateHead {
    const CONTEXT: &'static str = "hyphae state head v1";

    fn signer(&self) -> PublicKey {
        self.owner
    }
}

/// What turns a state of version `base` or later into that of `head`. With base zero it is the whole state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDelta {
    /// The new head.
    pub head: Signed<StateHead>,
    /// The oldest version that it applies to.
    pub base: Hlc,
    /// Entries changed since then, by key.
    pub entries: Vec<StateEntry>,
    /// Keys removed since then, in order.
    pub removed: Vec<StateKey>,
}

impl Format for StateDelta {
    const LEN_MAX: usize = STATE_LEN_MAX + (256 << 10);

    fn write(&self, writer: &mut Writer) {
        writer.bytes(1, &self.head.encode());
        writer.number(2, self.base.0);
        writer.list(3, self.entries.iter().map(Format::encode));
        writer.list(4, self.removed.iter().map(|key| key.0.as_bytes()));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        const COUNT: usize = KEYS_MAX + SYSTEM_KEYS_MAX;
        let entries = reader.list(3, COUNT)?;
        let removed = reader.list(4, COUNT)?;
        let key = |bytes: &&[u8]| str::from_utf8(bytes).ok().and_then(StateKey::new);
        let delta = Self {
            head: Signed::decode(reader.bytes(1)?)?,
            base: Hlc(reader.number(2)?),
            entries: entries
                .into_iter()
                .map(StateEntry::decode)
                .collect::<Result<_, _>>()?,
            removed: removed
                .iter()
                .map(key)
                .collect::<Option<_>>()
                .ok_or(FormatError::Value(4))?,
        };
        let ascending = delta
            .entries
            .windows(2)
            .all(|pair| pair[0].key < pair[1].key);
        if !ascending {
            return Err(FormatError::Value(3));
        }
        match reader.unknown().fields().next() {
            Some((tag, _)) => Err(FormatError::Value(tag)),
            None => Ok(delta),
        }
    }
}

#[cfg(test)]
mod tests {
    use hyphae_wire::SecretKey;

    use super::*;

    fn entry(key: &str, value: &[u8]) -> StateEntry {
        StateEntry {
            key: StateKey::new(key).expect("a key"),
            version: Hlc(7),
            value: value.to_vec(),
        }
    }

    #[test]
    fn the_root_depends_on_each_part_of_each_entry() {
        let root = |entries: &[StateEntry]| {
            let hashes: Vec<_> = entries.iter().map(StateEntry::hash).collect();
            state_root(&hashes)
        };
        let base = root(&[entry("a", b"x"), entry("b", b"y")]);
        let newer = StateEntry {
            version: Hlc(8),
            ..entry("a", b"x")
        };
        for other in [
            &[entry("a", b"x")][..],
            &[entry("ab", b"x"), entry("b", b"y")],
            &[entry("a", b"xb"), entry("b", b"y")],
            &[newer, entry("b", b"y")],
        ] {
            assert_ne!(root(other), base);
        }
    }

    #[test]
    fn a_delta_survives_and_has_ascending_entries() {
        let key = SecretKey::from_bytes(&[1; 32]).expect("a key");
        let head = StateHead {
            realm: RealmId([1; 16]),
            owner: key.public_key(),
            version: Hlc(9),
            root: [2; 32],
            left: true,
            unknown: Unknown::default(),
        };
        let mut delta = StateDelta {
            head: Signed::sign(head, &key, &[0; 64]),
            base: Hlc(3),
            entries: vec![entry("a", b""), entry("b", b"y")],
            removed: vec![StateKey::grant(GrantId([3; 16]))],
        };
        assert_eq!(StateDelta::decode(&delta.encode()), Ok(delta.clone()));
        delta.entries.reverse();
        assert_eq!(
            StateDelta::decode(&delta.encode()),
            Err(FormatError::Value(3))
        );
    }

    #[test]
    fn keys_are_validated() {
        let long = "k".repeat(256);
        for bad in ["", "a\0", &long] {
            assert_eq!(StateKey::new(bad), None);
        }
        let grant = StateKey::grant(GrantId([0; 16]));
        assert!(grant.is_system() && grant.is_urgent());
        assert!(!StateKey::new("a/$b").is_some_and(|key| key.is_system()));
    }
}
