//! Topics and filters.
//!
//! A topic is 1 to 255 bytes of UTF-8 without control characters, in levels separated by `/`, which may be empty. It
//! has none of `*>+#`. Topics that begin with `$` are reserved.
//!
//! A filter is a topic in which a level may be `*`, any one level, and the last may be `>`, one or more levels. As in
//! MQTT and NATS practice, a wildcard in the first level does not match reserved topics: `>` is everything that users
//! publish, and no system topic.

use std::fmt;
use std::str::FromStr;

use crate::RealmId;

/// Bytes of a topic or filter.
pub const TOPIC_LEN_MAX: usize = 255;
/// First character of reserved topics.
pub const RESERVED: char = '$';

const ONE: &str = "*";
const REST: &str = ">";

/// Why text is not a topic or filter. RPC code -32052.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopicName {
    /// It is empty.
    #[error("a topic has at least one byte")]
    Empty,
    /// It is too long.
    #[error("a topic has at most 255 bytes, this one has {0}")]
    TooLong(usize),
    /// It contains a control character.
    #[error("a topic contains no control characters")]
    Control,
    /// A topic contains a wildcard, or a character that is one elsewhere.
    #[error("a topic contains none of '*', '>', '+' and '#'")]
    Wildcard,
    /// A filter contains a wildcard beside other characters, `>` before the last level, or `+` or `#`.
    #[error(
        "in a filter '*' is a whole level, '>' the whole last level, and '+' and '#' are not allowed"
    )]
    Filter,
    /// It begins with `$`.
    #[error("topics that begin with '$' are reserved")]
    Reserved,
}

/// A topic that publications name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(String);

/// A pattern of topics.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter(String);

fn check(text: &str) -> Result<(), InvalidTopicName> {
    match text.len() {
        0 => Err(InvalidTopicName::Empty),
        len if len > TOPIC_LEN_MAX => Err(InvalidTopicName::TooLong(len)),
        _ if text.chars().any(char::is_control) => Err(InvalidTopicName::Control),
        _ => Ok(()),
    }
}

fn has_special(text: &str) -> bool {
    text.contains(['*', '>', '+', '#'])
}

impl TopicName {
    /// A topic of a user.
    ///
    /// # Errors
    /// When it is invalid or reserved.
    pub fn new(text: &str) -> Result<Self, InvalidTopicName> {
        let topic = Self::any(text)?;
        if topic.is_reserved() {
            return Err(InvalidTopicName::Reserved);
        }
        Ok(topic)
    }

    /// A topic of a user or of the system.
    ///
    /// # Errors
    /// When it is invalid.
    pub fn any(text: &str) -> Result<Self, InvalidTopicName> {
        check(text)?;
        if has_special(text) {
            return Err(InvalidTopicName::Wildcard);
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether it begins with `$`.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(RESERVED)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Hash under which interest in exactly this topic is announced: 8 bytes, keyed by the realm.
    pub fn interest_hash(&self, realm: RealmId) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("hyphae interest v1");
        hasher.update(&realm.0).update(self.0.as_bytes());
        let mut hash = [0; 8];
        hasher.finalize_xof().fill(&mut hash);
        u64::from_le_bytes(hash)
    }
}

impl TopicFilter {
    /// Every topic of users.
    pub fn all() -> Self {
        Self(REST.to_owned())
    }

    /// Parses a filter. A topic is a filter that matches itself.
    ///
    /// # Errors
    /// When it is invalid.
    pub fn new(text: &str) -> Result<Self, InvalidTopicName> {
        check(text)?;
        let levels = text.split('/').count();
        for (n, level) in (1..).zip(text.split('/')) {
            if has_special(level) && level != ONE && !(level == REST && n == levels) {
                return Err(InvalidTopicName::Filter);
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The only topic that it matches, when it has no wildcard.
    pub fn exact(&self) -> Option<TopicName> {
        (!has_special(&self.0)).then(|| TopicName(self.0.clone()))
    }

    /// Whether it matches a topic.
    pub fn matches(&self, topic: &TopicName) -> bool {
        self.includes(&topic.0)
    }

    /// Whether it matches every topic that `other` matches.
    pub fn covers(&self, other: &Self) -> bool {
        self.includes(&other.0)
    }

    /// Compares levels. A level of `other` may be a wildcard, which only a wildcard that is at least as wide includes.
    fn includes(&self, other: &str) -> bool {
        let wildcard_first = self.0.starts_with(['*', '>']);
        if wildcard_first && other.starts_with(RESERVED) {
            return false;
        }
        let (mut mine, mut theirs) = (self.0.split('/'), other.split('/'));
        loop {
            match (mine.next(), theirs.next()) {
                (Some(REST), Some(_)) => return true,
                (Some(ONE), Some(level)) if level != REST => {}
                (Some(level), Some(same)) if level == same && level != ONE => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }

    /// Leading levels that are equal or matched by a wildcard: how near a filter is to one that it does not cover.
    pub fn shared_levels(&self, other: &str) -> usize {
        let pairs = self.0.split('/').zip(other.split('/'));
        pairs
            .take_while(|(mine, theirs)| mine == theirs || [ONE, REST].contains(mine))
            .count()
    }
}

impl From<TopicName> for TopicFilter {
    fn from(topic: TopicName) -> Self {
        Self(topic.0)
    }
}

macro_rules! text_form {
    ($name:ident, $parse:path) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidTopicName;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                $parse(s)
            }
        }
    };
}

text_form!(TopicName, TopicName::new);
text_form!(TopicFilter, TopicFilter::new);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::new(text).expect("a filter")
    }

