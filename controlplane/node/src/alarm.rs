//! Sleeps with the resolution of the kernel's timers.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use super::attachment::watch;

/// Sleeps shorter than this use a timerfd: the runtime's clock counts milliseconds and rounds up.
const SHORT: Duration = Duration::from_millis(4);

/// A timerfd.
pub(super) struct Alarm {
    /// `None` where the kernel refused one; the runtime's clock is used then.
    timer: Option<AsyncFd<OwnedFd>>,
}

impl Alarm {
    pub(super) fn new() -> Self {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).ok();
        Self {
            timer: timer.and_then(|timer| watch(timer).ok()),
        }
    }

    pub(super) async fn sleep(&self, wait: Duration) {
        let timer = self.timer.as_ref().filter(|_| wait < SHORT);
        let set = timer.filter(|timer| {
            let time = Itimerspec {
                it_interval: Timespec::default(),
                it_value: Timespec {
                    tv_sec: 0,
                    tv_nsec: wait.subsec_nanos().max(1).into(),
                },
            };
            timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &time).is_ok()
        });
        match set {
            Some(timer) => {
                // Setting it again clears an expiry not read; an error ends the sleep.
                if let Ok(mut ready) = timer.readable().await {
                    ready.clear_ready();
                }
            }
            None => tokio::time::sleep(wait).await,
        }
    }
}
