//! Canonical binary encoding.
//!
//! ```text
//! value  = version u8 (1) field*
//! field  = tag varint, length varint, bytes        tags strictly ascending
//! number = little-endian bytes without trailing zeros; zero is empty
//! list   = (length varint, bytes)*
//! varint = LEB128, at most 4 bytes, of minimal length
//! ```
//!
//! A value has one encoding, so that hashes and signatures over it agree between implementations. Fields with unknown
//! tags are retained and encoded again: a node passes on what a newer one has added. A reader rejects other versions,
//! more than [`FIELDS_MAX`] fields, and values longer than the bound of their type.

/// Version of the encoding, the first byte of each value.
pub const VERSION: u8 = 1;
/// Fields of a value.
pub const FIELDS_MAX: usize = 64;
/// Largest value of a varint: 28 bits.
const VARINT_MAX: usize = (1 << 28) - 1;

/// Why bytes are not a value of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Longer than the bound of its type.
    #[error("{len} bytes exceed the limit of {max}")]
    TooLong {
        /// Its bytes.
        len: usize,
        /// Bound of the type.
        max: usize,
    },
    /// Encoded in another version.
    #[error("version {0} of the format is unknown")]
    Version(u8),
    /// Ends within a field.
    #[error("it is truncated")]
    Truncated,
    /// A varint is too long or not minimal, or tags do not ascend.
    #[error("it is not in its canonical form")]
    NotCanonical,
    /// More than [`FIELDS_MAX`] fields.
    #[error("it has too many fields")]
    TooManyFields,
    /// A required field is missing.
    #[error("field {0} is missing")]
    Missing(u32),
    /// A field has an invalid value.
    #[error("field {0} has an invalid value")]
    Value(u32),
}

/// Fields with tags that this version does not know, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown(Vec<(u32, Vec<u8>)>);

impl Unknown {
    /// Tags and bytes of the fields.
    pub fn fields(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.0.iter().map(|(tag, bytes)| (*tag, bytes.as_slice()))
    }
}

/// A type with a canonical encoding.
pub trait Format: Sized {
    /// Bound of the encoding, bytes.
    const LEN_MAX: usize;

    /// Writes its fields.
    fn write(&self, writer: &mut Writer);

    /// Reads its fields, and validates them.
    ///
    /// # Errors
    /// When a field is missing or invalid.
    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError>;

    /// Its encoding.
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        self.write(&mut writer);
        writer.finish()
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// When the bytes are not the canonical encoding of a valid value.
    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (len, max) = (bytes.len(), Self::LEN_MAX);
        if len > max {
            return Err(FormatError::TooLong { len, max });
        }
        let mut reader = Reader::new(bytes)?;
        Self::read(&mut reader)
    }
}

/// Collects the fields of a value.
#[derive(Debug, Default)]
pub struct Writer {
    fields: Vec<(u32, Vec<u8>)>,
}

impl Writer {
    /// Adds a field of bytes.
    pub fn bytes(&mut self, tag: u32, bytes: &[u8]) {
        self.fields.push((tag, bytes.to_vec()));
    }

    /// Adds a field of bytes, unless there are none: such a field is read as empty.
    pub fn non_empty(&mut self, tag: u32, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.bytes(tag, bytes);
        }
    }

    /// Adds a number.
    pub fn number(&mut self, tag: u32, number: u64) {
        let len = 8 - number.leading_zeros() as usize / 8;
        self.bytes(tag, &number.to_le_bytes()[..len]);
    }

    /// Adds a flag, if it is set.
    pub fn flag(&mut self, tag: u32, set: bool) {
        if set {
            self.bytes(tag, &[]);
        }
    }

    /// Adds a list, unless it is empty.
    pub fn list<B: AsRef<[u8]>>(&mut self, tag: u32, items: impl IntoIterator<Item = B>) {
        let mut bytes = Vec::new();
        for item in items {
            put_varint(&mut bytes, item.as_ref().len());
            bytes.extend_from_slice(item.as_ref());
        }
        self.non_empty(tag, &bytes);
    }

    /// Adds retained fields.
    pub fn unknown(&mut self, unknown: &Unknown) {
        self.fields.extend(unknown.0.iter().cloned());
    }

    /// The encoding.
    fn finish(mut self) -> Vec<u8> {
        self.fields.sort_by_key(|(tag, _)| *tag);
        let mut out = vec![VERSION];
        for (tag, bytes) in &self.fields {
            put_varint(&mut out, *tag as usize);
            put_varint(&mut out, bytes.len());
            out.extend_from_slice(bytes);
        }
        out
    }
}

