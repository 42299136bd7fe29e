//! Cookies, reset tokens and handshake numbers, byte by byte.

#![allow(clippy::unwrap_used, reason = "a test")]

use hyphae_test_golden::load;
use hyphae_wire::guard::{self, SessionCookie, SessionReset};
use hyphae_wire::{Endpoint, FrameKind, OverlayAddress, SecretKey, SessionIndex};
use zerocopy::IntoBytes;

#[test]
fn tokens_and_numbers_of_a_node() {
    let cases = load("guard");
    let identity = SecretKey::from_bytes(&cases[0].bytes("identity")).unwrap();
    let secret = guard::node_secret(&identity);
    assert_eq!(secret, cases[0].array("node_secret"));
    let indices: Vec<_> = cases.iter().filter(|case| case.has("index")).collect();
    assert_eq!(indices.len(), 2);
    for case in indices {
        let raw: u32 = case.number("index");
        let index = SessionIndex(raw);
        let token = guard::link_token(&secret, index);
        assert_eq!(token, case.array("link_token"), "{}", case.at());
        let frame = guard::encode(FrameKind::StatelessReset, raw, &token);
        assert_eq!(frame[..], case.bytes("reset"), "{}", case.at());
        assert_eq!(guard::parse(&frame), Some((raw, token)), "{}", case.at());
        let reset = SessionReset::new(&secret, index);
        assert_eq!(reset.token, case.array("session_token"), "{}", case.at());
        assert_eq!(
            reset.as_bytes(),
            case.bytes("session_reset"),
            "{}",
            case.at()
        );
        let number = guard::number(&secret, raw);
        assert_eq!(number, case.number("number"), "{}", case.at());
        assert!(guard::number_is_ours(&secret, number));
    }
}

#[test]
fn cookies() {
    let cases = load("guard");
    let cookies: Vec<_> = cases.iter().filter(|case| case.has("cookie")).collect();
    assert_eq!(cookies.len(), 3);
    for case in cookies {
        let address: std::net::SocketAddr = case.parsed("address");
        let cookie = guard::cookie(&case.array("secret"), &Endpoint::from(address));
        assert_eq!(cookie, case.array("cookie"), "{}", case.at());
        let frame = guard::encode(FrameKind::CookieReply, case.number("sender"), &cookie);
        assert_eq!(frame[..], case.bytes("reply"), "{}", case.at());
    }
}

#[test]
fn session_cookies() {
    let cases = load("guard");
    let found = cases.iter().find(|case| case.has("session_cookie"));
    let case = found.unwrap();
    let source: std::net::Ipv6Addr = case.parsed("source");
    let source = OverlayAddress(source.octets());
    let (secret, number) = (case.array("secret"), case.number("sender"));
    let cookie = SessionCookie::new(&secret, number, source);
    assert_eq!(cookie.token, case.array("token"));
    assert_eq!(cookie.as_bytes(), case.bytes("session_cookie"));
}
