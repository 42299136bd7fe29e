//! Addresses, prefixes, keys and endpoints as text and as JSON, and key files.

use std::net::{Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::config;
use crate::address::{InvalidPrefix, OVERLAY_RANGE};
use crate::identity::{InvalidSecretKey, KEY_LEN};
use crate::{Endpoint, OverlayAddress, Prefix, PublicKey, SecretKey};

fn prefix() -> impl Strategy<Value = Prefix> {
    (any::<[u8; 16]>(), 0u8..=128).prop_map(|(ip, len)| Prefix::new(OverlayAddress(ip), len))
}

#[test]
fn key_text_is_exactly_64_hex_digits() {
    let text = "00".repeat(31) + "aF";
    let key: PublicKey = text.parse().unwrap();
    assert_eq!(key.0[31], 0xaf);
    assert_eq!(key.to_string(), text.to_lowercase());
    for bad in [
        "",
        "0",
        &text[1..],
        &(text.clone() + "0"),
        &text.replace("aF", "+1"),
        &text.replace("aF", "ä"),
    ] {
        let error = bad.parse::<PublicKey>().unwrap_err();
        assert!(error.to_string().contains("64 hex digits"), "{error}");
    }
}

#[test]
fn key_files_that_are_no_key_say_why() {
    for len in [0, 31, 33, 64] {
        let error = SecretKey::from_bytes(&vec![1; len]).unwrap_err();
        assert_eq!(error, InvalidSecretKey::Length(len));
        assert!(error.to_string().contains(&len.to_string()), "{error}");
    }
    assert_eq!(
        SecretKey::from_bytes(&[0; KEY_LEN]).unwrap_err(),
        InvalidSecretKey::Zero
    );
}

#[test]
fn new_keys_differ_and_are_never_printed() {
    let [a, b] = [(); 2].map(|()| SecretKey::generate().unwrap());
    assert_ne!(a.as_bytes(), b.as_bytes());
    assert_ne!(a.public_key(), b.public_key());
    assert_eq!(format!("{a:?}"), "SecretKey(..)");
    let again = SecretKey::from_bytes(a.as_bytes()).unwrap();
    assert_eq!(again.public_key(), a.public_key());
}

#[test]
fn host_bits_are_answered_with_the_prefix_that_was_meant() {
    let error = "400:1::1/64".parse::<Prefix>().unwrap_err();
    assert!(
        error.to_string().ends_with("did you mean 400:1::/64?"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn keys_are_their_text_and_their_json(bytes: [u8; 32]) {
        let key = PublicKey(bytes);
        prop_assert_eq!(key.to_string().parse(), Ok(key));
        prop_assert_eq!(key.to_string().to_uppercase().parse(), Ok(key));
        let json = serde_json::to_string(&key).unwrap();
        prop_assert_eq!(&json, &format!("\"{key}\""));
        prop_assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
    }

    #[test]
    fn addresses_of_keys_lie_in_the_overlay_and_own_their_subnet(bytes: [u8; 32]) {
        let address = PublicKey(bytes).address();
        prop_assert!(address.is_overlay() && OVERLAY_RANGE.contains(address));
        let subnet = address.subnet();
        prop_assert!(subnet.contains(address) && OVERLAY_RANGE.covers(subnet));
        prop_assert_eq!(subnet.len(), 64);
        prop_assert_eq!(subnet.address().subnet_id(), address.subnet_id());
    }

    #[test]
    fn being_overlay_is_being_in_the_range(ip: [u8; 16]) {
        let address = OverlayAddress(ip);
        prop_assert_eq!(address.is_overlay(), OVERLAY_RANGE.contains(address));
        prop_assert_eq!(OverlayAddress::from(address.ip()), address);
        let json = serde_json::to_string(&address).unwrap();
        prop_assert_eq!(serde_json::from_str::<OverlayAddress>(&json).unwrap(), address);
    }

    #[test]
    fn prefixes_are_their_text_and_their_json(prefix in prefix()) {
        prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        let json = serde_json::to_string(&prefix).unwrap();
        prop_assert_eq!(serde_json::from_str::<Prefix>(&json).unwrap(), prefix);
    }

    /// Against the plainest reading of a prefix: the first bits, one by one.
    #[test]
    fn containment_compares_the_first_bits(
        prefix in prefix(), ip: [u8; 16], near: bool, flip in 0u32..128,
    ) {
        let base = u128::from_be_bytes(prefix.address().0);
        let ip = if near { base ^ (1 << flip) } else { u128::from_be_bytes(ip) };
        let bit = |value: u128, at: u32| value >> (127 - at) & 1;
        let expected = (0..u32::from(prefix.len())).all(|at| bit(ip, at) == bit(base, at));
        prop_assert_eq!(prefix.contains(OverlayAddress(ip.to_be_bytes())), expected);
    }

    #[test]
    fn covering_is_containing_with_a_longer_length(
        a in prefix(), b in prefix(), shorter in 0u8..=128,
    ) {
        let outer = Prefix::new(a.address(), shorter.min(a.len()));
        prop_assert!(outer.covers(a));
        prop_assert_eq!(a.covers(outer), a == outer);
        prop_assert_eq!(a.covers(b), a.contains(b.address()) && a.len() <= b.len());
    }

    #[test]
    fn set_host_bits_are_refused(ip: [u8; 16], len in 0u8..128) {
        let prefix = Prefix::new(OverlayAddress(ip), len);
        let text = format!("{}/{len}", Ipv6Addr::from(u128::from_be_bytes(prefix.address().0) | 1));
        let expected = Err(InvalidPrefix::HostBits(text.clone(), prefix));
        prop_assert_eq!(text.parse::<Prefix>(), expected);
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC{0,70}") {
        let _ = (text.parse::<Prefix>(), text.parse::<PublicKey>(), text.parse::<crate::Suite>());
    }

    #[test]
    fn endpoints_are_their_text(ip: [u8; 16], v4: Option<[u8; 4]>, port: u16) {
        let addr = match v4 {
            Some(v4) => SocketAddr::from((v4, port)),
            None => SocketAddr::from((ip, port)),
        };
        let endpoint = Endpoint::from(addr);
        let text = endpoint.to_string();
        prop_assert_eq!(Endpoint::from(text.parse::<SocketAddr>().unwrap()), endpoint);
        prop_assert_eq!(Endpoint::from(endpoint.to_socket_addr()), endpoint);
        prop_assert_eq!(endpoint.with_port(1).to_socket_addr().port(), 1);
    }
}
