//! Description of the machine, without which results are meaningless.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Properties of a machine that affect results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    /// Cores that this program may use.
    pub(crate) cores: usize,
    /// Instruction set extensions that determine the speed of ciphers.
    pub(crate) features: Vec<String>,
    /// Runs under a hypervisor.
    pub(crate) guest: bool,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let lines = info.lines().filter_map(|line| line.split_once(':'));
            let mut values = lines.filter(|(key, _)| key.trim() == name);
            values.next().map_or("", |(_, value)| value.trim())
        };
        let model = match field("model name") {
            "" => std::env::consts::ARCH,
            model => model,
        };
        let numbers = ["cpu family", "model", "stepping"].map(field);
        let cpu = if numbers.contains(&"") {
            model.to_owned()
        } else {
            format!("{model} ({})", numbers.join("/"))
        };
        // "Features" on ARM.
        let flags = format!("{} {}", field("flags"), field("Features"));
        let has = |name: &&str| flags.split(' ').any(|flag| flag == *name);
        let telling = ["aes", "vaes", "avx2", "avx512f", "pmull"];
        let name = rustix::system::uname();
        let total = rustix::system::sysinfo();
        Self {
            cpu,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            features: telling.into_iter().filter(has).map(str::to_owned).collect(),
            guest: has(&"hypervisor"),
            memory_mib: (total.totalram * u64::from(total.mem_unit)) >> 20,
            kernel: name.release().to_string_lossy().into_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            cores,
            features,
            guest,
            memory_mib,
            kernel,
        } = self;
        let guest = if *guest { ", virtual" } else { "" };
        let features = features.join(" ");
        let gib = memory_mib.div_ceil(1024);
        write!(
            f,
            "{cpu}, {features}, {cores} cores{guest}, {gib} GiB, Linux {kernel}"
        )
    }
}

/// Now, UTC, to the second: `2026-01-31T12:00:00Z`.
pub(crate) fn date() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    format_date(since.map_or(0, |since| since.as_secs()))
}

fn format_date(seconds: u64) -> String {
    let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let day = days + 1;
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_772_323_200, "2026-03-01T00:00:00Z"),
        ] {
            assert_eq!(format_date(seconds), date);
        }
    }

    #[test]
    fn the_machine_has_a_kernel_and_a_core() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && !machine.kernel.is_empty() && !machine.cpu.is_empty());
    }
}
