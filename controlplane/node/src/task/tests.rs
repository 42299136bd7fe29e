//! Covers turns with and without a dataplane. The engines have tests of their own; restarts of a real dataplane are in
//! tests/netns.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use hyphae_bus::topics::Topics;
use hyphae_bus::{Destination, Outgoing, Topic};
use hyphae_config::{DiscoveryMode, Overrides, Settings};
use hyphae_notify::Notifier;
use hyphae_overlay::Overlay;
use hyphae_shm::attach::{Hello, WELCOME, offer};
use hyphae_shm::{Doorbell, Layout, Segment};
use hyphae_store::inbox::{Found, Inbox, Limits};
use hyphae_wire::{PublicKey, SecretKey, WorkerId};
use tempfile::TempDir;
use tokio::sync::{broadcast, oneshot};

use super::*;
use crate::attachment::DATAPLANE_SOCKET;
use crate::builder::{Builder, Built, StoredSettings};
use crate::services::bus::BusParts;
use hyphae_host::discovery::{self, Discovery};

const PORT: u16 = 9670;
/// Code of an unknown record.
const UNKNOWN: u16 = 0xffff;

struct Lab {
    directory: TempDir,
    built: Built,
    inbox: Inbox,
    key: PublicKey,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let identity = SecretKey::generate().unwrap();
        let key = identity.public_key();
        let settings = Settings::load(None, &Overrides::default()).unwrap();
        let inbox = Inbox::in_memory(Limits {
            messages_max: 8,
            bytes_max: 1 << 20,
            completed_max: 8,
        });
        let inbox = inbox.unwrap();
        let overlay = hyphae_overlay::Config::new(identity.clone(), vec![PORT]);
        let builder = Builder {
            config: settings.config().unwrap(),
            overlay: Overlay::new(overlay, [1; 32]),
            identity,
            bus: BusParts {
                config: hyphae_bus::Config::new(key),
                seed: [7; 32],
                topics: Topics::default(),
                inbox: inbox.clone(),
                found: Found::default(),
            },
            ports: vec![PORT],
            aes_hardware: true,
            discovery: Discovery::start(
                discovery::DiscoverySettings {
                    mode: DiscoveryMode::Off,
                    port: 0,
                    node_port: PORT,
                    key,
                    network: None,
                    tun: None,
                },
                broadcast::channel(1).1,
            ),
            kernel_changes: broadcast::channel(1).0,
            socket_directory: directory.path().to_owned(),
            restarts: 0,
            watchdog: Watchdog::new(Notifier::from_environment()),
            stored: StoredSettings::default(),
        };
        Self {
            built: builder.build(monotonic()).unwrap(),
            directory,
            inbox,
            key,
        }
    }

    /// Attaches to a dataplane of one worker.
    async fn attach(&mut self) -> (Segment, UnixStream) {
        let (segment, memory) = Segment::create(Layout::new(1)).unwrap();
        let listener = UnixListener::bind(self.directory.path().join(DATAPLANE_SOCKET)).unwrap();
        let offering = std::thread::spawn(move || {
            let (lease, _) = listener.accept().unwrap();
            let mut hello = Hello::blank(WELCOME);
            (hello.workers, hello.ports[0]) = (1.into(), PORT.into());
            let bells = [(); 2].map(|()| Doorbell::new().unwrap().into_fd());
            let fds = [memory.as_fd(), bells[0].as_fd(), bells[1].as_fd()];
            offer(lease.as_fd(), &hello, &fds).unwrap();
            lease
        });
        let attachment = Attachment::connect(self.directory.path()).await.unwrap();
        assert!(self.built.task.attach(attachment).is_continue());
        (segment, offering.join().unwrap())
    }

    fn message_to_itself(&mut self) {
        let (reply, _) = oneshot::channel();
        let message = Outgoing {
            destination: Destination::Key(self.key),
            topic: Topic::default(),
            payload: b"x".to_vec().into(),
            digest: None,
            try_for: None,
            reply_within: None,
            failure: None,
        };
        self.built
            .task
            .handle_bus(BusRequest::Push { message, reply });
    }
}

#[tokio::test]
async fn a_turn_takes_records_up_to_its_budget() {
    let mut lab = Lab::new();
    let (segment, _lease) = lab.attach().await;
    let mut records = segment.punt_producer(WorkerId(0));
    for _ in 0..=PUNT_BUDGET {
        records.push(UNKNOWN, &[b"record"]).unwrap();
    }
    let _ = records.publish();
    assert_eq!(lab.built.task.turn(), Turn::More);
    assert_eq!(lab.built.task.pause(Turn::More), Duration::ZERO);
    assert_eq!(lab.built.task.turn(), Turn::Idle);
    assert!(lab.built.task.pause(Turn::Blocked) <= BACKLOG_RETRY);
    assert!(lab.built.task.pause(Turn::Idle) <= WAIT_MAX);
}

#[tokio::test]
async fn services_run_with_and_without_a_dataplane() {
    let mut lab = Lab::new();
    lab.message_to_itself();
    assert_eq!(lab.built.task.turn(), Turn::Idle);
    assert_eq!(lab.inbox.depth().0, 1);
    let (_segment, _lease) = lab.attach().await;
    lab.message_to_itself();
    assert_eq!(lab.built.task.turn(), Turn::Idle);
    assert_eq!(lab.inbox.depth().0, 2);
}

#[tokio::test]
async fn a_dataplane_that_ends_is_detached_from_and_retried() {
    let mut lab = Lab::new();
    let (_segment, lease) = lab.attach().await;
    drop(lease);
    let wakeup = lab.built.task.wait(WAIT_MAX).await;
    assert!(matches!(wakeup, Wakeup::Detached));
    assert!(lab.built.task.handle(wakeup).await.is_continue());
    assert!(lab.built.task.node.attachment.is_none());
    // The first attempt follows at once, others after an interval.
    assert_eq!(lab.built.task.pause(Turn::Idle), Duration::ZERO);
    assert!(lab.built.task.reattach().await.is_continue());
    assert_eq!(lab.built.task.pause(Turn::Idle), ATTACH_RETRY);
}

#[tokio::test]
async fn a_dataplane_that_offers_nothing_does_not_block_other_tasks() {
    let mut lab = Lab::new();
    let directory = lab.directory.path().join(DATAPLANE_SOCKET);
    let _listener = UnixListener::bind(directory).unwrap();
    tokio::select! {
        biased;
        _ = lab.built.task.reattach() => panic!("nothing was offered"),
        () = tokio::time::sleep(ATTACH_RETRY) => {}
    }
    assert!(lab.built.task.node.attachment.is_none());
}

#[tokio::test]
async fn a_dataplane_with_other_ports_ends_the_task() {
    let mut lab = Lab::new();
    let (_segment, _lease) = lab.attach().await;
    let attachment = lab.built.task.node.attachment.take();
    let mut attachment = attachment.unwrap();
    attachment.hello.ports[0] = (PORT + 1).into();
    assert!(lab.built.task.attach(attachment).is_break());
}
