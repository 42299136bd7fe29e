//! `admin.*`: administrators over the bus, and calls of other nodes over the bus.

use hyphae_bus::topics::ADMIN_TOPIC;
use hyphae_bus::{Destination, Outgoing, Topic};
use hyphae_rpc::message::{Error, Request, Response, code};
use hyphae_rpc::method::{BusCallParams, PatternsParams, PubkeyParams};
use serde_json::Value;

use crate::authorizer::{Authority, Caller, ENTRIES_MAX, check_pattern};
use crate::context::Dispatcher;
use crate::error::{self, internal, invalid, lock_out, not_committed, unanswered, undelivered};
use crate::params::{overlay_address, public_key};
use crate::reply::{Outcome, ok_true, value};
use hyphae_node::ReplyOutcome;

impl Dispatcher {
    pub(crate) fn admin_list(&self) -> Outcome {
        value(&self.files.admins.read().admin_pubkeys)
    }

    pub(crate) fn method_patterns(&self) -> Outcome {
        value(&self.files.admins.read().method_patterns)
    }

    pub(crate) async fn admin_add(&self, params: PubkeyParams) -> Outcome {
        let key = public_key(&params.pubkey)?;
        let mut change = self.files.admins.change().await;
        let keys = &mut change.new.admin_pubkeys;
        if !keys.contains(&key) {
            bounded(keys.len() + 1)?;
            keys.push(key);
        }
        change.commit().await.map_err(not_committed)?;
        ok_true()
    }

    pub(crate) async fn admin_remove(&self, caller: &Caller, params: PubkeyParams) -> Outcome {
        let key = public_key(&params.pubkey)?;
        let mut change = self.files.admins.change().await;
        let keys = &mut change.new.admin_pubkeys;
        let found = keys.contains(&key);
        keys.retain(|other| *other != key);
        if caller.authority() == Authority::Remote && keys.is_empty() {
            let message = "the last administrator can be removed locally only";
            return Err(lock_out(message));
        }
        change.commit().await.map_err(not_committed)?;
        value(found)
    }

    pub(crate) async fn set_patterns(&self, caller: &Caller, params: PatternsParams) -> Outcome {
        let patterns = params.patterns;
        bounded(patterns.len())?;
        patterns.iter().try_for_each(|p| check_pattern(p))?;
        if caller.authority() == Authority::Remote && patterns.is_empty() {
            return Err(lock_out("method patterns can be emptied locally only"));
        }
        let mut change = self.files.admins.change().await;
        change.new.method_patterns = patterns;
        change.commit().await.map_err(not_committed)?;
        ok_true()
    }

    pub(crate) async fn bus_call(&self, params: BusCallParams) -> Outcome {
        if !self.bus_call {
            let message = "admin.busCall is switched off (admin.bus_call of the configuration)";
            return Err(Error::new(code::DENIED, message).with_kind("bus_call_off"));
        }
        let destination = node_of(&params)?;
        let wait = params.timeout();
        let request = Request {
            jsonrpc: "2.0".to_owned(),
            method: params.method,
            params: params.params,
            id: Some(params.id.unwrap_or(Value::from(1))),
        };
        let payload = serde_json::to_vec(&request).map_err(internal)?;
        let _room = self.wait()?;
        let message = Outgoing {
            destination,
            topic: Topic::new(ADMIN_TOPIC.as_bytes()).map_err(internal)?,
            payload: payload.into(),
            digest: None,
            try_for: Some(wait),
            reply_within: Some(wait),
            failure: None,
        };
        let (id, outcome) = self.bus.request(message, wait).await.map_err(error::bus)?;
        let reply = match outcome {
            ReplyOutcome::Reply(reply) => reply,
            ReplyOutcome::TimedOut => {
                let message = format!("no answer to message {id} within {} s", wait.as_secs());
                return Err(Error::new(code::REPLY_EMPTY, message));
            }
            ReplyOutcome::Failed(failure) => return Err(unanswered(id, failure)),
            ReplyOutcome::Aborted(reason) => return Err(undelivered(id, reason)),
        };
        let response: Response = serde_json::from_slice(&reply.payload).map_err(|error| {
            let message = format!("the answer is not a JSON-RPC response: {error}");
            Error::new(code::REPLY_EMPTY, message)
        })?;
        value(response)
    }
}

/// The node that `admin.busCall` calls.
fn node_of(params: &BusCallParams) -> Result<Destination, Error> {
    match (&params.dst_pubkey, &params.dst_ip) {
        (Some(key), None) => public_key(key).map(Destination::Key),
        (None, Some(ip)) => overlay_address(ip).map(Destination::Address),
        (Some(key), Some(ip)) => {
            let key = public_key(key)?;
            if key.address().subnet() != overlay_address(ip)?.subnet() {
                return Err(invalid("dst_pubkey and dst_ip are not of the same node"));
            }
            Ok(Destination::Key(key))
        }
        (None, None) => Err(invalid("dst_pubkey or dst_ip is needed")),
    }
}

fn bounded(entries: usize) -> Result<(), Error> {
    match entries > ENTRIES_MAX {
        true => Err(invalid(format!("at most {ENTRIES_MAX} entries"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use hyphae_files::Directory;

    use crate::Admins;
    use hyphae_store::files::{ADMIN_FILE, StateError};
    use hyphae_store::stored::Stored;

    #[test]
    fn refuses_an_empty_file_of_administrators_and_reads_its_own_defaults() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path()).unwrap();
        std::fs::write(directory.path_of(ADMIN_FILE), "").unwrap();
        let refused = Stored::<Admins>::open(&directory, ADMIN_FILE);
        assert!(matches!(refused, Err(StateError::Empty(_))));
        std::fs::remove_file(directory.path_of(ADMIN_FILE)).unwrap();
        Stored::<Admins>::open(&directory, ADMIN_FILE).unwrap();
        Stored::<Admins>::open(&directory, ADMIN_FILE).unwrap();
    }
}
