//! Parameters of calls: text is parsed into values of the control plane.

use std::borrow::Cow;
use std::net::Ipv6Addr;
use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::{Destination, Topic};
use hyphae_rpc::message::{Error, code};
use hyphae_rpc::{Base64, Call, method};
use hyphae_wire::{OverlayAddress, PublicKey};

/// Longest wait of a call.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Bytes that follow a request.
#[derive(Default)]
pub(crate) struct Attached {
    pub(crate) bytes: Bytes,
    /// Their BLAKE3 digest, if they are long.
    pub(crate) digest: Option<Box<[u8; 32]>>,
}

/// A decoded call, or its error.
pub(crate) struct Incoming {
    /// Name of the method, known or not.
    pub(crate) method: Cow<'static, str>,
    pub(crate) call: Result<Call, Error>,
    /// Attached bytes; `pushMessages` only.
    pub(crate) attached: Attached,
}

impl Incoming {
    /// Reads a call. Parameters are parsed only if `authorize` accepts the method: they are up to 1 MiB, and the
    /// thread is that of the engines.
    pub(crate) fn read(
        method: &str,
        params: &str,
        authorize: impl FnOnce(&str) -> Result<(), Error>,
    ) -> Self {
        match hyphae_rpc::find(method) {
            Some(method) => Self {
                method: method.name.into(),
                call: authorize(method.name).and_then(|()| Call::parse(method.id, params)),
                attached: Attached::default(),
            },
            None => {
                let message = format!("no method '{method}'; rpc.discover lists them");
                Self {
                    method: method.to_owned().into(),
                    call: Err(Error::new(code::METHOD_NOT_FOUND, message)),
                    attached: Attached::default(),
                }
            }
        }
    }

    /// Whether it may wait.
    pub(crate) fn may_wait(&self) -> bool {
        self.call.as_ref().is_ok_and(Call::may_wait)
    }

    /// Whether it delivers messages of the inbox.
    pub(crate) fn delivers(&self) -> bool {
        matches!(self.call, Ok(Call::PopMessage(_) | Call::PopMessages(_)))
    }
}

impl From<Call> for Incoming {
    fn from(call: Call) -> Self {
        Self {
            method: call.method().name.into(),
            call: Ok(call),
            attached: Attached::default(),
        }
    }
}

/// A wait in seconds, bounded by [`WAIT_MAX`].
pub(super) fn seconds(wait: u64) -> Duration {
    Duration::from_secs(wait).min(WAIT_MAX)
}

/// A public key, hex.
pub(super) fn public_key(text: &str) -> Result<PublicKey, Error> {
    let read = text.parse::<PublicKey>();
    read.map_err(|error| Error::new(code::BAD_KEY, error.to_string()))
}

/// An address of the overlay.
pub(super) fn overlay_address(text: &str) -> Result<OverlayAddress, Error> {
    let address = text.parse().map(|ip: Ipv6Addr| OverlayAddress::from(ip));
    address
        .ok()
        .filter(|address| address.is_overlay())
        .ok_or_else(|| {
            let message = format!("'{text}' is not an overlay address (400::/7)");
            Error::new(code::BAD_IP, message)
        })
}

/// A topic in base64.
pub(super) fn any_topic(text: &str, code: i64) -> Result<Topic, Error> {
    let bytes = Base64::decode(text).map_err(|e| Error::new(code, e.to_string()))?;
    Topic::new(bytes.0).map_err(|e| Error::new(code, e.to_string()))
}

/// Destination of a message.
pub(super) fn destination(given: &method::Destination) -> Result<Destination, Error> {
    match given {
        method::Destination::Ip(ip) => overlay_address(ip).map(Destination::Address),
        method::Destination::Pk(key) => public_key(key).map(Destination::Key),
    }
}
