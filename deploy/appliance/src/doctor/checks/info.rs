//! Facts that are no problem by themselves.

use super::ok;
use crate::doctor::Check;
use crate::doctor::facts::Facts;

/// How callers over TCP are authenticated, and the limits of that.
fn rpc_callers(host: &Facts) -> Check {
    const NAME: &str = "RPC callers over TCP";
    if host.rpc.is_empty() {
        return ok(NAME, "none: RPC over TCP is off");
    }
    let places: Vec<_> = host.rpc.iter().map(ToString::to_string).collect();
    let token = if host.rpc_token { ", or the token" } else { "" };
    let found = format!(
        "{}: by their user{token}. Root in a container on this host's network counts as root, and so does every \
         client of a proxy that runs as root; `--rpc off` leaves rpc.sock only",
        places.join(", ")
    );
    ok(NAME, found)
}

pub(super) fn informational(host: &Facts) -> Vec<Check> {
    let mut checks = vec![rpc_callers(host)];
    if !host.governors.is_empty() {
        let governors: Vec<_> = host.governors.iter().map(String::as_str).collect();
        let note = match governors.as_slice() {
            ["performance"] => "",
            _ => ": `cpupower frequency-set -g performance` reduces latency variation",
        };
        checks.push(ok(
            "CPU governor",
            format!("{}{note}", governors.join(", ")),
        ));
    }
    if let Some(polled) = host.idle_polled {
        let note = match polled {
            0 => {
                ": the hypervisor may need tens of microseconds to wake an idle core; where latency matters more \
                  than idle power, `echo 200000 > /sys/module/haltpoll/parameters/guest_halt_poll_ns`"
            }
            _ => "",
        };
        let found = format!("a virtual core polls for {polled} ns before it halts{note}");
        checks.push(ok("idle cores", found));
    }
    let isolated = host.isolated.as_deref().unwrap_or_default();
    let found = match isolated {
        "" => "none; workers share their cores with other processes".to_owned(),
        cores => format!("{cores}; assign them to workers with `cores`"),
    };
    checks.push(ok("isolated cores", found));
    if let Some(pages) = &host.huge_pages {
        let chosen = pages.split(['[', ']']).nth(1).unwrap_or(pages);
        checks.push(ok(
            "huge pages",
            format!("{chosen}; packet buffers do not use them"),
        ));
    }
    checks
}
