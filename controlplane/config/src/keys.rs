//! The table of all settings: type, unit, default, range, whether a reload applies it, description.
//!
//! It generates `deploy/default.toml`, docs/configuration.md and `hyphae config explain`, detects unknown keys, and
//! decides what a reload applies. Tests compare ranges, defaults and reload with the code that uses them.

use crate::key::key;
pub use crate::key::{Key, Kind};
use crate::peering::PEERS_MAX;

/// Sections in order, with their descriptions.
pub const SECTIONS: &[(&str, &str)] = &[
    ("", ""),
    ("log", ""),
    ("tun", ""),
    ("session", ""),
    (
        "network",
        "A private network: only nodes with the same name and key connect, on links and end to end. Without it \
         the node is in the public network. `hyphae key network FILE` generates a key; the file holds 32 bytes \
         as hex or base64 and must be readable by its owner only.",
    ),
    ("peering", ""),
    ("discovery", ""),
    ("stream", "Frames over TCP, for networks that block UDP."),
    ("routing", ""),
    ("inbox", ""),
    ("rpc", ""),
    ("admin", ""),
];

const ADDRESS: &str = "ADDRESS:PORT";
const ADDRESS_OR_OFF: &str = "ADDRESS:PORT, or \"off\"";
const KEYS: &str = "keys, each as text or as { key = \"KEY\", name = \"NAME\" }";
const RULES: &str = "tables of action, prefix, origin, neighbour";

