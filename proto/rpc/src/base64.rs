//! Bytes inside JSON: payloads and topics.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, Unexpected, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Bytes that are base64 (RFC 4648, standard alphabet, padded) in JSON.
///
/// ```
/// use hyphae_rpc::Base64;
///
/// assert_eq!(serde_json::to_string(&Base64::from("hello"))?, "\"aGVsbG8=\"");
/// assert_eq!(Base64::decode("aGVsbG8=")?, Base64::from("hello"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

/// Not base64.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not base64 (RFC 4648, standard alphabet, padded): {0}")]
pub struct InvalidBase64(String);

impl Base64 {
    /// Decodes base64 text.
    ///
    /// # Errors
    /// When the text is not base64.
    pub fn decode(text: &str) -> Result<Self, InvalidBase64> {
        STANDARD
            .decode(text)
            .map(Self)
            .map_err(|error| InvalidBase64(error.to_string()))
    }

    /// Encodes bytes as text.
    pub fn encode(bytes: impl AsRef<[u8]>) -> String {
        STANDARD.encode(bytes)
    }
}

impl<T: AsRef<[u8]>> From<T> for Base64 {
    fn from(bytes: T) -> Self {
        Self(bytes.as_ref().to_vec())
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Written unescaped: no character of base64 needs an escape, and a message has up to 90 million.
        let mut text = String::with_capacity(self.0.len().div_ceil(3) * 4 + 2);
        text.push('"');
        STANDARD.encode_string(&self.0, &mut text);
        text.push('"');
        let text = RawValue::from_string(text).map_err(S::Error::custom)?;
        text.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Base64;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("base64 text")
            }

            // Without an owned string: a message may have 64 MiB.
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Base64, E> {
                Base64::decode(text).map_err(E::custom)
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Base64, E> {
                Err(E::invalid_type(Unexpected::Bytes(bytes), &self))
            }
        }
        deserializer
            .deserialize_str(Text)
            .map_err(|error| D::Error::custom(error.to_string()))
    }
}

impl JsonSchema for Base64 {
    fn schema_name() -> Cow<'static, str> {
        "Base64".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Bytes as base64 (RFC 4648, standard alphabet, padded).",
            "type": "string",
            "contentEncoding": "base64",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_and_other_text_is_refused() {
        for bytes in [&b""[..], b"\0", b"hello", &[255; 300]] {
            let text = serde_json::to_string(&Base64::from(bytes)).unwrap();
            assert_eq!(serde_json::from_str::<Base64>(&text).unwrap().0, bytes);
        }
        for text in ["\"a\"", "\"aGk\"", "\"aG k=\"", "\"_-8=\"", "3", "null"] {
            assert!(serde_json::from_str::<Base64>(text).is_err(), "{text}");
        }
    }
}
