//! Credentials of callers: answers of sock_diag, /proc/net/tcp, token files.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hyphae_controlplane::parsers::{owner_in_answer, owner_in_table};
use hyphae_store::token::BearerToken;

const SERVER_PORT: u16 = 8990;
const CLIENT_PORT: u16 = 40_000;
const SEQUENCE: u32 = 7;

/// First byte: family and interface; the rest is the answer of sock_diag or the table.
pub fn caller(data: &[u8]) {
    let Some((&how, answer)) = data.split_first() else {
        return;
    };
    let ip = match how & 1 {
        0 => IpAddr::from(Ipv4Addr::LOCALHOST),
        _ => IpAddr::from(Ipv6Addr::LOCALHOST),
    };
    let (server, client) = (
        SocketAddr::new(ip, SERVER_PORT),
        SocketAddr::new(ip, CLIENT_PORT),
    );
    if how & 2 == 0 {
        if let Ok(uid) = owner_in_answer(answer, SEQUENCE, server, client) {
            check_answer(answer, uid);
        }
    } else if let Ok(uid) = owner_in_table(answer, server, client) {
        check_table(&String::from_utf8_lossy(answer), uid);
    }
}

/// Reads `struct inet_diag_msg` by its offsets: 16 bytes of header, then family, state, two bytes, ports, addresses.
fn check_answer(answer: &[u8], uid: u32) {
    let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|n| answer[16 + at + n]));
    assert_eq!(answer[8..12], SEQUENCE.to_ne_bytes());
    assert!([1, 4, 5].contains(&answer[17]), "an open socket");
    assert_eq!(answer[20..22], CLIENT_PORT.to_be_bytes());
    assert_eq!(answer[22..24], SERVER_PORT.to_be_bytes());
    assert_eq!(word(64), uid);
    assert_ne!(word(68), 0, "a socket without inode is closed");
    assert_ne!(uid, 65_534, "the overflow uid");
}

fn check_table(table: &str, uid: u32) {
    let found = table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is = |n: usize, value: u64| fields[n].parse() == Ok(value);
        fields.len() >= 10 && is(7, uid.into()) && !is(9, 0)
    });
    assert!(found, "uid {uid}");
    assert_ne!(uid, 65_534, "the overflow uid");
}

/// Text of a token file.
pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Some(token) = BearerToken::parse(text) else {
        return;
    };
    let text = text.trim();
    assert!((32..=512).contains(&text.len()) && !text.contains(char::is_whitespace));
    assert!(token.is_presented_in(&format!("bEARER  {text} ")));
    assert!(!token.is_presented_in(text));
    assert!(!token.is_presented_in(&format!("Bearer {}", &text[1..])));
}
