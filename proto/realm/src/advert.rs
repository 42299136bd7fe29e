//! Adverts: what a member offers, the value of the state key [`crate::state::ADVERT`].
//!
//! `extra` and `other` are JSON text that nodes pass on as it is, so that what they do not know comes out as it went
//! in. The load is a key of its own ([`crate::state::LOAD`]), since it changes all the time.

use crate::codec::{Format, FormatError, Reader, Unknown, Writer};
use crate::state::VALUE_LEN_MAX;

/// Tags, roles or areas of expertise of an advert.
pub const LABELS_MAX: usize = 64;
/// Bytes of one of them.
pub const LABEL_LEN_MAX: usize = 128;

/// An advert.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advert {
    /// Tags.
    pub tags: Vec<String>,
    /// Version of the application.
    pub app_version: String,
    /// Connections that the member accepts.
    pub max_connections: u32,
    /// Roles.
    pub roles: Vec<String>,
    /// Areas of expertise.
    pub expertise: Vec<String>,
    /// JSON object `extra`, as text; empty when it was missing.
    pub extra: String,
    /// JSON object of members that this version does not know, as text; empty for none.
    pub other: String,
    /// Fields of newer versions of the format.
    pub unknown: Unknown,
}

impl Format for Advert {
    const LEN_MAX: usize = VALUE_LEN_MAX;

    fn write(&self, writer: &mut Writer) {
        writer.list(1, &self.tags);
        writer.non_empty(2, self.app_version.as_bytes());
        writer.number(3, self.max_connections.into());
        writer.list(4, &self.roles);
        writer.list(5, &self.expertise);
        writer.non_empty(6, self.extra.as_bytes());
        writer.non_empty(7, self.other.as_bytes());
        writer.unknown(&self.unknown);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let labels = |reader: &mut Reader<'_>, tag| reader.texts(tag, LABELS_MAX, LABEL_LEN_MAX);
        let text = |reader: &mut Reader<'_>, tag| {
            let text = str::from_utf8(reader.non_empty(tag)?);
            Ok(text.map_err(|_| FormatError::Value(tag))?.to_owned())
        };
        Ok(Self {
            tags: labels(reader, 1)?,
            app_version: text(reader, 2)?,
            max_connections: reader.number32(3)?,
            roles: labels(reader, 4)?,
            expertise: labels(reader, 5)?,
            extra: text(reader, 6)?,
            other: text(reader, 7)?,
            unknown: reader.unknown(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advert_comes_out_as_it_went_in() {
        let advert = Advert {
            tags: vec!["gpu".to_owned(), String::new()],
            app_version: "1.2".to_owned(),
            max_connections: 7,
            roles: vec!["senior_developer".to_owned()],
            expertise: vec![],
            extra: r#"{"llms":[{"family":"x","mode":"chat"}],"asr":null}"#.to_owned(),
            other: r#"{"new":1}"#.to_owned(),
            unknown: Unknown::default(),
        };
        assert_eq!(Advert::decode(&advert.encode()), Ok(advert));
        assert_eq!(
            Advert::decode(&Advert::default().encode()),
            Ok(Advert::default())
        );
        let many = Advert {
            tags: vec![String::new(); LABELS_MAX + 1],
            ..Advert::default()
        };
        assert_eq!(Advert::decode(&many.encode()), Err(FormatError::Value(1)));
    }
}
