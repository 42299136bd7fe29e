//! Formats of realms, shared by the directory, publish/subscribe and clients. Pure: no clock, no randomness, no I/O.
//!
//! A *realm* is a group of nodes with a name and *authorities*, whose signatures admit members. A *grant* gives a
//! holder a *verb* on the topics of a filter. A member publishes a *node state*, key → value under one signed head, and
//! *objects* in collections, each signed alone. Everything that is signed can be relayed and stored by anyone, and
//! altered by nobody.
//!
//! | module | formats |
//! |---|---|
//! | [`codec`] | canonical binary encoding of all others: version, tagged fields, unknown fields are retained |
//! | [`hlc`] | hybrid logical clock |
//! | [`topic`] | topics and filters |
//! | [`realm`], [`grant`], [`revocation`], [`invite`] | who may do what |
//! | [`state`], [`object`], [`advert`] | what members publish |
//!
//! docs/internals/directory.md lists their fields.

#![forbid(unsafe_code)]

pub mod advert;
pub mod codec;
pub mod grant;
pub mod hlc;
pub mod ids;
pub mod invite;
pub mod object;
pub mod realm;
pub mod revocation;
pub mod signed;
pub mod state;
pub mod topic;

pub use advert::Advert;
pub use codec::{Format, FormatError, Unknown};
pub use grant::{Grant, Holder, Verb};
pub use hlc::{Hlc, HlcClock, UnixMillis};
pub use ids::{GrantId, RealmId};
pub use invite::Invite;
pub use object::Object;
pub use realm::{Realm, RealmHistory};
pub use revocation::Revocation;
pub use signed::{Signable, Signed};
pub use state::{StateDelta, StateEntry, StateHead, StateKey};
pub use topic::{TopicFilter, TopicName};
