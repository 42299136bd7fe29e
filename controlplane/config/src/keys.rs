//! The table of all settings: type, unit, default, range, whether a reload is enough, what it does.
//!
//! `deploy/default.toml` and docs/configuration.md are made of it, `hyphae config explain` shows it,
//! unknown keys are told by it, and a reload takes from a new file what it says can change live. Tests
//! hold ranges, defaults and the reload against the code that uses them.

use crate::peering::PEERS_MAX;

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// true or false.
    Switch,
    /// A whole number.
    Number,
    /// A list.
    List,
    /// A string, or a list of strings.
    TextOrList,
}

impl Kind {
    /// Its name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Switch => "true or false",
            Self::Number => "whole number",
            Self::List => "list",
            Self::TextOrList => "text or list",
        }
    }
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Section and name, such as `session.keepalive_seconds`.
    pub path: &'static str,
    /// What a value looks like.
    pub kind: Kind,
    /// Unit of a number; empty for none.
    pub unit: &'static str,
    /// Default as TOML; empty where there is none.
    pub default: &'static str,
    /// Value to show where there is no default, as TOML.
    pub example: &'static str,
    /// Smallest and largest number.
    pub range: Option<(u64, u64)>,
    /// What a value may be, where that is not a range of numbers; empty where the kind says it.
    pub values: &'static str,
    /// Keys that a table in the list may have; empty where it holds none.
    pub entries: &'static [&'static str],
    /// Whether `hyphae reload` is enough; else the node has to be restarted.
    pub live: bool,
    /// What it does. A line that begins with two spaces is an example and stays as it is.
    pub help: &'static str,
}

const fn key(path: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Key {
    Key {
        path,
        kind,
        unit: "",
        default,
        example: "",
        range: None,
        values: "",
        entries: &[],
        live: false,
        help,
    }
}

impl Key {
    const fn live(mut self) -> Self {
        self.live = true;
        self
    }

    const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    const fn range(mut self, low: u64, high: u64) -> Self {
        self.range = Some((low, high));
        self
    }

    const fn values(mut self, values: &'static str) -> Self {
        self.values = values;
        self
    }

    const fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }

    const fn entries(mut self, entries: &'static [&'static str]) -> Self {
        self.entries = entries;
        self
    }

    /// Name of its section; empty for a key outside of any.
    pub fn section(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or("", |(section, _)| section)
    }

    /// Its name within the section.
    pub fn name(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or(self.path, |(_, name)| name)
    }

    /// What a value may be, for people.
    pub fn allowed(&self) -> String {
        match self.range {
            Some((low, high)) => format!("{low} to {high}"),
            None if self.values.is_empty() => self.kind.name().to_owned(),
            None => self.values.to_owned(),
        }
    }
}

