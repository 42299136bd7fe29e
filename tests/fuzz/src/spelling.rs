//! Spellings of endpoints and routes: flags, state files, RPC parameters, paths of REST.

use hyphae_config::endpoint::{PeerUrl, RouteSpec, parse_via, via_text};
use hyphae_controlplane::parsers::{numeric, spellings};

/// A peer, a route or a next hop.
pub fn spelling(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(peer) = text.parse::<PeerUrl>() {
        assert_ne!(peer.port, 0);
        assert!(!peer.host.contains(['[', ']', '/', '#']), "{peer:?}");
        let again = peer.to_string().parse::<PeerUrl>();
        assert_eq!(again.as_ref(), Ok(&peer), "a spelling is canonical");
        let rest = format!("QUIC://{}", text.split_once("://").map_or("", |(_, r)| r));
        let found = spellings(&rest).iter().any(|spelling| {
            let parsed = spelling.parse::<PeerUrl>();
            parsed.is_ok_and(|it| (&it.host, it.port, it.key) == (&peer.host, peer.port, peer.key))
        });
        assert!(found, "{rest}");
    }
    if let Ok(route) = text.parse::<RouteSpec>() {
        assert_eq!(route.to_string().parse::<RouteSpec>().as_ref(), Ok(&route));
    }
    if let Ok(via) = parse_via(text) {
        assert_eq!(parse_via(&via_text(via)).as_ref(), Ok(&via));
    }
    if let Some(address) = numeric(text) {
        assert_eq!(numeric(&address.to_string()), Some(address));
    }
}
