//! Grants: who may do what on which topics, and until when.
//!
//! A grant is signed by an authority of the realm, or by a node for one of its own modules within grants that the node
//! itself holds. Chains therefore have two links at most.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hyphae_wire::PublicKey;

use crate::codec::{Format, FormatError, Reader, Unknown, Writer};
use crate::hlc::{AHEAD_MAX, UnixMillis};
use crate::signed::Signable;
use crate::{GrantId, Realm, RealmId, TopicFilter};

/// Life of a grant by default.
pub const LIFE_DEFAULT: Duration = Duration::from_secs(30 * 86_400);
/// Longest life of a grant.
pub const LIFE_MAX: Duration = Duration::from_secs(400 * 86_400);
/// Bytes of the name of a module.
pub const MODULE_LEN_MAX: usize = 64;

/// What a grant allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Take part in the realm.
    Member,
    /// Sign publications, and objects of the collection of that name.
    Publish,
    /// Announce interest.
    Subscribe,
    /// Call methods.
    Invoke,
    /// Administer: reserved for listeners; does not make an authority.
    Admin,
}

impl Verb {
    /// All of them, by code.
    pub const ALL: [Self; 5] = [
        Self::Member,
        Self::Publish,
        Self::Subscribe,
        Self::Invoke,
        Self::Admin,
    ];

    /// Name in RPC, files and the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Invoke => "invoke",
            Self::Admin => "admin",
        }
    }

    fn code(self) -> u64 {
        Self::ALL
            .iter()
            .zip(0..)
            .find(|(verb, _)| **verb == self)
            .map_or(0, |(_, code)| code)
    }

    fn from_code(code: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Invalid name of a verb.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a verb: expected member, publish, subscribe, invoke or admin")]
pub struct InvalidVerb(pub String);

impl FromStr for Verb {
    type Err = InvalidVerb;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let verb = Self::ALL.into_iter().find(|verb| verb.name() == s);
        verb.ok_or_else(|| InvalidVerb(s.to_owned()))
    }
}

/// Who a grant is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// Every member: open access. Such a grant is carried by its issuer.
    AllMembers,
    /// A node.
    Node(PublicKey),
}

/// A grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its id, random; retained when it is renewed.
    pub id: GrantId,
    /// The realm that it is valid in.
    pub realm: RealmId,
    /// The key that signs it: an authority, or the holder for its own module.
    pub issuer: PublicKey,
    /// Who holds it.
    pub holder: Holder,
    /// The module of the holder that it is for; `None` for the node and all its modules.
    pub module: Option<String>,
    /// What it allows.
    pub verb: Verb,
    /// On which topics.
    pub filter: TopicFilter,
    /// Begin of validity.
    pub not_before: UnixMillis,
    /// End of validity, exclusive.
    pub expires: UnixMillis,
    /// Whether authorities renew it at two thirds of its life.
    pub renew: bool,
    /// Fields of newer versions of the format.
    pub unknown: Unknown,
}

/// Validity of a grant at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It is in force.
    Valid,
    /// It is not yet in force.
    NotYet,
    /// It expired at this time.
    Expired(UnixMillis),
}

impl Grant {
    /// Validity at `now`. Begins up to [`AHEAD_MAX`] early, since clocks differ.
    pub fn validity(&self, now: UnixMillis) -> Validity {
        if now >= self.expires {
            Validity::Expired(self.expires)
        } else if now + AHEAD_MAX < self.not_before {
            Validity::NotYet
        } else {
            Validity::Valid
        }
    }

    /// Its life.
    pub fn life(&self) -> Duration {
        self.expires.since(self.not_before)
    }

    /// When its issuer renews it: at two thirds of its life; [`UnixMillis::NEVER`] if it is not renewed.
    pub fn renewal(&self) -> UnixMillis {
        if self.renew {
            self.not_before + self.life() * 2 / 3
        } else {
            UnixMillis::NEVER
        }
    }

    /// The grant with the same rights and a life that begins at `now`, to be signed by `issuer`.
    #[must_use]
    pub fn renewed(&self, issuer: PublicKey, now: UnixMillis) -> Self {
        Self {
            issuer,
            not_before: now,
            expires: now + self.life(),
            ..self.clone()
        }
    }

    /// Whether its issuer is an authority.
    pub fn is_by_authority(&self, realm: &Realm) -> bool {
        realm.is_authority(&self.issuer)
    }

    /// Whether it is of a node for its own module, within `parent`.
    pub fn is_within(&self, parent: &Self) -> bool {
        let own = self.module.is_some() && self.holder == Holder::Node(self.issuer);
        let for_issuer = [Holder::Node(self.issuer), Holder::AllMembers].contains(&parent.holder);
        own && for_issuer
            && parent.module.is_none()
            && parent.realm == self.realm
            && parent.verb == self.verb
            && parent.filter.covers(&self.filter)
    }

    /// Whether a name is one of a module: 1 to 64 bytes without control characters and `/`.
    pub fn is_module(name: &str) -> bool {
        (1..=MODULE_LEN_MAX).contains(&name.len())
            && !name.contains(|c: char| c.is_control() || c == '/')
    }
}

impl Format for Grant {
    const LEN_MAX: usize = 1024;

