//! Descriptor of a realm, and the history by which its changes are verified.
//!
//! The id of a realm is a hash of the key of its *founder*, so a history proves itself: version 1 is signed by the
//! founder, its only authority; each later version by an authority of the version before it.

use hyphae_wire::PublicKey;

use crate::codec::{Format, FormatError, Reader, Unknown, Writer, put_varint, take_bytes};
use crate::signed::{Signable, Signed};
use crate::{RealmId, ids::ID_LEN};

/// Bytes of the name of a realm.
pub const NAME_LEN_MAX: usize = 64;
/// Authorities of a realm.
pub const AUTHORITIES_MAX: usize = 16;
/// Members of a realm, by default and at most.
pub const MEMBERS_DEFAULT: u32 = 1_000;
/// See [`MEMBERS_DEFAULT`].
pub const MEMBERS_MAX: u32 = 10_000;
/// Versions of a descriptor.
pub const VERSIONS_MAX: usize = 64;

/// Descriptor of a realm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm {
    /// Its id, [`realm_id`] of founder and salt.
    pub id: RealmId,
    /// Its name: 1 to 64 bytes, for humans; not unique.
    pub name: String,
    /// First authority.
    pub founder: PublicKey,
    /// Distinguishes realms of one founder.
    pub salt: [u8; 16],
    /// Keys that admit members and change the realm, ascending; at least one.
    pub authorities: Vec<PublicKey>,
    /// Members that are admitted; divides the memory of the directory.
    pub members_max: u32,
    /// Number of this version, from 1.
    pub version: u32,
    /// Authority that signs this version.
    pub signer: PublicKey,
    /// Fields of newer versions of the format.
    pub unknown: Unknown,
}

/// Id of the realm of a founder.
pub fn realm_id(founder: &PublicKey, salt: &[u8; 16]) -> RealmId {
    let mut hasher = blake3::Hasher::new_derive_key("hyphae realm id v1");
    hasher.update(&founder.0).update(salt);
    let mut id = [0; ID_LEN];
    hasher.finalize_xof().fill(&mut id);
    RealmId(id)
}

impl Realm {
    /// The first version of a realm.
    pub fn found(name: &str, founder: PublicKey, salt: [u8; 16]) -> Self {
        Self {
            id: realm_id(&founder, &salt),
            name: name.to_owned(),
            founder,
            salt,
            authorities: vec![founder],
            members_max: MEMBERS_DEFAULT,
            version: 1,
            signer: founder,
            unknown: Unknown::default(),
        }
    }

    /// Whether a key is an authority.
    pub fn is_authority(&self, key: &PublicKey) -> bool {
        self.authorities.binary_search(key).is_ok()
    }

    /// Whether a name is one of a realm: 1 to 64 bytes without control characters.
    pub fn is_name(name: &str) -> bool {
        (1..=NAME_LEN_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
    }
}

impl Format for Realm {
    const LEN_MAX: usize = 4096;

    fn write(&self, writer: &mut Writer) {
        writer.bytes(1, &self.id.0);
        writer.bytes(2, self.name.as_bytes());
        writer.bytes(3, &self.founder.0);
        writer.bytes(4, &self.salt);
        writer.list(5, self.authorities.iter().map(|key| key.0));
        writer.number(6, self.members_max.into());
        writer.number(7, self.version.into());
        writer.bytes(8, &self.signer.0);
        writer.unknown(&self.unknown);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let realm = Self {
            id: RealmId(reader.array(1)?),
            name: reader.text(2, NAME_LEN_MAX)?,
            founder: PublicKey(reader.array(3)?),
            salt: reader.array(4)?,
            authorities: keys(&reader.list(5, AUTHORITIES_MAX)?).ok_or(FormatError::Value(5))?,
            members_max: reader.number32(6)?,
            version: reader.number32(7)?,
            signer: PublicKey(reader.array(8)?),
            unknown: reader.unknown(),
        };
        let ascending = realm.authorities.windows(2).all(|pair| pair[0] < pair[1]);
        for (tag, valid) in [
            (1, realm.id == realm_id(&realm.founder, &realm.salt)),
            (2, Self::is_name(&realm.name)),
            (5, ascending && !realm.authorities.is_empty()),
            (6, (1..=MEMBERS_MAX).contains(&realm.members_max)),
            (7, realm.version > 0),
        ] {
            if !valid {
                return Err(FormatError::Value(tag));
            }
        }
        Ok(realm)
    }
}

fn keys(items: &[&[u8]]) -> Option<Vec<PublicKey>> {
    let key = |bytes: &&[u8]| Some(PublicKey((*bytes).try_into().ok()?));
    items.iter().map(key).collect()
}

impl Signable for Realm {
    const CONTEXT: &'static str = "hyphae realm v1";

    fn signer(&self) -> PublicKey {
        self.signer
    }
}

/// Why a history is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// It has no version, or more than [`VERSIONS_MAX`].
    #[error("a history has 1 to 64 versions")]
    Length,
    /// A version does not follow the one before it.
    #[error("version {0} does not follow the one before it")]
    Order(u32),
    /// A version is not signed by an authority of the one before it.
    #[error("version {0} is not signed by an authority of the one before it")]
    Signature(u32),
    /// It contradicts the history that is known.
    #[error(
        "version {0} differs from the known one: two authorities have changed the realm, or one key is stolen"
    )]
    Fork(u32),
}

/// All versions of a descriptor, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealmHistory(Vec<Signed<Realm>>);

impl RealmHistory {
    /// Bound of the encoding, bytes.
    pub const LEN_MAX: usize = VERSIONS_MAX * (Signed::<Realm>::LEN_MAX + 4);

