//! Objects of collections: whole values, signed one by one; the last writer wins.
//!
//! An object is named by collection and id. Of two with the same name the one with the later (HLC, writer) is in
//! force. An object without value is a *tombstone*, which is retained for 24 hours. Collections that begin with `$`
//! belong to the system; their objects are named by the writer too.

use std::time::Duration;

use hyphae_wire::PublicKey;

use crate::codec::{Format, FormatError, Reader, Unknown, Writer};
use crate::signed::Signable;
use crate::state::VALUE_LEN_MAX;
use crate::topic::TOPIC_LEN_MAX;
use crate::{Hlc, RealmId, TopicName};

/// How long a tombstone is retained.
pub const TOMBSTONE_LIFE: Duration = Duration::from_secs(86_400);
/// Bytes of the id of an object.
pub const OBJECT_ID_LEN_MAX: usize = 255;

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The realm.
    pub realm: RealmId,
    /// Its collection: a topic, on which its writer holds `publish`, or a name that begins with `$`.
    pub collection: TopicName,
    /// Its id in the collection: 1 to 255 bytes without control characters.
    pub id: String,
    /// When it was written.
    pub hlc: Hlc,
    /// Who wrote and signs it.
    pub writer: PublicKey,
    /// Its value, at most 64 KiB; `None` for a tombstone.
    pub value: Option<Vec<u8>>,
    /// Fields of newer versions of the format.
    pub unknown: Unknown,
}

impl Object {
    /// Whether a text is an id of objects.
    pub fn is_id(id: &str) -> bool {
        (1..=OBJECT_ID_LEN_MAX).contains(&id.len()) && !id.chars().any(char::is_control)
    }

    /// Whether its collection belongs to the system.
    pub fn is_system(&self) -> bool {
        self.collection.is_reserved()
    }

    /// Bytes that it counts with.
    pub fn cost(&self) -> usize {
        let value = self.value.as_ref().map_or(0, Vec::len);
        self.collection.as_str().len() + self.id.len() + value + 200
    }
}

impl Format for Object {
    const LEN_MAX: usize = VALUE_LEN_MAX + TOPIC_LEN_MAX + OBJECT_ID_LEN_MAX + 512;

    fn write(&self, writer: &mut Writer) {
        writer.bytes(1, &self.realm.0);
        writer.bytes(2, self.collection.as_str().as_bytes());
        writer.bytes(3, self.id.as_bytes());
        writer.number(4, self.hlc.0);
        writer.bytes(5, &self.writer.0);
        if let Some(value) = &self.value {
            writer.bytes(6, value);
        }
        writer.unknown(&self.unknown);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let collection = reader.text(2, TOPIC_LEN_MAX)?;
        let object = Self {
            realm: RealmId(reader.array(1)?),
            collection: TopicName::any(&collection).map_err(|_| FormatError::Value(2))?,
            id: reader.text(3, OBJECT_ID_LEN_MAX)?,
            hlc: Hlc(reader.number(4)?),
            writer: PublicKey(reader.array(5)?),
            value: reader.take(6).map(<[u8]>::to_vec),
            unknown: reader.unknown(),
        };
        if !Self::is_id(&object.id) {
            return Err(FormatError::Value(3));
        }
        if object
            .value
            .as_ref()
            .is_some_and(|value| value.len() > VALUE_LEN_MAX)
        {
            return Err(FormatError::Value(6));
        }
        Ok(object)
    }
}

impl Signable for Object {
    const CONTEXT: &'static str = "hyphae object v1";

    fn signer(&self) -> PublicKey {
        self.writer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_survive_with_fields_of_newer_versions() {
        let object = Object {
            realm: RealmId([1; 16]),
            collection: TopicName::any("prompts").expect("a topic"),
            id: "p1".to_owned(),
            hlc: Hlc(5),
            writer: PublicKey([2; 32]),
            value: None,
            unknown: Unknown::default(),
        };
        let mut bytes = object.encode();
        assert_eq!(Object::decode(&bytes), Ok(object.clone()));
        bytes.extend([40, 1, 9]);
        let newer = Object::decode(&bytes).expect("unknown fields are accepted");
        assert_eq!(newer.encode(), bytes);
        for (change, tag) in [
            ((|o| o.id = String::new()) as fn(&mut Object), 3),
            (|o| o.id = "a\u{7}".to_owned(), 3),
            (|o| o.value = Some(vec![0; VALUE_LEN_MAX + 1]), 6),
        ] {
            let mut bad = object.clone();
            change(&mut bad);
            assert_eq!(Object::decode(&bad.encode()), Err(FormatError::Value(tag)));
        }
    }
}
