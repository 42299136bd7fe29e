//! A flow of which no packet may be lost.

use std::net::{Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyphae::lab::Namespace;

use super::{TIMEOUT, eventually};

/// Datagrams that are sent one after the other and have to come back: one that is lost ends it.
pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Flow {
    pub(crate) fn start(from: &Namespace, to: &Namespace, address: Ipv6Addr) -> Self {
        let bound = |inside: &Namespace, at: Ipv6Addr| {
            let socket = inside
                .run(move || UdpSocket::bind((at, 0)))
                .unwrap()
                .unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            socket
        };
        let (echo, asking) = (bound(to, address), bound(from, Ipv6Addr::UNSPECIFIED));
        asking.connect(echo.local_addr().unwrap()).unwrap();
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let ended = Arc::clone(&stop);
        let echoes = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((len, from)) = echo.recv_from(&mut buffer) {
                    echo.send_to(&buffer[..len], from)
                        .map_err(|e| e.to_string())?;
                }
            }
            Ok(())
        });
        let (ended, count) = (Arc::clone(&stop), Arc::clone(&done));
        let asks = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            for n in 0u64.. {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                asking.send(&n.to_le_bytes()).map_err(|e| e.to_string())?;
                let deadline = Instant::now() + TIMEOUT;
                while asking.recv(&mut buffer).is_err() {
                    if Instant::now() > deadline {
                        return Err(format!("datagram {n} did not come back"));
                    }
                }
                if buffer[..8] != n.to_le_bytes() {
                    return Err(format!("not datagram {n} came back"));
                }
                count.store(n + 1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self {
            stop,
            done,
            threads: vec![echoes, asks],
        }
    }

    /// Waits until it has gone on for a while.
    pub(crate) fn goes_on(&self) {
        let from = self.done.load(Ordering::Relaxed);
        eventually("the flow goes on", 2 * TIMEOUT, || {
            self.done.load(Ordering::Relaxed) > from + 50
        });
    }

    pub(crate) fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        // Also when a test fails.
        self.stop.store(true, Ordering::Relaxed);
    }
}
