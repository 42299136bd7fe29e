//! Files, flags, and the table held against the code that uses the settings. The pages made of the
//! table are written by this with `HYPHAE_WRITE_CONFIG=1`.

use hyphae_wire::Suite;

use super::*;
use crate::raw::Raw;

fn load(text: &str, overrides: Overrides) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::load(Some(file.path()), overrides)
}

#[test]
fn a_flag_that_is_not_given_changes_nothing() {
    let text = "listen = \"127.0.0.1:1\"\nmetrics = \"off\"\nsuite = \"aes-256-gcm\"\n[tun]\nenabled = false\n";
    let config = load(text, Overrides::default()).unwrap();
    assert_eq!(config.listen.port(), 1);
    assert_eq!((config.metrics, config.tun), (None, None));
    assert_eq!(config.suite, Some(Suite::Aes256Gcm));
    let flags = Overrides {
        listen: Some("127.0.0.1:2".into()),
        ..Overrides::default()
    };
    assert_eq!(load(text, flags).unwrap().listen.port(), 2);
}

#[test]
fn an_unknown_key_is_refused_with_line_and_suggestion() {
    let error = load("listn = \"[::]:1\"", Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("line 1") && error.contains("did you mean `listen`?"),
        "{error}"
    );
}

#[test]
fn values_out_of_range_name_their_key() {
    for (text, key) in [
        ("listen = \"9670\"", "listen"),
        ("suite = \"rot13\"", "suite"),
        ("[session]\nlost_after_ms = 10", "session.lost_after_ms"),
        ("[network]\nname = \"garden\"", "network.key_file"),
        ("[network]\nkey_file = \"k\"", "network.name"),
        ("[network]\nname = \"\"\nkey_file = \"k\"", "network.name"),
        ("[peering]\nallow = [\"12\"]", "peering.allow"),
        (
            "[peering]\ndeny = [{ key = \"12\", name = \"x\" }]",
            "peering.deny",
        ),
        ("[peering]\npeers_max = 0", "peering.peers_max"),
        ("[peering]\npeers_max = 16001", "peering.peers_max"),
        ("[peering]\ninbound_max = 16001", "peering.inbound_max"),
        ("[discovery]\nmode = \"a b\"", "discovery.mode"),
        ("[discovery]\nmode = []", "discovery.mode"),
        ("[discovery]\nport = 0", "discovery.port"),
        ("[stream]\nupgrade_seconds = 0", "stream.upgrade_seconds"),
        (
            "[session]\nrekey_after_seconds = 0",
            "session.rekey_after_seconds",
        ),
        (
            "[session]\nkeepalive_seconds = 10",
            "session.dead_after_seconds",
        ),
    ] {
        let error = load(text, Overrides::default()).unwrap_err().to_string();
        assert!(error.contains(&format!(": {key}: ")), "{error}");
    }
}

#[test]
fn a_hub_may_have_many_thousand_peers() {
    let text = "metrics_peers_max = 12000\n[peering]\npeers_max = 12000\ninbound_max = 12000\n\
                inbound_per_source_max = 12000\n";
    let config = load(text, Overrides::default()).unwrap();
    let policy = &config.peering.policy;
    assert_eq!(config.metrics_peers_max, 12_000);
    assert_eq!(config.peering.peers_max, 12_000);
    assert_eq!(
        (policy.inbound_max, policy.inbound_per_source_max),
        (12_000, 12_000)
    );
}

#[test]
fn stream_links_can_be_switched_off_one_way_at_a_time() {
    let defaults = load("", Overrides::default()).unwrap().stream;
    assert!(defaults.listen && defaults.fallback_after.is_some());
    let text = "[stream]\nfallback = false\n";
    let stream = load(text, Overrides::default()).unwrap().stream;
    assert_eq!((stream.listen, stream.fallback_after), (true, None));
    let text = "[stream]\nlisten = false\n";
    let stream = load(text, Overrides::default()).unwrap().stream;
    assert_eq!(
        (stream.listen, stream.fallback_after),
        (false, defaults.fallback_after)
    );
}

#[test]
fn rpc_is_an_address_or_a_table_and_takes_rest_along() {
    let plain = load("", Overrides::default()).unwrap();
    assert_eq!(
        (plain.rpc.unwrap().port(), plain.rest.unwrap().port()),
        (8990, 8989)
    );
    let off = load("rpc = \"off\"", Overrides::default()).unwrap();
    assert_eq!((off.rpc, off.rest), (None, None));
    let text = "[rpc]\nlisten = \"off\"\nrest = \"127.0.0.1:1\"\nallow_uids = [7]\n[admin]\nbus_call = false";
    let table = load(text, Overrides::default()).unwrap();
    assert_eq!((table.rpc, table.rest.unwrap().port()), (None, 1));
    assert_eq!((table.rpc_allowed.uids, table.bus_call), (vec![7], false));
    let error = load("[rpc]\nlisen = \"off\"", Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("line 2") && error.contains("did you mean `rpc.listen`?"),
        "{error}"
    );
}