/// Sections in their order, and what each is about.
pub const SECTIONS: &[(&str, &str)] = &[
    ("", ""),
    ("log", ""),
    ("tun", ""),
    ("session", ""),
    (
        "network",
        "A private network: only nodes with the same name and key connect, on links and end to end. Without it \
         the node is in the public network. `hyphae key network FILE` makes a key; the file holds 32 bytes as \
         hex or base64 and must be readable by its owner only.",
    ),
    ("peering", ""),
    ("discovery", ""),
    (
        "stream",
        "Frames over TCP, for networks that let no UDP pass.",
    ),
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
        "Underlay address of worker 0; worker 1 takes the next port, and so on. [::] serves IPv4 as well.",
    )
    .values(ADDRESS),
    key(
        "peers",
        Kind::List,
        "[]",
        "Peers to keep connecting to: \"udp://HOST:PORT\" or, for TCP only, \"tcp://HOST:PORT\"; optionally \
         \"#KEY\" to accept only that key there.",
    )
    .values("\"udp://HOST:PORT\" or \"tcp://HOST:PORT\", each with or without \"#KEY\"")
    .live(),
    key(
        "routes",
        Kind::List,
        "[]",
        "Static routes, \"PREFIX=KEY\" or \"PREFIX=ADDRESS\": where frames for PREFIX go next. They win over \
         what the routing protocol finds (section [routing]); only overlay prefixes (400::/7) can have them.",
    )
    .values("\"PREFIX=KEY\" or \"PREFIX=ADDRESS\"")
    .live(),
    key(
        "cores",
        Kind::Text,
        "\"auto\"",
        "Cores of the workers, one each: \"auto\" takes all but the first, and does not pin a worker to a core that \
         another process has threads pinned to; \"1-3,6\" takes these, \"any:2\" two workers that are not pinned.",
    )
    .values("\"auto\", a list such as \"1-3,6\", or \"any:N\""),
    key(
        "driver",
        Kind::Text,
        "\"auto\"",
        "\"auto\" takes io_uring where the kernel allows it and epoll elsewhere; \"uring\" and \"epoll\" insist.",
    )
    .values("\"auto\", \"uring\" or \"epoll\""),
    key(
        "mtu",
        Kind::Number,
        "1340",
        "Largest packet of the overlay, of this host and of messages. A link of MTU 1500 carries 1340 bytes over IPv6 \
         and IPv4; where all links carry more, it may be that less 152: 8848 where frames are 9000 bytes. A way that \
         carries less is found out.",
    )
    .unit("bytes")
    .range(1280, 9000),
    key(
        "poll_max_microseconds",
        Kind::Number,
        "0",
        "How long a worker without work looks for some before it sleeps: saves the time of waking up, costs CPU time. \
         It looks only as long as that pays off and nobody else wants the core. 0 is not at all.",
    )
    .unit("microseconds")
    .range(0, 1000),
    key(
        "underlay_mark",
        Kind::Number,
        "150",
        "Mark of the node's own UDP and TCP packets (fwmark, SO_MARK). Routes to gateways (routing.reach) leave marked packets \
         alone, so that a prefix may hold the addresses of peers; packet filters can tell by it, too. 0 is none: then routes \
         that hold the address of a peer are left out.",
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
        "Prometheus metrics over HTTP, at /metrics; \"off\" switches them off.",
    )
    .values(ADDRESS_OR_OFF),
    key(
        "metrics_peers_max",
        Kind::Number,
        "0",
        "How many peers have metrics of their own (hyphae_peer_…): each costs six time series. The others are \
         part of the sums only, and hyphae_peers_left_out says how many they are.",
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
        "\"text\" for people, \"json\" for programs: one object in each line. Where standard error is the \
         journal, text has neither time nor level, and the journal gets the level as a priority.",
    )
    .values("\"text\" or \"json\""),
    key(
        "tun.enabled",
        Kind::Switch,
        "true",
        "Carry this host's traffic. A pure relay does not need it.",
    ),
    key("tun.name", Kind::Text, "\"hyphae0\"", "Name of the TUN device."),
    key(
        "session.rekey_after_seconds",
        Kind::Number,
        "120",
        "Age at which keys are renewed, at most 120.",
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
        "The same for a peer to which frames are being sent: a link under load fails over or is given up \
         sooner. Milliseconds, at least 1000.",
    )
    .unit("milliseconds")
    .range(1000, 600_000)
    .live(),
    key(
        "session.retry_max_seconds",
        Kind::Number,
        "30",
        "Longest time between attempts at a peer that was never up. One that was up lately is tried at least \
         every 2 seconds.",
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
        "Only these keys may be peers, whoever dials; [] lets nobody in. Without it everybody may. An entry is \
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
        "These keys may not, whatever `allow` says.",
    )
    .values(KEYS)
    .entries(&["key", "name"])
    .live(),
    key(
        "peering.peers_max",
        Kind::Number,
        "1024",
        "Most peers, configured and inbound. Those above a limit that was lowered stay until they leave.",
    )
    .unit("peers")
    .range(1, PEERS_MAX as u64)
    .live(),
    key(
        "peering.inbound_max",
        Kind::Number,
        "896",
        "Most peers that connected by themselves; 0 takes configured ones only.",
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
        "Handshakes of one address that may be unfinished at a time.",
    )
    .unit("handshakes")
    .range(1, 256)
    .live(),
    key(
        "discovery.mode",
        Kind::TextOrList,
        "\"all\"",
        "Search for nodes on local networks by IPv6 multicast: \"all\" interfaces, \"none\", or a list such as \
         [\"eth0\", \"eth1\"]. It needs `listen` to be on [::].",
    )
    .values("\"all\", \"none\", or a list of interfaces"),
    key("discovery.port", Kind::Number, "9651", "UDP port of the beacons.").range(1, 65_535),
    key(
        "stream.listen",
        Kind::Switch,
        "true",
        "Accept such links on the port number of worker 0.",
    ),
    key(
        "stream.fallback",
        Kind::Switch,
        "true",
        "Try a peer that is given as udp:// over TCP as well (same host and port) when it does not answer for \
         so long, and go back to UDP when it answers there, which is tried again and again.",
    )
    .live(),
    key(
        "stream.fallback_after_seconds",
        Kind::Number,
        "3",
        "Silence after which TCP is tried too.",
    )
    .unit("seconds")
    .range(0, 60)
    .live(),
    key(
        "stream.upgrade_seconds",
        Kind::Number,
        "60",
        "Time between attempts to go back to UDP.",
    )
    .unit("seconds")
    .range(1, 3600)
    .live(),
    key(
        "routing.enabled",
        Kind::Switch,
        "true",
        "Find routes with neighbours. false leaves static routes and the /64s of peers.",
    ),
    key(
        "routing.hello_milliseconds",
        Kind::Number,
        "1000",
        "Time between hellos of a link, 100 to 60000; longer by itself on a node with 512 links or more. A \
         neighbour is lost after 2.7 times the interval that it says it keeps.",
    )
    .unit("milliseconds")
    .range(100, 60_000),
    key(
        "routing.next_hops_max",
        Kind::Number,
        "8",
        "Next hops among which the flows of one route are shared, 1 to 8.",
    )
    .range(1, 8),
    key(
        "routing.routes_max",
        Kind::Number,
        "200000",
        "Prefixes known at a time; neighbours share a full table. Lowering it drops none.",
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
         (net.ipv6.conf.all.forwarding = 1), and what is behind it must have a route back to 400::/7.",
    )
    .values("prefixes outside of 400::/7")
    .live(),
    key(
        "routing.reach",
        Kind::List,
        "[]",
        "Prefixes within which this host sends through gateways that others are: each prefix announced within \
         them is accepted, and routed into the TUN device while its gateway is there. Outside of the overlay a \
         prefix has no owner, so anybody may announce it: name the gateway's key in `import`, as below.",
    )
    .values("prefixes outside of 400::/7")
    .live(),
    key(
        "routing.import",
        Kind::List,
        "[]",
        "What is taken from neighbours. The first rule that matches decides. Each has an action (\"accept\" or \
         \"refuse\"), and what it does not name matches everything: `prefix` (all prefixes within it), `origin` \
         (key of the announcer), `neighbour` (key of who tells it or is told). After the rules of `import` come \
         accept for all of `reach`, accept for 400::/7, refuse for the rest. A relay passes on announcements of \
         gateways only where `import` takes them. One gateway and no other:\n  \
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
        "What is told to neighbours, by rules of the same form; after them comes accept for all. A node with \
         several peers that carries nothing for others tells of itself only:\n  \
         export = [{ action = \"accept\", origin = \"OWN KEY\" }, { action = \"refuse\" }]",
    )
    .values(RULES)
    .entries(&["action", "prefix", "origin", "neighbour"])
    .live(),
    key(
        "inbox.durable",
        Kind::Switch,
        "true",
        "Keep messages on disk: one that was acknowledged to its sender survives a kill and the loss of power. \
         false keeps them in memory, faster and gone with the process.",
    ),
    key(
        "inbox.messages_max",
        Kind::Number,
        "65536",
        "Messages that wait to be read. When this or the next is reached, senders wait and try again.",
    )
    .unit("messages")
    .values("1 or more"),
    key(
        "inbox.bytes_max",
        Kind::Number,
        "268435456",
        "Their bytes. A single message of up to 64 MiB needs that many bytes free.",
    )
    .unit("bytes")
    .values("0 or more"),
    key(
        "rpc.listen",
        Kind::Text,
        "\"127.0.0.1:8990\"",
        "JSON-RPC over HTTP, at /rpc, beside the Unix socket; \"off\" switches it off. On loopback, root, the node's \
         own user and allow_uids may call, and whoever has the token; elsewhere only who has the token, so that \
         token_file is needed. `rpc = \"off\"` is short for `listen` here.",
    )
    .values(ADDRESS_OR_OFF),
    key(
        "rpc.rest",
        Kind::Text,
        "\"127.0.0.1:8989\"",
        "REST of the Mycelium network, at /api/v1, for the same callers; off by default where `listen` is off.",
    )
    .values(ADDRESS_OR_OFF),
    key(
        "rpc.allow_uids",
        Kind::List,
        "[]",
        "Users that may call over rpc.sock and loopback, beside root and the node's own user. With this or the next \
         set, the file of rpc.sock is open to all and these lists decide. The overflow uid (65534) is never \
         admitted: it stands for all users of other user namespaces.",
    )
    .values("numbers of users"),
    key(
        "rpc.allow_gids",
        Kind::List,
        "[]",
        "Groups that may use rpc.sock, beside that of the socket file. Over TCP the kernel tells users only.",
    )
    .values("numbers of groups"),
    key(
        "rpc.token_file",
        Kind::Text,
        "",
        "File of a bearer token (32 to 512 visible characters, mode 0600), which admits whoever sends it as \
         `Authorization: Bearer TOKEN` over TCP. HTTP here is not encrypted: use it behind a proxy that speaks TLS, or \
         over the overlay. Read at start. A relative path is relative to this file.",
    )
    .values("a path")
    .example("\"/etc/hyphae/rpc.token\""),
    key(
        "admin.bus_call",
        Kind::Switch,
        "true",
        "Offer admin.busCall, with which local programs administer other nodes over the bus.",
    ),
    key(
        "admin.socket_dirs",
        Kind::List,
        "[]",
        "Directories below which administrators over the bus, or with a bearer token, may name sockets of topics. \
         None: they may name none.",
    )
    .values("absolute paths"),
];

/// The setting of a path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS_ALL.iter().find(|key| key.path == path)
}

/// Whether there is a section of that name.
pub fn is_section(name: &str) -> bool {
    !name.is_empty() && SECTIONS.iter().any(|(section, _)| *section == name)
}

/// The path nearest to what was written, if any is near.
pub fn nearest(written: &str) -> Option<&'static str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let name = last(written);
    let rank = |key: &&Key| {
        // The right name in the wrong section is nearer than another name in the right one.
        let elsewhere = 1 + distance(&name, key.name());
        distance(written, key.path).min(elsewhere)
    };
    let key = KEYS_ALL.iter().min_by_key(rank)?;
    (rank(&key) <= 3 && rank(&key) < written.len()).then_some(key.path)
}

/// The section nearest to what was written, if any is near.
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