    /// Verifies a history.
    ///
    /// # Errors
    /// When it does not prove itself.
    pub fn new(versions: Vec<Signed<Realm>>) -> Result<Self, HistoryError> {
        if versions.is_empty() || versions.len() > VERSIONS_MAX {
            return Err(HistoryError::Length);
        }
        for (n, signed) in versions.iter().enumerate() {
            let (realm, before) = (
                signed.value(),
                n.checked_sub(1).map(|n| versions[n].value()),
            );
            let follows = realm.version as usize == n + 1
                && match before {
                    Some(before) => before.id == realm.id,
                    None => realm.authorities == [realm.founder],
                };
            if !follows {
                return Err(HistoryError::Order(realm.version));
            }
            let entitled = before.unwrap_or(realm).is_authority(&realm.signer);
            if !entitled || signed.verify().is_err() {
                return Err(HistoryError::Signature(realm.version));
            }
        }
        Ok(Self(versions))
    }

    /// Replaces this history by a longer one.
    ///
    /// # Errors
    /// When `other` contradicts it. `Ok(false)` when `other` is not longer.
    pub fn extend(&mut self, other: Self) -> Result<bool, HistoryError> {
        let mut pairs = self.0.iter().zip(&other.0);
        if let Some((_, fork)) = pairs.find(|(mine, theirs)| mine != theirs) {
            return Err(HistoryError::Fork(fork.value().version));
        }
        let longer = other.0.len() > self.0.len();
        if longer {
            *self = other;
        }
        Ok(longer)
    }

    /// The current descriptor.
    ///
    /// # Panics
    /// Never: a history is not empty.
    pub fn current(&self) -> &Realm {
        self.0[self.0.len() - 1].value()
    }

    /// All versions.
    pub fn versions(&self) -> &[Signed<Realm>] {
        &self.0
    }

    /// Its encoding: a list of signed descriptors.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for version in &self.0 {
            let version = version.encode();
            put_varint(&mut bytes, version.len());
            bytes.extend_from_slice(&version);
        }
        bytes
    }

    /// Decodes the versions of a history; [`Self::new`] verifies them.
    ///
    /// # Errors
    /// When the bytes are not a list of at most [`VERSIONS_MAX`] signed descriptors.
    pub fn decode(mut bytes: &[u8]) -> Result<Vec<Signed<Realm>>, FormatError> {
        let mut versions = Vec::new();
        while !bytes.is_empty() {
            if versions.len() == VERSIONS_MAX {
                return Err(FormatError::TooManyFields);
            }
            versions.push(Signed::decode(take_bytes(&mut bytes)?)?);
        }
        Ok(versions)
    }
}

#[cfg(test)]
mod tests {
    use hyphae_wire::SecretKey;

    use super::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_bytes(&[seed; 32]).expect("a key")
    }

    fn first(founder: &SecretKey) -> Signed<Realm> {
        let realm = Realm::found("home", founder.public_key(), [5; 16]);
        Signed::sign(realm, founder, &[0; 64])
    }

    fn next(
        before: &Signed<Realm>,
        signer: &SecretKey,
        authorities: &[&SecretKey],
    ) -> Signed<Realm> {
        let mut realm = before.value().clone();
        realm.version += 1;
        realm.signer = signer.public_key();
        realm.authorities = authorities.iter().map(|key| key.public_key()).collect();
        realm.authorities.sort();
        Signed::sign(realm, signer, &[0; 64])
    }

    #[test]
    fn a_history_is_signed_by_authorities_of_the_version_before() {
        let (a, b, c) = (key(1), key(2), key(3));
        let v1 = first(&a);
        let v2 = next(&v1, &a, &[&a, &b]);
        let v3 = next(&v2, &b, &[&b]);
        let history = RealmHistory::new(vec![v1.clone(), v2.clone(), v3.clone()]).expect("valid");
        let decoded = RealmHistory::decode(&history.encode()).expect("decodes");
        assert_eq!(RealmHistory::new(decoded), Ok(history.clone()));
        assert_eq!(history.current().authorities, [b.public_key()]);
        // The first authority has been removed, and another key never was one.
        for signer in [&a, &c] {
            let v4 = next(&v3, signer, &[signer]);
            let versions = vec![v1.clone(), v2.clone(), v3.clone(), v4];
            assert_eq!(RealmHistory::new(versions), Err(HistoryError::Signature(4)));
        }
        let gap = vec![v1.clone(), v3.clone()];
        assert_eq!(RealmHistory::new(gap), Err(HistoryError::Order(3)));
        assert_eq!(RealmHistory::new(vec![]), Err(HistoryError::Length));
    }

    #[test]
    fn a_known_history_only_grows() {
        let (a, b) = (key(1), key(2));
        let v1 = first(&a);
        let v2 = next(&v1, &a, &[&a, &b]);
        let fork = next(&v1, &a, &[&b]);
        let short = RealmHistory::new(vec![v1.clone()]).expect("valid");
        let long = RealmHistory::new(vec![v1.clone(), v2]).expect("valid");
        let other = RealmHistory::new(vec![v1, fork]).expect("valid");
        let mut known = short.clone();
        assert_eq!(known.extend(long.clone()), Ok(true));
        assert_eq!(known.extend(short), Ok(false));
        assert_eq!(known.extend(other), Err(HistoryError::Fork(2)));
        assert_eq!(known, long);
    }

    #[test]
    fn the_id_of_a_realm_belongs_to_its_founder() {
        let (a, b) = (key(1), key(2));
        let mut realm = first(&a).into_value();
        realm.founder = b.public_key();
        assert_eq!(Realm::decode(&realm.encode()), Err(FormatError::Value(1)));
    }
}