/// Every setting, in the order of the file.
pub const KEYS_ALL: &[Key] = &[
    key(
        "listen",
        Kind::Text,
        "\"[::]:9670\"",
        "Underlay address of worker 0; worker 1 uses the next port, and so on. [::] serves IPv4 as well.",
    )
    .values(ADDRESS),
    key(
        "peers",
        Kind::List,
        "[]",
        "Peers to connect to: \"udp://HOST:PORT\" or, for TCP only, \"tcp://HOST:PORT\"; optionally \"#KEY\" to pin \
         the key of the peer.",
    )
    .values("\"udp://HOST:PORT\" or \"tcp://HOST:PORT\", each with or without \"#KEY\"")
    .live(),
    key(
        "routes",
        Kind::List,
        "[]",
        "Static routes, \"PREFIX=KEY\" or \"PREFIX=ADDRESS\": the next hop for PREFIX. They take precedence over \
         learned routes (section [routing]); overlay prefixes (400::/7) only.",
    )
    .values("\"PREFIX=KEY\" or \"PREFIX=ADDRESS\"")
    .live(),
    key(
        "cores",
        Kind::Text,
        "\"auto\"",
        "Cores of the workers, one each: \"auto\" uses all but the first, without pinning to cores on which other \
         processes have pinned threads; \"1-3,6\" uses these cores; \"any:2\" starts two unpinned workers.",
    )
    .values("\"auto\", a list such as \"1-3,6\", or \"any:N\""),
    key(
        "driver",
        Kind::Text,
        "\"auto\"",
        "\"auto\" uses io_uring where the kernel allows it, else epoll; \"uring\" and \"epoll\" require that driver.",
    )
    .values("\"auto\", \"uring\" or \"epoll\""),
    key(
        "mtu",
        Kind::Number,
        "1340",
        "MTU of the overlay, for packets of this host and for messages: the MTU of the links less 152 at most. Links of \
         1500 bytes carry 1340 over IPv6 and IPv4, links of 9000 bytes 8848. Smaller path MTUs are discovered.",
    )
    .unit("bytes")
    .range(1280, 9000),
    key(
        "poll_max_microseconds",
        Kind::Number,
        "0",
        "Longest time that an idle worker polls before it sleeps: saves wakeup latency, costs CPU time. It polls only \
         while that succeeds and no other thread needs the core. 0 disables polling.",
    )
    .unit("microseconds")
    .range(0, 1000),
    key(
        "underlay_mark",
        Kind::Number,
        "150",
        "Mark of the node's own UDP and TCP packets (fwmark, SO_MARK). Routes to gateways (routing.reach) exclude marked \
         packets, so that a prefix may contain the addresses of peers; packet filters can match it. 0 disables the mark: \
         then routes that contain the address of a peer are not installed.",
    )
    .range(0, 4_294_967_295),
    key(
        "suite",
        Kind::Text,
        "\"auto\"",
        "\"auto\" offers AES-256-GCM where the processor has it, and ChaCha20-Poly1305 always. Naming one \
         (\"aes-256-gcm\", \"chacha20-poly1305\") offers only that one.",
    )
    .values("\"auto\", \"aes-256-gcm\" or \"chacha20-poly1305\"")
    .live(),
    key(
        "metrics",
        Kind::Text,
        "\"127.0.0.1:9469\"",
        "Prometheus metrics over HTTP, at /metrics; \"off\" disables them.",
    )
    .values(ADDRESS_OR_OFF),
    key(
        "metrics_peers_max",
        Kind::Number,
        "0",
        "Number of peers with per-peer metrics (hyphae_peer_…): each costs six time series. The others are in the \
         sums only; hyphae_peers_left_out counts them.",
    )
    .unit("peers")
    .values("0 or more")
    .live(),
    key(
        "log_level",
        Kind::Text,
        "\"info\"",
        "error, warn, info, debug or trace, for all or by module, such as \"info,hyphae_overlay=debug\".",
    )
    .values("a level, or a filter by module")
    .live(),
    key(
        "log.format",
        Kind::Text,
        "\"text\"",
        "\"text\", or \"json\" with one object per line. In the journal, text has neither time nor level; the \
         level is the priority of the entry.",
    )
    .values("\"text\" or \"json\""),
    key(
        "tun.enabled",
        Kind::Switch,
        "true",
        "Create a TUN device and carry this host's traffic. A relay does not need it.",
    ),
    key("tun.name", Kind::Text, "\"hyphae0\"", "Name of the TUN device."),
    key(
        "session.rekey_after_seconds",
        Kind::Number,
        "120",
        "Age at which sessions are rekeyed, at most 120.",
    )
    .unit("seconds")
    .range(2, 120)
    .live(),
    key(
        "session.keepalive_seconds",
        Kind::Number,
        "5",
        "Time between probes of a link.",
    )
    .unit("seconds")
    .range(1, 60)
    .live(),
    key(
        "session.dead_after_seconds",
        Kind::Number,
        "15",
        "Silence after which a peer is down; at least twice the time between probes.",
    )
    .unit("seconds")
    .range(2, 600)
    .live(),
    key(
        "session.lost_after_ms",
        Kind::Number,
        "2500",
        "The same for a peer to which frames are being sent: a link under load fails over or goes down \
         sooner. Milliseconds, at least 1000.",
    )
    .unit("milliseconds")
    .range(1000, 600_000)
    .live(),
    key(
        "session.retry_max_seconds",
        Kind::Number,
        "30",
        "Longest time between attempts to connect to a peer that was never up. A peer that was up recently is tried \
         at least every 2 seconds.",
    )
    .unit("seconds")
    .range(2, 3600)
    .live(),
    key("network.name", Kind::Text, "", "Name of the private network, 1 to 64 bytes.").example("\"garden\""),
    key(
        "network.key_file",
        Kind::Text,
        "",
        "File of its key. A relative path is relative to this file.",
    )
    .values("a path")
    .example("\"garden.key\""),
    key(
        "peering.allow",
        Kind::List,
        "",
        "Only these keys may be peers, inbound and outbound; [] permits none. Without it all keys may. An entry is \
         a key, or { key = \"KEY\", name = \"attic relay\" }.",
    )
    .values(KEYS)
    .entries(&["key", "name"])
    .example("[]")
    .live(),
    key(
        "peering.deny",
        Kind::List,
        "[]",
        "These keys may not be peers; takes precedence over `allow`.",
    )
    .values(KEYS)
    .entries(&["key", "name"])
    .live(),
    key(
        "peering.peers_max",
        Kind::Number,
        "1024",
        "Largest number of peers, configured and inbound. Lowering it disconnects none.",
    )
    .unit("peers")
    .range(1, PEERS_MAX as u64)
    .live(),
    key(
        "peering.inbound_max",
        Kind::Number,
        "896",
        "Largest number of inbound peers; 0 permits configured peers only.",
    )
    .unit("peers")
    .range(0, PEERS_MAX as u64)
    .live(),
    key(
        "peering.inbound_per_source_max",
        Kind::Number,
        "64",
        "The same of one address (IPv6: one /64).",
    )
    .unit("peers")
    .range(1, PEERS_MAX as u64)
    .live(),
    key(
        "peering.handshakes_per_source_max",
        Kind::Number,
        "32",
        "Largest number of half-open handshakes of one address.",
    )
    .unit("handshakes")
    .range(1, 256)
    .live(),
    key(
        "discovery.mode",
        Kind::TextOrList,
        "\"all\"",
        "Discovery of nodes on local networks by IPv6 multicast: on \"all\" interfaces, \"none\", or a list such as \
         [\"eth0\", \"eth1\"]. Requires `listen` on [::].",
    )
    .values("\"all\", \"none\", or a list of interfaces"),
    key("discovery.port", Kind::Number, "9651", "UDP port of the beacons.").range(1, 65_535),
    key(
        "stream.listen",
        Kind::Switch,
        "true",
        "Accept stream links on the port number of worker 0.",
    ),
    key(
        "stream.fallback",
        Kind::Switch,
        "true",
        "Fall back to TCP (same host and port) for a udp:// peer that does not answer over UDP, and return to UDP \
         when it answers there.",
    )
    .live(),
    key(
        "stream.fallback_after_seconds",
        Kind::Number,
        "3",
        "Time without an answer over UDP after which TCP is tried.",
    )
    .unit("seconds")
    .range(0, 60)
    .live(),
    key(
        "stream.upgrade_seconds",
        Kind::Number,
        "60",
        "Time between attempts to return to UDP.",
    )
    .unit("seconds")
    .range(1, 3600)
    .live(),
    key(
        "routing.enabled",
        Kind::Switch,
        "true",
        "Run the routing protocol. false leaves static routes and the /64s of peers.",
    ),
    key(
        "routing.hello_milliseconds",
        Kind::Number,
        "1000",
        "Time between hellos on a link, 100 to 60000; increased automatically with 512 links or more. A neighbour is \
         lost after 2.7 times the interval that it advertises.",
    )
    .unit("milliseconds")
    .range(100, 60_000),
    key(
        "routing.next_hops_max",
        Kind::Number,
        "8",
        "Largest number of next hops of a route, among which its flows are distributed, 1 to 8.",
    )
    .range(1, 8),
    key(
        "routing.routes_max",
        Kind::Number,
        "200000",
        "Size of the table of prefixes; neighbours share a full table. Lowering it removes none.",
    )
    .unit("prefixes")
    .range(1, 10_000_000)
    .live(),
    key(
        "routing.announce",
        Kind::List,
        "[]",
        "Gateway: prefixes outside of the overlay that this node's host forwards to, such as \
         [\"fd12:3456::/48\"]; [\"2000::/3\"] for the internet. The host must forward packets \
         (net.ipv6.conf.all.forwarding = 1), and the networks behind it need a route back to 400::/7.",
    )
    .values("prefixes outside of 400::/7")
    .live(),
    key(
        "routing.reach",
        Kind::List,
        "[]",
        "Prefixes that this host reaches through gateways: a prefix within them that is announced is accepted, and \
         routed into the TUN device while its gateway is reachable. Prefixes outside of the overlay have no owner, so \
         any node may announce them: pin the key of the gateway in `import`, as below.",
    )
    .values("prefixes outside of 400::/7")
    .live(),
    key(
        "routing.import",
        Kind::List,
        "[]",
        "Filter of received announcements. The first matching rule decides. A rule has an action (\"accept\" or \
         \"refuse\") and optional conditions: `prefix` (all prefixes within it), `origin` (key of the announcing node), \
         `neighbour` (key of the neighbour that sends or receives it). The final rules of `import` are accept for \
         `reach`, accept for 400::/7, refuse for the rest. A relay forwards announcements of gateways only if `import` \
         accepts them. Exactly one gateway:\n  \
         import = [{ action = \"accept\", prefix = \"fd12:3456::/48\", origin = \"KEY\" },\n            \
         { action = \"refuse\", prefix = \"fd12:3456::/48\" }]",
    )
    .values(RULES)
    .entries(&["action", "prefix", "origin", "neighbour"])
    .live(),
    key(
        "routing.export",
        Kind::List,
        "[]",
        "Filter of announcements sent to neighbours, with rules of the same form; the final rule is accept. A node \
         with several peers that carries no transit traffic announces only itself:\n  \
         export = [{ action = \"accept\", origin = \"OWN KEY\" }, { action = \"refuse\" }]",
    )
    .values(RULES)
    .entries(&["action", "prefix", "origin", "neighbour"])
    .live(),
    key(
        "inbox.durable",
        Kind::Switch,
        "true",
        "Store messages on disk: an acknowledged message survives a kill and a loss of power. false stores them in \
         memory: faster, and lost with the process.",
    ),
    key(
        "inbox.messages_max",
        Kind::Number,
        "65536",
        "Largest number of messages in the inbox. At this limit or the next, messages are deferred: senders retry.",
    )
    .unit("messages")
    .values("1 or more"),
    key(
        "inbox.bytes_max",
        Kind::Number,
        "268435456",
        "Largest size of the inbox. A message of up to 64 MiB needs its size free.",
    )
    .unit("bytes")
    .values("0 or more"),
    key(
        "rpc.listen",
        Kind::Text,
        "\"127.0.0.1:8990\"",
        "JSON-RPC over HTTP, at /rpc, in addition to the Unix socket; \"off\" disables it. On loopback, root, the \
         node's user, allow_uids and holders of the token may call; on other addresses holders of the token only, so \
         token_file is required. `rpc = \"off\"` is short for `listen` here.",
    )
    .values(ADDRESS_OR_OFF),
    key(
        "rpc.rest",
        Kind::Text,
        "\"127.0.0.1:8989\"",
        "REST API of the Mycelium network, at /api/v1, for the same callers; off by default if `listen` is off.",
    )
    .values(ADDRESS_OR_OFF),
    key(
        "rpc.allow_uids",
        Kind::List,
        "[]",
        "Users that may call over rpc.sock and loopback, in addition to root and the node's user. With this or the \
         next set, all users may connect to rpc.sock and these lists decide. The overflow uid (65534) is never \
         admitted: it stands for all unmapped users of other user namespaces.",
    )
    .values("numbers of users"),
    key(
        "rpc.allow_gids",
        Kind::List,
        "[]",
        "Groups that may use rpc.sock, in addition to that of the socket file. Over TCP only users are known.",
    )
    .values("numbers of groups"),
    key(
        "rpc.token_file",
        Kind::Text,
        "",
        "File of a bearer token (32 to 512 visible characters, mode 0600), which authorises callers that send it as \
         `Authorization: Bearer TOKEN` over TCP. This HTTP is not encrypted: use a TLS proxy or the overlay. Read at \
         start. A relative path is relative to this file.",
    )
    .values("a path")
    .example("\"/etc/hyphae/rpc.token\""),
    key(
        "admin.bus_call",
        Kind::Switch,
        "true",
        "Enable admin.busCall, with which local programs administer other nodes over the bus.",
    ),
    key(
        "admin.socket_dirs",
        Kind::List,
        "[]",
        "Directories below which administrators over the bus, or with a bearer token, may configure sockets of topics; \
         empty permits none.",
    )
    .values("absolute paths"),
];

/// Finds a setting by its path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS_ALL.iter().find(|key| key.path == path)
}

/// Whether a section exists.
pub fn is_section(name: &str) -> bool {
    !name.is_empty() && SECTIONS.iter().any(|(section, _)| *section == name)
}

/// The path most similar to an unknown one, if any is similar.
pub fn nearest(written: &str) -> Option<&'static str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let name = last(written);
    let rank = |key: &&Key| {
        // A known name in another section ranks before another name in the same section.
        let elsewhere = 1 + distance(&name, key.name());
        distance(written, key.path).min(elsewhere)
    };
    let key = KEYS_ALL.iter().min_by_key(rank)?;
    (rank(&key) <= 3 && rank(&key) < written.len()).then_some(key.path)
}

/// The section most similar to an unknown one, if any is similar.
pub fn nearest_section(written: &str) -> Option<&'static str> {
    let names = SECTIONS.iter().map(|(name, _)| *name).skip(1);
    let near = names.min_by_key(|name| distance(written, name))?;
    (distance(written, near) <= 2).then_some(near)
}

/// Edit distance of two short names.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