/// Fields of a value that are not read yet.
#[derive(Debug)]
pub struct Reader<'a> {
    fields: Vec<(u32, &'a [u8])>,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let (&version, mut rest) = bytes.split_first().ok_or(FormatError::Truncated)?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let mut fields: Vec<(u32, &[u8])> = Vec::new();
        while !rest.is_empty() {
            let tag = take_varint(&mut rest)?;
            let tag = u32::try_from(tag).map_err(|_| FormatError::NotCanonical)?;
            let bytes = take_bytes(&mut rest)?;
            if fields.last().is_some_and(|(last, _)| *last >= tag) {
                return Err(FormatError::NotCanonical);
            }
            if fields.len() == FIELDS_MAX {
                return Err(FormatError::TooManyFields);
            }
            fields.push((tag, bytes));
        }
        Ok(Self { fields })
    }

    /// A field of bytes, if it is present.
    pub fn take(&mut self, tag: u32) -> Option<&'a [u8]> {
        let at = self.fields.iter().position(|(found, _)| *found == tag)?;
        Some(self.fields.remove(at).1)
    }

    /// A required field of bytes.
    ///
    /// # Errors
    /// When it is missing.
    pub fn bytes(&mut self, tag: u32) -> Result<&'a [u8], FormatError> {
        self.take(tag).ok_or(FormatError::Missing(tag))
    }

    /// A field of bytes that is not encoded when it is empty.
    ///
    /// # Errors
    /// When it is encoded and empty.
    pub fn non_empty(&mut self, tag: u32) -> Result<&'a [u8], FormatError> {
        match self.take(tag) {
            Some([]) => Err(FormatError::NotCanonical),
            Some(bytes) => Ok(bytes),
            None => Ok(&[]),
        }
    }

    /// Exactly `N` bytes.
    ///
    /// # Errors
    /// When the field is missing or has another length.
    pub fn array<const N: usize>(&mut self, tag: u32) -> Result<[u8; N], FormatError> {
        let bytes = self.bytes(tag)?;
        bytes.try_into().map_err(|_| FormatError::Value(tag))
    }

    /// A number.
    ///
    /// # Errors
    /// When it is missing, longer than 8 bytes, or not minimal.
    pub fn number(&mut self, tag: u32) -> Result<u64, FormatError> {
        let bytes = self.bytes(tag)?;
        let mut number = [0; 8];
        let place = number
            .get_mut(..bytes.len())
            .ok_or(FormatError::Value(tag))?;
        place.copy_from_slice(bytes);
        if bytes.last() == Some(&0) {
            return Err(FormatError::NotCanonical);
        }
        Ok(u64::from_le_bytes(number))
    }

    /// A number of 32 bits.
    ///
    /// # Errors
    /// As [`Self::number`], and when it is larger.
    pub fn number32(&mut self, tag: u32) -> Result<u32, FormatError> {
        let number = self.number(tag)?;
        u32::try_from(number).map_err(|_| FormatError::Value(tag))
    }

    /// A flag.
    ///
    /// # Errors
    /// When it has content.
    pub fn flag(&mut self, tag: u32) -> Result<bool, FormatError> {
        match self.take(tag) {
            Some([]) => Ok(true),
            Some(_) => Err(FormatError::NotCanonical),
            None => Ok(false),
        }
    }

    /// Text.
    ///
    /// # Errors
    /// When it is missing, longer than `len_max` bytes, or not UTF-8.
    pub fn text(&mut self, tag: u32, len_max: usize) -> Result<String, FormatError> {
        text(self.bytes(tag)?, len_max).ok_or(FormatError::Value(tag))
    }

    /// A list of at most `count_max` items; empty when the field is missing.
    ///
    /// # Errors
    /// When it is longer or malformed.
    pub fn list(&mut self, tag: u32, count_max: usize) -> Result<Vec<&'a [u8]>, FormatError> {
        let mut rest = self.non_empty(tag)?;
        let mut items = Vec::new();
        while !rest.is_empty() {
            if items.len() == count_max {
                return Err(FormatError::Value(tag));
            }
            items.push(take_bytes(&mut rest)?);
        }
        Ok(items)
    }

    /// A list of texts.
    ///
    /// # Errors
    /// As [`Self::list`] and [`Self::text`].
    pub fn texts(
        &mut self,
        tag: u32,
        count_max: usize,
        len_max: usize,
    ) -> Result<Vec<String>, FormatError> {
        let items = self.list(tag, count_max)?.into_iter();
        items
            .map(|item| text(item, len_max).ok_or(FormatError::Value(tag)))
            .collect()
    }

    /// The fields that were not read. Call it last.
    pub fn unknown(&mut self) -> Unknown {
        let fields = self.fields.drain(..);
        Unknown(fields.map(|(tag, bytes)| (tag, bytes.to_vec())).collect())
    }
}

