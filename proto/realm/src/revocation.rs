//! Revocations: objects of the collection [`COLLECTION`] whose id is that of the grant and whose writer is its issuer,
//! or an authority. They last as long as the grant could.

use crate::codec::{Format, FormatError, Reader, Unknown, Writer};
use crate::hlc::UnixMillis;

/// Collection of revocations. Its objects are named by writer and id, so nobody replaces those of another.
pub const COLLECTION: &str = "$revocations";
/// Bytes of a reason.
pub const REASON_LEN_MAX: usize = 256;

/// Value of the object that revokes a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Why, for those whose subscriptions end; at most 256 bytes.
    pub reason: String,
    /// When the grant would have expired: the revocation is forgotten then.
    pub expires: UnixMillis,
    /// Fields of newer versions of the format.
    pub unknown: Unknown,
}

impl Format for Revocation {
    const LEN_MAX: usize = 1024;

    fn write(&self, writer: &mut Writer) {
        writer.bytes(1, self.reason.as_bytes());
        writer.number(2, self.expires.0);
        writer.unknown(&self.unknown);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            reason: reader.text(1, REASON_LEN_MAX)?,
            expires: UnixMillis(reader.number(2)?),
            unknown: reader.unknown(),
        })
    }
}