    fn topic(text: &str) -> TopicName {
        TopicName::any(text).expect("a topic")
    }

    #[test]
    fn topics_are_validated() {
        use InvalidTopicName as E;
        let long = "x".repeat(256);
        for (text, error) in [
            ("", E::Empty),
            (&*long, E::TooLong(256)),
            ("a\n", E::Control),
            ("a\u{85}", E::Control),
            ("a/*", E::Wildcard),
            ("a>", E::Wildcard),
            ("a+b", E::Wildcard),
            ("#", E::Wildcard),
            ("$sys/a", E::Reserved),
        ] {
            assert_eq!(TopicName::new(text), Err(error), "{text}");
        }
        for text in ["a", "/", "a//b", "/a/", "ä/ö", "a$b", &long[..255]] {
            assert!(TopicName::new(text).is_ok(), "{text}");
        }
        assert!(TopicName::any("$sys/a").is_ok_and(|topic| topic.is_reserved()));
    }

    #[test]
    fn filters_are_validated() {
        for text in ["*", ">", "a/*/b", "a/>", "*/>", "a", "$sys/>"] {
            assert!(TopicFilter::new(text).is_ok(), "{text}");
        }
        for text in ["a*", "*a", "**", ">/a", "a/>/b", "a>", "a/#", "+", ">>"] {
            assert_eq!(
                TopicFilter::new(text),
                Err(InvalidTopicName::Filter),
                "{text}"
            );
        }
    }

    #[test]
    fn wildcards_match_whole_levels() {
        for (text, yes, no) in [
            ("a/b", &["a/b"][..], &["a", "a/b/c", "a/bc"][..]),
            ("a/*", &["a/b", "a/"], &["a", "a/b/c", "b/a"]),
            ("*/b", &["a/b", "/b"], &["b", "$s/b"]),
            ("a/>", &["a/b", "a/b/c", "a/"], &["a", "ab/c"]),
            (">", &["a", "a/b", "/"], &["$s", "$s/a"]),
            ("$s/>", &["$s/a"], &["$s", "s/a"]),
            ("*/*/>", &["a/b/c", "a/b/c/d"], &["a/b"]),
        ] {
            for matching in yes {
                assert!(filter(text).matches(&topic(matching)), "{text} {matching}");
            }
            for other in no {
                assert!(!filter(text).matches(&topic(other)), "{text} {other}");
            }
        }
    }

    #[test]
    fn a_filter_covers_narrower_ones_only() {
        for (wide, narrow) in [
            (">", "*"),
            (">", "*/>"),
            (">", ">"),
            ("a/*", "a/*"),
            ("a/>", "a/*/b"),
            ("*", "a"),
        ] {
            assert!(filter(wide).covers(&filter(narrow)), "{wide} {narrow}");
        }
        for (narrow, wide) in [
            ("*", ">"),
            ("a/*", "a/>"),
            ("*/>", ">"),
            ("a", "*"),
            (">", "$s/>"),
            ("a/b", "a/*"),
        ] {
            assert!(!filter(narrow).covers(&filter(wide)), "{narrow} {wide}");
        }
    }

    #[test]
    fn hashes_of_interest_depend_on_the_realm() {
        let hash = |realm| topic("a/b").interest_hash(RealmId([realm; 16]));
        assert_eq!(hash(1), hash(1));
        assert_ne!(hash(1), hash(2));
        assert_ne!(hash(1), topic("a").interest_hash(RealmId([1; 16])));
    }

    proptest! {
        /// Whoever holds a filter that covers another matches all that the other matches.
        #[test]
        fn covering_implies_matching(
            wide in "[ab*]?(/[ab*]){0,2}(/>)?", narrow in "[ab*]?(/[ab*]){0,2}(/>)?", name in "[ab$](/[ab]){0,3}"
        ) {
            if let (Ok(wide), Ok(narrow)) = (TopicFilter::new(&wide), TopicFilter::new(&narrow))
                && wide.covers(&narrow) && narrow.matches(&topic(&name))
            {
                prop_assert!(wide.matches(&topic(&name)), "{} {} {}", wide, narrow, name);
            }
        }
    }
}
