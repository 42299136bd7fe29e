//! Formats of realms: what is accepted has one encoding, and means the same when it is read again.

use std::fmt::Debug;

use hyphae_realm::realm::RealmHistory;
use hyphae_realm::{
    Advert, Format, Grant, Invite, Object, Realm, Revocation, Signable, Signed, StateDelta,
    StateEntry, StateHead, TopicFilter, TopicName,
};

/// First byte: the format; the rest is a value of it.
pub fn realm(data: &[u8]) {
    let Some((&format, bytes)) = data.split_first() else {
        return;
    };
    match format {
        0 => signed::<Realm>(bytes),
        1 => history(bytes),
        2 => signed::<Grant>(bytes),
        3 => plain::<StateEntry>(bytes),
        4 => signed::<StateHead>(bytes),
        5 => plain::<StateDelta>(bytes),
        6 => signed::<Object>(bytes),
        7 => plain::<Revocation>(bytes),
        8 => plain::<Advert>(bytes),
        9 => invite(bytes),
        _ => filters(bytes),
    }
}

fn plain<T: Format + Debug>(bytes: &[u8]) {
    if let Ok(value) = T::decode(bytes) {
        assert_eq!(value.encode(), bytes);
        assert!(bytes.len() <= T::LEN_MAX);
    }
}

fn signed<T: Signable + Debug>(bytes: &[u8]) {
    if let Ok(signed) = Signed::<T>::decode(bytes) {
        assert_eq!(signed.encode(), bytes);
        plain::<T>(&signed.value().encode());
        // Either way is fine; it must not panic.
        let _ = signed.verify();
    }
}

fn history(bytes: &[u8]) {
    let Ok(versions) = RealmHistory::decode(bytes) else {
        return;
    };
    if let Ok(history) = RealmHistory::new(versions) {
        assert_eq!(history.encode(), bytes);
        let mut same = history.clone();
        assert_eq!(same.extend(history), Ok(false));
    }
}

fn invite(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    if let Ok(invite) = text.parse::<Invite>() {
        assert_eq!(invite.to_string(), text.trim().to_ascii_lowercase());
    }
}

/// Three lines: two filters and a topic. The wider filter matches what the narrower matches.
fn filters(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let mut lines = text.split('\n');
    let mut filter = || TopicFilter::new(lines.next()?).ok();
    let (Some(wide), Some(narrow)) = (filter(), filter()) else {
        return;
    };
    assert!(wide == narrow || !(wide.covers(&narrow) && narrow.covers(&wide)));
    if let Some(Ok(topic)) = lines.next().map(TopicName::any) {
        assert!(!(wide.covers(&narrow) && narrow.matches(&topic)) || wide.matches(&topic));
        assert_eq!(
            wide.exact().is_some_and(|exact| exact == topic),
            wide.as_str() == topic.as_str()
        );
    }
}