#[test]
fn rpc_beyond_loopback_needs_a_token_file() {
    for (key, address) in [
        ("listen", "0.0.0.0:8990"),
        ("listen", "[::]:8990"),
        ("listen", "192.0.2.1:8990"),
        ("rest", "[::ffff:192.0.2.1]:8989"),
    ] {
        let text = format!("[rpc]\n{key} = \"{address}\"\n");
        let error = load(&text, Overrides::default()).unwrap_err().to_string();
        let named = error.contains(&format!("rpc.{key}")) && error.contains("rpc.token_file");
        assert!(named, "{error}");
        let text = format!("{text}token_file = \"/x/token\"\n");
        let config = load(&text, Overrides::default()).unwrap();
        assert_eq!(config.rpc_token.unwrap().to_str(), Some("/x/token"));
    }
    for address in ["127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        let text = format!("[rpc]\nlisten = \"{address}\"\n");
        assert!(load(&text, Overrides::default()).is_ok(), "{address}");
    }
}

#[test]
fn lists_of_keys_take_names_and_an_empty_allow_list_lets_nobody_in() {
    let (one, two) = ("11".repeat(32), "22".repeat(32));
    let text = format!(
        "[peering]\nallow = [\"{one}\", {{ key = \"{two}\", name = \"attic\" }}]\n\
         inbound_max = 0\n[discovery]\nmode = [\"eth0\", \"eth1\"]\n\
         [network]\nname = \"garden\"\nkey_file = \"k\""
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &text).unwrap();
    let config = Config::load(Some(file.path()), Overrides::default());
    let peering = config.unwrap().peering;
    assert_eq!(peering.policy.allow.as_ref().unwrap().len(), 2);
    assert_eq!(peering.names[&two.parse().unwrap()], "attic");
    assert_eq!(peering.policy.inbound_max, 0);
    assert_eq!(peering.discovery.mode, "eth1,eth0".parse().unwrap());
    let key_file = peering.network.unwrap().key_file;
    assert_eq!(key_file, file.path().parent().unwrap().join("k"));
    let nobody = load("[peering]\nallow = []", Overrides::default()).unwrap();
    assert_eq!(nobody.peering.policy.allow, Some(Default::default()));
    let flags = Overrides {
        discovery: Some("none".into()),
        ..Overrides::default()
    };
    let mode = load(&text, flags).unwrap().peering.discovery.mode;
    assert_eq!(mode, DiscoveryMode::Off);
}

#[test]
fn all_errors_of_a_file_are_reported_with_line_key_and_suggestion() {
    let text = "listn = \"[::]:1\"\n\
                keepalive_seconds = 3\n\
                [sesion]\n\
                [session]\n\
                keepalive_seconds = \"five\"\n\
                dead_after_seconds = 1\n\
                lost_after_ms = 10\n\
                [peering]\n\
                deny = [{ key = \"12\", nam = \"x\" }]\n\
                [routing]\n\
                announce = [\"400::/64\"]\n";
    let (_, problems) = Settings::read(text, None, &Overrides::default());
    let reported: Vec<_> = problems
        .iter()
        .map(|p| (p.line.unwrap(), p.key.as_str(), p.suggestion.as_deref()))
        .collect();
    let expected = [
        (1, "listn", Some("listen")),
        (2, "keepalive_seconds", Some("session.keepalive_seconds")),
        (3, "sesion", Some("[session]")),
        (5, "session.keepalive_seconds", None),
        (6, "session.dead_after_seconds", None),
        (7, "session.lost_after_ms", None),
        (9, "peering.deny[0].nam", Some("name")),
        (11, "routing.announce", None),
    ];
    assert_eq!(reported, expected, "{problems:#?}");
}

#[test]
fn a_file_that_is_no_toml_is_reported_with_its_line() {
    let (_, problems) = Settings::read("listen = \"x\n[tun]\n", None, &Overrides::default());
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].line, Some(1));
}

#[test]
fn a_bad_flag_has_no_line_and_names_its_key() {
    let flags = Overrides {
        listen: Some("nowhere".into()),
        ..Overrides::default()
    };
    let (_, problems) = Settings::read("listen = \"[::]:1\"", None, &flags);
    assert_eq!(
        (problems[0].line, problems[0].key.as_str()),
        (None, "listen")
    );
}

