//! Authorization of every call of every listener, before its parameters are parsed.
//!
//! A caller that a local listener admits is an administrator; listeners identify their callers (file mode,
//! `SO_PEERCRED`, socket table, bearer token). Over the bus, administrators are the keys of admin.toml, for methods
//! that match a pattern there. The caller over the bus is the key that the session has proven; the content of a
//! message has no influence.

pub(crate) use hyphae_bus::topics::Authority;
use hyphae_rpc::Access;
use hyphae_rpc::message::{Error, code};
use hyphae_wire::PublicKey;
use serde::{Deserialize, Serialize};

/// Longest pattern.
const PATTERN_MAX: usize = 128;
/// Most patterns, and most administrators.
pub(crate) const ENTRIES_MAX: usize = 1024;

/// Listener that a call came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    /// `rpc.sock`.
    Unix,
    /// JSON-RPC over TCP.
    Tcp,
    /// REST.
    Rest,
    /// Message bus.
    Bus,
}

/// Identity of a caller, as the kernel or the session proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Listener.
    pub(crate) listener: Listener,
    /// User of the calling process; `None` for the bus and for a bearer token.
    pub(crate) uid: Option<u32>,
    /// Key of the calling node; bus only.
    pub(crate) key: Option<PublicKey>,
}

impl Caller {
    /// A process of this host.
    pub(crate) const fn local(listener: Listener, uid: u32) -> Self {
        Self {
            listener,
            uid: Some(uid),
            key: None,
        }
    }

    /// A caller that presented the bearer token.
    pub(crate) const fn token(listener: Listener) -> Self {
        Self {
            listener,
            uid: None,
            key: None,
        }
    }

    /// Another node.
    pub(crate) const fn bus(key: PublicKey) -> Self {
        Self {
            listener: Listener::Bus,
            uid: None,
            key: Some(key),
        }
    }

    /// Authority over local resources.
    pub(crate) fn authority(&self) -> Authority {
        match self.uid {
            Some(uid) if uid == 0 || uid == rustix::process::geteuid().as_raw() => Authority::Node,
            Some(uid) => Authority::User(uid),
            None => Authority::Remote,
        }
    }
}

/// Content of admin.toml.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admins {
    /// Keys that may administer this node over the bus.
    pub admin_pubkeys: Vec<PublicKey>,
    /// Methods that they may call.
    pub method_patterns: Vec<String>,
}

impl Admins {
    /// Whether a caller may call a method.
    pub(crate) fn check(&self, caller: &Caller, method: &str) -> Result<(), Error> {
        let denied = |message: String| Err(Error::new(code::DENIED, message));
        let known = hyphae_rpc::find(method);
        let local_only = known.is_some_and(|method| method.access == Access::Local);
        let Some(key) = &caller.key else {
            return match local_only && caller.authority() == Authority::Remote {
                true => denied(format!("'{method}' can be called locally only")),
                false => Ok(()),
            };
        };
        if !self.admin_pubkeys.contains(key) {
            return denied(format!("{key} is not an administrator of this node"));
        }
        if local_only {
            return denied(format!("'{method}' can be called locally only"));
        }
        if !self.method_patterns.iter().any(|p| matches(p, method)) {
            return denied(format!("no method pattern of this node allows '{method}'"));
        }
        Ok(())
    }
}

/// Refuses text that is not a pattern.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-*".contains(c);
    if pattern.is_empty() || pattern.len() > PATTERN_MAX || !pattern.chars().all(fits) {
        let message = format!(
            "'{pattern}' is not a method pattern: 1 to {PATTERN_MAX} letters, digits, '.', '_', '-' \
             and '*', such as getInfo or admin.*"
        );
        return Err(Error::new(code::BAD_PATTERN, message));
    }
    Ok(())
}

/// Whether a name matches a pattern whose `*` stands for any run of characters.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let Some(last) = pieces.next_back() else {
        // Without a star.
        return rest.is_empty();
    };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries every split: slow, and simple enough to be correct by inspection.
    fn oracle(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some(b'*'), _) => {
                oracle(&pattern[1..], name) || (!name.is_empty() && oracle(pattern, &name[1..]))
            }
            (Some(a), Some(b)) => a == b && oracle(&pattern[1..], &name[1..]),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    #[test]
    fn globs_match_as_an_exhaustive_search_does() {
        let words = |letters: &[char]| -> Vec<String> {
            let mut all = vec![String::new()];
            for n in 0..5 {
                let longer: Vec<String> = all
                    .iter()
                    .filter(|word| word.len() == n)
                    .flat_map(|word| letters.iter().map(move |c| format!("{word}{c}")))
                    .collect();
                all.extend(longer);
            }
            all
        };
        for pattern in words(&['a', 'b', '*']) {
            for name in words(&['a', 'b']) {
                let right = oracle(pattern.as_bytes(), name.as_bytes());
                assert_eq!(matches(&pattern, &name), right, "{pattern} {name}");
            }
        }
    }

    #[test]
    fn the_bus_is_denied_unless_key_and_method_are_listed() {
        let (known, unlisted) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let mut admins = Admins {
            admin_pubkeys: vec![known],
            method_patterns: Vec::new(),
        };
        let code = |admins: &Admins, caller: &Caller, method: &str| {
            admins.check(caller, method).err().map(|error| error.code)
        };
        let denied = Some(code::DENIED);
        assert_eq!(code(&admins, &Caller::bus(known), "getInfo"), denied);
        admins.method_patterns = vec!["get*".to_owned(), "admin.*".to_owned()];
        assert_eq!(code(&admins, &Caller::bus(known), "getInfo"), None);
        assert_eq!(code(&admins, &Caller::bus(known), "addPeer"), denied);
        assert_eq!(code(&admins, &Caller::bus(unlisted), "getInfo"), denied);
        assert_eq!(code(&admins, &Caller::bus(known), "admin.list"), None);
        assert_eq!(code(&admins, &Caller::bus(known), "admin.busCall"), denied);
        let local = Caller::local(Listener::Unix, 0);
        assert_eq!(code(&Admins::default(), &local, "admin.busCall"), None);
    }

    #[test]
    fn only_root_and_the_user_of_the_node_have_its_authority() {
        let us = rustix::process::geteuid().as_raw();
        let authority = |uid| Caller::local(Listener::Tcp, uid).authority();
        assert_eq!(
            (authority(0), authority(us)),
            (Authority::Node, Authority::Node)
        );
        assert_eq!(authority(us + 1), Authority::User(us + 1));
        assert_eq!(
            Caller::bus(PublicKey([1; 32])).authority(),
            Authority::Remote
        );
        assert_eq!(Caller::token(Listener::Tcp).authority(), Authority::Remote);
    }
}
