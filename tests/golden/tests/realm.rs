//! Formats of realms: encodings, signatures and hashes, byte for byte. What must be refused is tested beside the code.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fmt::Debug;

use hyphae_realm::object::TOMBSTONE_LIFE;
use hyphae_realm::{
    Advert, Format, Grant, Invite, Object, Realm, RealmHistory, Revocation, Signable, Signed,
    StateDelta, StateEntry, StateHead, TopicName, UnixMillis, invite,
};
use hyphae_test_golden::{Case, load};
use hyphae_wire::SecretKey;

fn signed<T: Signable + Debug + PartialEq>(case: &Case) -> T {
    let (body, bytes) = (case.bytes("body"), case.bytes("signed"));
    let value = T::decode(&body).unwrap();
    assert_eq!(value.encode(), body, "{}", case.at());
    let key = SecretKey::from_bytes(&case.array::<32>("secret")).unwrap();
    let signed = Signed::sign(value, &key, &case.array("random"));
    assert_eq!(signed.encode(), bytes, "{}", case.at());
    assert_eq!(signed.hash(), case.array("hash"), "{}", case.at());
    let read = Signed::decode(&bytes).unwrap();
    assert_eq!(read, signed, "{}", case.at());
    assert_eq!(read.verify(), Ok(()), "{}", case.at());
    read.into_value()
}

fn plain<T: Format + Debug>(case: &Case) -> T {
    let bytes = case.bytes("encoded");
    let value = T::decode(&bytes).unwrap();
    assert_eq!(value.encode(), bytes, "{}", case.at());
    value
}

#[test]
fn formats_are_those_of_the_vectors() {
    for case in load("realm") {
        match case.text("kind") {
            "realm" => {
                let realm: Realm = signed(&case);
                assert_eq!(realm.name, "home");
            }
            "history" => {
                let versions = RealmHistory::decode(&case.bytes("encoded")).unwrap();
                let history = RealmHistory::new(versions).unwrap();
                assert_eq!(history.encode(), case.bytes("encoded"));
                assert_eq!(history.current().authorities.len(), 2);
            }
            "grant" => {
                let grant: Grant = signed(&case);
                assert_eq!(grant.not_before, UnixMillis(1_700_000_000_000));
            }
            "entry" => {
                let entry: StateEntry = plain(&case);
                assert_eq!(entry.hash(), case.array("hash"), "{}", case.at());
            }
            "head" => {
                let head: StateHead = signed(&case);
                assert_eq!(head.left, case.name.contains("left"));
            }
            "delta" => {
                let delta: StateDelta = plain(&case);
                let root = delta.head.value().root;
                let hashes: Vec<_> = delta.entries.iter().map(StateEntry::hash).collect();
                let whole = delta.base.0 == 0;
                let computed = hyphae_realm::state::state_root(&hashes);
                assert_eq!(computed == root, whole, "{}", case.at());
            }
            "object" => {
                let object: Object = signed(&case);
                assert_eq!(object.value.is_none(), case.name == "tombstone");
                assert_eq!(TOMBSTONE_LIFE.as_secs(), 86_400);
            }
            "revocation" => {
                let revocation: Revocation = plain(&case);
                assert_eq!(revocation.reason, "laptop lost");
            }
            "advert" => {
                let advert: Advert = plain(&case);
                assert_eq!(advert.extra, r#"{"asr":true}"#);
            }
            "invite" => read_invite(&case),
            "interest" => {
                let topic = TopicName::new(case.text("topic")).unwrap();
                let realm = hyphae_realm::RealmId(case.array("realm"));
                assert_eq!(topic.interest_hash(realm), case.number::<u64>("hash"));
            }
            other => panic!("{}: {other}", case.at()),
        }
    }
}

fn read_invite(case: &Case) {
    let invite: Invite = case.parsed("text");
    assert_eq!(invite.to_string(), case.text("text"));
    assert_eq!(invite.realm.0, case.array("realm"));
    assert_eq!(invite.authority.0, case.array("authority"));
    assert_eq!(invite.secret, case.array("secret"));
    assert_eq!(invite.expires, UnixMillis(case.number("expires")));
    let digest = invite::digest(invite.realm, &invite.secret);
    assert_eq!(digest, case.array("digest"));
}