#[test]
fn the_table_holds_the_defaults_that_the_code_has() {
    let none = Config::check(Raw::default()).unwrap();
    assert_eq!(Settings::default().config().unwrap(), none);
    for key in keys::KEYS_ALL {
        let given = !key.default.is_empty();
        assert_eq!(settings::default(key).is_some(), given, "{}", key.path);
        assert_eq!(given, key.example.is_empty(), "{}", key.path);
    }
}

/// Values that a boundary needs beside it.
fn companions(key: &str) -> &'static str {
    match key {
        "session.keepalive_seconds" => "dead_after_seconds = 600\n",
        "session.dead_after_seconds" => "keepalive_seconds = 1\n",
        _ => "",
    }
}

#[test]
fn ranges_of_the_table_are_those_of_the_code() {
    for key in keys::KEYS_ALL {
        let Some((low, high)) = key.range else {
            continue;
        };
        let accepts = |number: u64| {
            let header = match key.section() {
                "" => String::new(),
                section => format!("[{section}]\n"),
            };
            let text = format!(
                "{header}{}{} = {number}\n",
                companions(key.path),
                key.name()
            );
            load(&text, Overrides::default()).is_ok()
        };
        assert!(
            accepts(low) && accepts(high),
            "{}: {low} to {high}",
            key.path
        );
        assert!(!accepts(high + 1), "{}: {}", key.path, high + 1);
        assert!(low == 0 || !accepts(low - 1), "{}: {}", key.path, low - 1);
    }
}

#[test]
fn what_is_shown_reads_as_the_same_settings() {
    let text = "rpc = \"off\"\nsuite = \"aes-256-gcm\"\n[tun]\nenabled = false\n\
                [routing]\nimport = [{ action = \"refuse\", prefix = \"400::/16\" }]\n";
    let flags = Overrides {
        peers: vec!["udp://192.0.2.1:9670".parse().unwrap()],
        discovery: Some("eth0,eth1".into()),
        ..Overrides::default()
    };
    let (settings, problems) = Settings::read(text, None, &flags);
    assert_eq!(problems, []);
    for only_changed in [false, true] {
        let shown = settings.to_toml(only_changed);
        let (again, problems) = Settings::read(&shown, None, &Overrides::default());
        assert_eq!((&again, problems), (&settings, vec![]), "{shown}");
    }
    assert_eq!(settings.show("rpc.rest").unwrap(), "\"off\"");
    assert!(!settings.to_toml(true).contains("driver"), "a default");
}

#[test]
fn a_reload_takes_what_is_live_and_names_the_rest() {
    let text = "listen = \"[::]:1\"\nlog_level = \"debug\"\n[peering]\nallow = []\n";
    let (new, _) = Settings::read(text, None, &Overrides::default());
    let old = Settings::default();
    let changes = old.changes(&new);
    let said: Vec<_> = changes.iter().map(|c| (c.to_string(), c.live)).collect();
    assert_eq!(
        said,
        [
            ("listen: \"[::]:9670\" → \"[::]:1\"".to_owned(), false),
            ("log_level: \"info\" → \"debug\"".to_owned(), true),
            ("peering.allow: (not set) → []".to_owned(), true),
        ]
    );
    let merged = old.with_live(&new);
    let left: Vec<_> = merged.changes(&new).iter().map(|c| c.key).collect();
    assert_eq!(left, ["listen"]);
    assert_eq!(merged.with_live(&old), old, "and back: a key may be unset");
}

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/default.toml");

#[test]
fn the_shipped_file_and_the_reference_page_are_made_of_the_table() {
    for (path, made) in [(FILE, page::default_file()), (PAGE, page::reference())] {
        if std::env::var_os("HYPHAE_WRITE_CONFIG").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == made,
            "{path}: run this with HYPHAE_WRITE_CONFIG=1 and commit it"
        );
    }
}

#[test]
fn the_shipped_file_names_every_key_and_holds_the_defaults() {
    let text = std::fs::read_to_string(FILE).unwrap();
    let (settings, problems) = Settings::read(&text, None, &Overrides::default());
    assert_eq!(problems, []);
    assert_eq!(settings, Settings::default());
    // With the keys that have no default switched on, it has those of the table and no others.
    let mut section = String::new();
    let mut named = Vec::new();
    for line in text.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = format!("{name}.");
        }
        let path = line
            .split_once(" = ")
            .map(|(name, _)| format!("{section}{name}"));
        named.extend(path.filter(|path| !path.contains(' ')));
    }
    let table: Vec<_> = keys::KEYS_ALL.iter().map(|key| key.path).collect();
    assert_eq!(named, table);
}
