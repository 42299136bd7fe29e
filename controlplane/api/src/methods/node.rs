//! The node as a whole: state, probes, drain, shutdown.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::{
    Dataplane, DrainParams, Info, PingParams, Pong, Status, TraceHop, TraceOutcome, TraceParams,
    Worker,
};
use hyphae_shm::StatsReader;
use hyphae_shm::attach::Hello;
use hyphae_shm::stats::{Counter, DropReason, counter_at, drop_at};
use hyphae_wire::Suite;
use hyphae_wire::report::ReportCode;
use serde_json::value::RawValue;

use crate::context::Dispatcher;
use crate::error::{invalid, no_answer, not_committed, not_routing};
use crate::params::overlay_address;
use crate::reply::{Outcome, ok_true, value};
use hyphae_node::request::Request;

/// Longest wait of a ping or trace.
const PROBE_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Delay of the shutdown after the answer to `node.shutdown`.
const SHUTDOWN_DELAY: Duration = Duration::from_millis(100);

/// The OpenRPC document, rendered once.
pub(crate) fn document() -> &'static RawValue {
    static DOCUMENT: LazyLock<Box<RawValue>> =
        LazyLock::new(|| value(hyphae_rpc::openrpc()).unwrap_or_default());
    &DOCUMENT
}

impl Dispatcher {
    pub(crate) fn info(&self) -> Outcome {
        value(self.info_value())
    }

    fn info_value(&self) -> Info {
        Info {
            node_subnet: self.key.address().subnet().to_string(),
            node_ip: self.key.address().to_string(),
            node_pubkey: self.key.to_string(),
            node_start_time: self.started_unix,
        }
    }

    pub(crate) async fn status(&self) -> Outcome {
        let view = self.ask(Request::Status).await?;
        let (counters, drops) = totals(&view.workers);
        let offered = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305].into_iter();
        let offered = offered.filter(|suite| view.suites.contains(*suite));
        let dataplane = view.dataplane.as_ref();
        value(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            info: self.info_value(),
            pid: std::process::id(),
            uptime: view.uptime.as_secs(),
            uptime_seconds: view.uptime.as_secs(),
            dataplane: dataplane.map(|(hello, uptime)| rendered(hello, *uptime)),
            host_problem: view.host_problem,
            mtu: view.mtu,
            suites: offered.map(|suite| suite.to_string()).collect(),
            peers_up: view.peers_up,
            peers: view.peers,
            sessions: view.sessions,
            routes: view.routes,
            drained: view.drained,
            controlplane_restarts: view.controlplane_restarts,
            dataplane_restarts: view.dataplane_restarts,
            counters,
            drops,
        })
    }

    pub(crate) async fn ping(&self, params: PingParams) -> Outcome {
        let _wait = self.wait()?;
        let (address, timeout) = (
            overlay_address(&params.address)?,
            timeout(params.timeout_ms),
        );
        let rtt = self.ask(|reply| Request::Ping(address, timeout, reply));
        value(Pong {
            rtt_micros: micros(rtt.await?.map_err(no_answer)?),
        })
    }

    pub(crate) async fn trace(&self, params: TraceParams) -> Outcome {
        let _wait = self.wait()?;
        let hop_limit = params.hop_limit;
        if hop_limit == 0 {
            return Err(invalid("hopLimit is 0; it counts from 1, the next node"));
        }
        let (address, timeout) = (
            overlay_address(&params.address)?,
            timeout(params.timeout_ms),
        );
        let answer = self.ask(|reply| Request::Trace(address, hop_limit, timeout, reply));
        let answer = answer.await?.map_err(no_answer)?;
        value(TraceHop {
            outcome: match answer.code {
                ReportCode::Reached => TraceOutcome::Reached,
                ReportCode::HopLimit => TraceOutcome::HopLimit,
                ReportCode::NoRoute => TraceOutcome::NoRoute,
                ReportCode::TooBig => TraceOutcome::TooBig,
            },
            address: answer.key.address().to_string(),
            pubkey: answer.key.to_string(),
            rtt_micros: micros(answer.rtt),
        })
    }

    pub(crate) async fn drain(&self, params: DrainParams) -> Outcome {
        let mut change = self.files.drain.change().await;
        change.overwrite();
        if !self.ask(Request::IsRouting).await? {
            return Err(not_routing());
        }
        change.new.drained = params.on;
        change.commit().await.map_err(not_committed)?;
        self.ask(|reply| Request::SetDrained(params.on, reply))
            .await?;
        ok_true()
    }

    /// Ends the node after [`SHUTDOWN_DELAY`], in which the answer is sent.
    pub(crate) fn shut_down(&self) -> Outcome {
        if let Err(how) = &self.shutdown {
            return Err(Error::new(code::NOT_STOPPED, how.clone()));
        }
        if !self.shut_down.swap(true, Ordering::Relaxed) {
            tracing::info!("node is shut down by a call");
            let node = self.node.clone();
            tokio::spawn(async move {
                tokio::time::sleep(SHUTDOWN_DELAY).await;
                node.shut_down().await;
            });
        }
        ok_true()
    }

    /// Whether a call has ended the node.
    pub fn is_shut_down(&self) -> bool {
        self.shut_down.load(Ordering::Relaxed)
    }
}

fn timeout(ms: u64) -> Duration {
    Duration::from_millis(ms).min(PROBE_TIMEOUT_MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Counters and drops that are not zero, summed over workers.
fn totals(workers: &[StatsReader]) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
    let (mut counters, mut drops) = (BTreeMap::new(), BTreeMap::new());
    for all in workers.iter().map(StatsReader::counters) {
        for counter in Counter::ALL {
            *counters.entry(counter.name().to_owned()).or_default() += all[counter_at(*counter)];
        }
        for reason in DropReason::ALL {
            *drops.entry(reason.name().to_owned()).or_default() += all[drop_at(*reason)];
        }
    }
    counters.retain(|_, total| *total != 0);
    drops.retain(|_, total| *total != 0);
    (counters, drops)
}

fn rendered(hello: &Hello, uptime: Duration) -> Dataplane {
    let workers = hello.ports.iter().zip(&hello.cores);
    let workers = workers.take(hello.workers.get().into());
    Dataplane {
        pid: hello.pid.get(),
        uptime: uptime.as_secs(),
        uptime_seconds: uptime.as_secs(),
        driver: hello.driver().to_owned(),
        driver_reason: hello.driver_reason().to_owned(),
        workers: workers
            .map(|(port, core)| Worker {
                port: port.get(),
                core: Some(core.get()).filter(|core| *core != u16::MAX),
            })
            .collect(),
        tun: hello.tun_name().map(str::to_owned),
        generation: hello.generation.get(),
        socket_receive_bytes: hello.socket_receive_bytes.get(),
        aes_hardware: hello.aes_hardware != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_rendered_once() {
        assert!(document().get().contains("\"openrpc\""));
        assert!(std::ptr::eq(document(), document()));
    }
}