fn text(bytes: &[u8], len_max: usize) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (text.len() <= len_max).then(|| text.to_owned())
}

/// Appends a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    assert!(value <= VARINT_MAX, "lengths are bounded");
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// Reads a varint.
pub(crate) fn take_varint(rest: &mut &[u8]) -> Result<usize, FormatError> {
    let mut value = 0;
    for shift in [0, 7, 14, 21] {
        let (&byte, after) = rest.split_first().ok_or(FormatError::Truncated)?;
        *rest = after;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return if byte == 0 && shift > 0 {
                Err(FormatError::NotCanonical)
            } else {
                Ok(value)
            };
        }
    }
    Err(FormatError::NotCanonical)
}

/// Reads bytes with their length. Allocates nothing.
pub(crate) fn take_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], FormatError> {
    let len = take_varint(rest)?;
    let (bytes, after) = rest.split_at_checked(len).ok_or(FormatError::Truncated)?;
    *rest = after;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Sample {
        number: u64,
        flag: bool,
        list: Vec<String>,
        unknown: Unknown,
    }

    impl Format for Sample {
        const LEN_MAX: usize = 100;

        fn write(&self, writer: &mut Writer) {
            writer.number(1, self.number);
            writer.flag(3, self.flag);
            writer.list(5, &self.list);
            writer.unknown(&self.unknown);
        }

        fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
            Ok(Self {
                number: reader.number(1)?,
                flag: reader.flag(3)?,
                list: reader.texts(5, 3, 10)?,
                unknown: reader.unknown(),
            })
        }
    }

    #[test]
    fn unknown_fields_are_encoded_again_in_place() {
        let bytes = [1, 0, 1, 9, 1, 1, 7, 2, 0, 5, 2, 1, b'a', 200, 1, 0];
        let sample = Sample::decode(&bytes).expect("it is canonical");
        assert_eq!((sample.number, &*sample.list), (7, &["a".to_owned()][..]));
        let tags: Vec<u32> = sample.unknown.fields().map(|(tag, _)| tag).collect();
        assert_eq!(tags, [0, 2, 200]);
        assert_eq!(sample.encode(), bytes);
    }

    #[test]
    fn other_forms_of_a_value_are_rejected() {
        for (bytes, error) in [
            (&[][..], FormatError::Truncated),
            (&[2, 1, 0], FormatError::Version(2)),
            (&[1], FormatError::Missing(1)),
            (&[1, 1, 2, 7], FormatError::Truncated),
            (&[1, 1, 2, 7, 0], FormatError::NotCanonical),
            (&[1, 0x81, 0, 1, 7], FormatError::NotCanonical),
            (&[1, 1, 1, 7, 1, 1, 7], FormatError::NotCanonical),
            (&[1, 3, 0, 1, 1, 7], FormatError::NotCanonical),
            (&[1, 1, 1, 7, 3, 1, 1], FormatError::NotCanonical),
            (&[1, 1, 1, 7, 5, 0], FormatError::NotCanonical),
            (&[1, 1, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1], FormatError::Value(1)),
            (&[1, 1, 1, 7, 5, 4, 0, 0, 0, 0], FormatError::Value(5)),
            (&[1, 1, 1, 7, 5, 2, 1, 0xff], FormatError::Value(5)),
            (
                &[1, 1, 0xff, 0xff, 0xff, 0xff, 1],
                FormatError::NotCanonical,
            ),
        ] {
            assert_eq!(Sample::decode(bytes), Err(error), "{bytes:?}");
        }
        let long = [0; 101];
        let (len, max) = (101, 100);
        assert_eq!(
            Sample::decode(&long),
            Err(FormatError::TooLong { len, max })
        );
    }

    proptest! {
        #[test]
        fn values_survive_and_have_one_encoding(number: u64, flag: bool, list in prop::collection::vec("[a-z]{0,10}", 0..4)) {
            let sample = Sample { number, flag, list, unknown: Unknown::default() };
            prop_assert_eq!(Sample::decode(&sample.encode()), Ok(sample));
        }

        #[test]
        fn whatever_is_accepted_is_canonical(bytes in prop::collection::vec(0u8..8, 0..40)) {
            let bytes = [&[VERSION][..], &bytes].concat();
            if let Ok(sample) = Sample::decode(&bytes) {
                prop_assert_eq!(sample.encode(), bytes);
            }
        }
    }
}