    fn write(&self, writer: &mut Writer) {
        writer.bytes(1, &self.id.0);
        writer.bytes(2, &self.realm.0);
        writer.bytes(3, &self.issuer.0);
        if let Holder::Node(key) = self.holder {
            writer.bytes(4, &key.0);
        }
        if let Some(module) = &self.module {
            writer.bytes(5, module.as_bytes());
        }
        writer.number(6, self.verb.code());
        writer.bytes(7, self.filter.as_str().as_bytes());
        writer.number(8, self.not_before.0);
        writer.number(9, self.expires.0);
        writer.flag(10, self.renew);
        writer.unknown(&self.unknown);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let invalid = FormatError::Value;
        let holder = match reader.take(4) {
            Some(key) => Holder::Node(PublicKey(key.try_into().map_err(|_| invalid(4))?)),
            None => Holder::AllMembers,
        };
        let module = match reader.take(5) {
            Some(name) => Some(str::from_utf8(name).map_err(|_| invalid(5))?.to_owned()),
            None => None,
        };
        let grant = Self {
            id: GrantId(reader.array(1)?),
            realm: RealmId(reader.array(2)?),
            issuer: PublicKey(reader.array(3)?),
            holder,
            module,
            verb: Verb::from_code(reader.number(6)?).ok_or(invalid(6))?,
            filter: TopicFilter::new(&reader.text(7, 255)?).map_err(|_| invalid(7))?,
            not_before: UnixMillis(reader.number(8)?),
            expires: UnixMillis(reader.number(9)?),
            renew: reader.flag(10)?,
            unknown: reader.unknown(),
        };
        if grant
            .module
            .as_ref()
            .is_some_and(|name| !Self::is_module(name))
        {
            return Err(invalid(5));
        }
        if grant.expires <= grant.not_before || grant.life() > LIFE_MAX {
            return Err(invalid(9));
        }
        Ok(grant)
    }
}

impl Signable for Grant {
    const CONTEXT: &'static str = "hyphae grant v1";

    fn signer(&self) -> PublicKey {
        self.issuer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            id: GrantId([1; 16]),
            realm: RealmId([2; 16]),
            issuer: PublicKey([3; 32]),
            holder: Holder::Node(PublicKey([4; 32])),
            module: None,
            verb: Verb::Publish,
            filter: TopicFilter::new("a/>").expect("a filter"),
            not_before: UnixMillis(1_000_000),
            expires: UnixMillis(1_900_000),
            renew: true,
            unknown: Unknown::default(),
        }
    }

    #[test]
    fn validity_begins_early_by_what_clocks_differ_and_ends_exactly() {
        let grant = grant();
        assert_eq!(grant.validity(UnixMillis(939_999)), Validity::NotYet);
        assert_eq!(grant.validity(UnixMillis(940_000)), Validity::Valid);
        assert_eq!(grant.validity(UnixMillis(1_899_999)), Validity::Valid);
        let end = UnixMillis(1_900_000);
        assert_eq!(grant.validity(end), Validity::Expired(end));
    }

    #[test]
    fn a_renewed_grant_retains_id_rights_and_life() {
        let grant = grant();
        assert_eq!(grant.renewal(), UnixMillis(1_600_000));
        let renewed = grant.renewed(PublicKey([9; 32]), grant.renewal());
        assert_eq!(renewed.expires, UnixMillis(2_500_000));
        assert_eq!((renewed.id, renewed.verb), (grant.id, grant.verb));
        let fixed = Grant {
            renew: false,
            ..grant
        };
        assert_eq!(fixed.renewal(), UnixMillis::NEVER);
    }

    #[test]
    fn a_node_grants_to_its_own_modules_what_it_holds() {
        let parent = grant();
        let own = |module: Option<&str>, filter: &str| Grant {
            issuer: PublicKey([4; 32]),
            module: module.map(str::to_owned),
            filter: TopicFilter::new(filter).expect("a filter"),
            ..grant()
        };
        assert!(own(Some("m"), "a/b").is_within(&parent));
        assert!(!own(None, "a/b").is_within(&parent), "not to itself");
        assert!(
            !own(Some("m"), "b").is_within(&parent),
            "not more than it holds"
        );
        let other = Grant {
            holder: Holder::Node(PublicKey([5; 32])),
            ..own(Some("m"), "a/b")
        };
        assert!(!other.is_within(&parent), "not to others");
        let invoke = Grant {
            verb: Verb::Invoke,
            ..own(Some("m"), "a/b")
        };
        assert!(!invoke.is_within(&parent), "not another verb");
        let module = Grant {
            module: Some("n".to_owned()),
            ..parent
        };
        assert!(
            !own(Some("m"), "a/b").is_within(&module),
            "not from a module"
        );
    }

    #[test]
    fn invalid_grants_are_rejected() {
        let encoded = |change: fn(&mut Grant)| {
            let mut grant = grant();
            change(&mut grant);
            Grant::decode(&grant.encode())
        };
        assert_eq!(encoded(|_| ()), Ok(grant()));
        for (change, tag) in [
            ((|g| g.expires = g.not_before) as fn(&mut Grant), 9),
            (|g| g.expires = UnixMillis::NEVER, 9),
            (|g| g.module = Some(String::new()), 5),
            (|g| g.module = Some("a/b".to_owned()), 5),
        ] {
            assert_eq!(encoded(change), Err(FormatError::Value(tag)));
        }
        for verb in Verb::ALL {
            assert_eq!(verb.name().parse(), Ok(verb));
            assert_eq!(Verb::from_code(verb.code()), Some(verb));
        }
    }
}
