//! What people and files write.

use std::fmt::{Debug, Display};
use std::net::SocketAddr;
use std::str::FromStr;

use hyphae_wire::{Endpoint, Prefix, PublicKey, Suite};

/// Text of a prefix, a key, a suite or an endpoint; a key file.
pub fn text(data: &[u8]) {
    if let Ok(secret) = hyphae_wire::SecretKey::from_bytes(data) {
        assert_eq!(secret.as_bytes()[..], *data);
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    round_trip::<Prefix>(text);
    round_trip::<PublicKey>(text);
    round_trip::<Suite>(text);
    if let Ok(addr) = text.parse::<SocketAddr>() {
        let endpoint = Endpoint::from(addr);
        assert_eq!(Endpoint::from(endpoint.to_socket_addr()), endpoint);
    }
}

fn round_trip<T: FromStr<Err: Display> + Display + Debug + PartialEq>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => assert!(
            value
                .to_string()
                .parse()
                .is_ok_and(|again: T| again == value)
        ),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
