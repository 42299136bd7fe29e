//! `admin.*`: who may administer this node over the bus, and calling another node that way.

use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::{PatternsParams, PubkeyParams};
use hyphae_rpc::parse_params;

use super::authorizer::{Authority, Caller, ENTRIES_MAX, check_pattern};
use super::dispatch::{Dispatcher, public_key, yes};
use super::methods::{Outcome, uncommitted, value};

impl Dispatcher {
    pub(super) async fn administration(
        &self,
        caller: &Caller,
        method: &str,
        params: &str,
    ) -> Outcome {
        let remote = caller.authority() == Authority::Remote;
        match method {
            "admin.list" => value(&self.admins.read().admin_pubkeys),
            "admin.getMethodPatterns" => value(&self.admins.read().method_patterns),
            "admin.add" => {
                let key = public_key(&parse_params::<PubkeyParams>(params)?.pubkey)?;
                let mut change = self.admins.change().await;
                let keys = &mut change.new.admin_pubkeys;
                if !keys.contains(&key) {
                    bounded(keys.len() + 1)?;
                    keys.push(key);
                }
                change.commit().await.map_err(uncommitted)?;
                yes()
            }
            "admin.remove" => {
                let key = public_key(&parse_params::<PubkeyParams>(params)?.pubkey)?;
                let mut change = self.admins.change().await;
                let keys = &mut change.new.admin_pubkeys;
                let there = keys.contains(&key);
                keys.retain(|other| *other != key);
                if remote && keys.is_empty() {
                    return Err(lock_out(
                        "the last administrator can be removed locally only",
                    ));
                }
                change.commit().await.map_err(uncommitted)?;
                value(there)
            }
            "admin.setMethodPatterns" => {
                let patterns = parse_params::<PatternsParams>(params)?.patterns;
                bounded(patterns.len())?;
                patterns.iter().try_for_each(|p| check_pattern(p))?;
                if remote && patterns.is_empty() {
                    return Err(lock_out("method patterns can be emptied locally only"));
                }
                let mut change = self.admins.change().await;
                change.new.method_patterns = patterns;
                change.commit().await.map_err(uncommitted)?;
                yes()
            }
            _ => Err(Error::new(
                code::METHOD_NOT_FOUND,
                format!("no method '{method}'"),
            )),
        }
    }
}

fn bounded(entries: usize) -> Result<(), Error> {
    if entries > ENTRIES_MAX {
        let message = format!("at most {ENTRIES_MAX} entries");
        return Err(Error::new(code::INVALID_PARAMS, message));
    }
    Ok(())
}

/// A change over the bus after which nobody could administer this node over the bus.
fn lock_out(message: &str) -> Error {
    Error::new(code::DENIED, message).with_kind("lock_out")
}

#[cfg(test)]
mod tests {
    use hyphae_files::Directory;

    use crate::rpc::Admins;
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
