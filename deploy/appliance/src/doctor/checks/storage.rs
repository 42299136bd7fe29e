//! Configuration, state directory, disk and clock.

use super::{bytes, check, ok, unknown};
use crate::doctor::facts::Facts;
use crate::doctor::{Check, Level};

/// Free disk space, bytes: minimum, and in addition to a full inbox.
const FREE_MIN: u64 = 1 << 20;
const FREE_BESIDE: u64 = 64 << 20;

pub(super) fn configuration(host: &Facts) -> Check {
    const NAME: &str = "configuration";
    match &host.configuration {
        None => ok(NAME, "valid"),
        Some(error) => check(NAME, Level::Fail, error.replace('\n', ";"))
            .why("no node starts with it; the checks below assume the defaults")
            .fix("correct the file until `hyphae config check` reports no problem"),
    }
}

pub(super) fn state(host: &Facts) -> Check {
    const NAME: &str = "state directory";
    let at = &host.state;
    let path = at.path.display();
    if !at.writable {
        return check(
            NAME,
            Level::Fail,
            format!("{path} cannot be written or created by user {}", host.user),
        )
        .why("it holds the key, run-time settings and the inbox")
        .fix(format!(
            "`chown {} {path}`, run as its owner, or --state-dir",
            host.user
        ));
    }
    if !at.exists {
        return ok(NAME, format!("{path} will be created"));
    }
    if at.owner != host.user && host.user != 0 {
        return check(
            NAME,
            Level::Fail,
            format!("{path} belongs to user {}", at.owner),
        )
        .why("a node uses only a directory of its own user")
        .fix(format!(
            "`chown {} {path}`, run as user {}, or --state-dir",
            host.user, at.owner
        ));
    }
    if at.mode & 0o022 != 0 {
        return check(
            NAME,
            Level::Fail,
            format!("{path} is writable by others (mode {:04o})", at.mode),
        )
        .why("a user with write access can replace the node's key")
        .fix(format!("`chmod go-w {path}`"));
    }
    match at.key_mode {
        Some(mode) if mode & 0o027 != 0 => {
            let found = format!("the key file is accessible to others (mode {mode:04o})");
            check(NAME, Level::Fail, found)
                .why("a user who can read it can impersonate this node; no node starts with it")
                .fix(format!(
                    "`chmod 600 {path}/{}`",
                    hyphae_store::files::KEY_FILE
                ))
        }
        Some(_) => ok(NAME, format!("{path}")),
        None => ok(
            NAME,
            format!("{path}, no key yet: the first start generates one"),
        ),
    }
}

pub(super) fn disk(host: &Facts) -> Check {
    const NAME: &str = "free disk";
    let Some(free) = host.state.free_bytes else {
        return unknown(NAME, "the file system");
    };
    let full = |found: String, level| {
        check(NAME, level, found)
            .why("without free space, run-time settings are refused and messages are deferred")
            .fix("free disk space, lower inbox.bytes_max, or --state-dir on another file system")
    };
    if host.state.free_files == Some(0) {
        return full("no inodes are free".to_owned(), Level::Fail);
    }
    if free < FREE_MIN {
        return full(format!("{} are free", bytes(free)), Level::Fail);
    }
    let needed = host
        .inbox_bytes_max
        .unwrap_or(0)
        .saturating_add(FREE_BESIDE);
    if free < needed {
        let found = format!(
            "{} are free, a full inbox needs {}",
            bytes(free),
            bytes(needed)
        );
        return full(found, Level::Warn);
    }
    ok(NAME, format!("{} are free", bytes(free)))
}

pub(super) fn clock(host: &Facts) -> Check {
    const NAME: &str = "clock";
    match host.clock_synchronised {
        None => unknown(NAME, "adjtimex"),
        Some(true) => ok(NAME, "synchronised"),
        Some(false) => check(NAME, Level::Warn, "not synchronised")
            .why(
                "sessions and routes use monotonic time, so the node runs; but other nodes ignore announcements of a \
                 node whose clock was set back until it catches up, and times in logs are wrong",
            )
            .fix("run chrony or systemd-timesyncd"),
    }
}
