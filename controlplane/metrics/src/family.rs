//! A metric family: declared once, with the function that reads its series.

use std::fmt::{Display, Write};
use std::time::Duration;

/// Type of a family in Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Name, type, labels and help of a family.
#[derive(Clone, Debug)]
pub(crate) struct Head<Name = &'static str> {
    pub(crate) name: Name,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

impl<Name: AsRef<str>> Head<Name> {
    /// Begins a family: `HELP` and `TYPE`, also of one without series, so that the set of families is constant.
    pub(crate) fn series<'a>(&'a self, text: &'a mut String) -> Series<'a> {
        let (name, help, kind) = (self.name.as_ref(), self.help, self.kind.name());
        // Writing into memory does not fail, here and below.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Series {
            name,
            labels: self.labels,
            text,
        }
    }
}

/// A family, and the function that reads its series from a source.
pub(crate) struct Family<Source: 'static> {
    pub(crate) head: Head,
    read: fn(&Source, &mut Series<'_>),
}

impl<Source> Family<Source> {
    const fn new(
        kind: Kind,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        read: fn(&Source, &mut Series<'_>),
    ) -> Self {
        let head = Head {
            name,
            kind,
            labels,
            help,
        };
        Self { head, read }
    }

    pub(crate) fn render(&self, source: &Source, text: &mut String) {
        (self.read)(source, &mut self.head.series(text));
    }
}

pub(crate) const fn counter<Source>(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Source, &mut Series<'_>),
) -> Family<Source> {
    Family::new(Kind::Counter, name, labels, help, read)
}

pub(crate) const fn gauge<Source>(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Source, &mut Series<'_>),
) -> Family<Source> {
    Family::new(Kind::Gauge, name, labels, help, read)
}

pub(crate) const fn histogram<Source>(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Source, &mut Series<'_>),
) -> Family<Source> {
    Family::new(Kind::Histogram, name, labels, help, read)
}

/// The series of a family, in the text format. Values of labels need no escapes.
pub(crate) struct Series<'a> {
    name: &'a str,
    labels: &'static [&'static str],
    text: &'a mut String,
}

impl Series<'_> {
    /// One series: the values of its labels in their order, and its own.
    pub(crate) fn set(&mut self, labels: &[&str], value: impl Display) {
        debug_assert_eq!(labels.len(), self.labels.len(), "{}", self.name);
        self.text.push_str(self.name);
        for (n, (label, value)) in self.labels.iter().zip(labels).enumerate() {
            let before = if n == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{label}=\"{value}\"");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{after} {value}");
    }

    /// Both series of a family with the label `direction`.
    pub(crate) fn directions(&mut self, out: u64, inbound: u64) {
        self.set(&["out"], out);
        self.set(&["in"], inbound);
    }

    /// Median, p90 and largest of some times, in seconds; none of none.
    pub(crate) fn quantiles(&mut self, times: &[Duration]) {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let Some(last) = sorted.len().checked_sub(1) else {
            return;
        };
        for (quantile, at) in [("0.5", last / 2), ("0.9", last * 9 / 10), ("1", last)] {
            self.set(&[quantile], sorted[at].as_secs_f64());
        }
    }

    /// The histogram of one worker: upper bounds and cumulative counts of its buckets.
    pub(crate) fn histogram<'b>(
        &mut self,
        worker: &str,
        buckets: impl Iterator<Item = (&'b u64, u64)>,
        sum: u64,
        count: u64,
    ) {
        let name = self.name;
        for (bound, below) in buckets {
            let _ = writeln!(
                self.text,
                "{name}_bucket{{worker=\"{worker}\",le=\"{bound}\"}} {below}"
            );
        }
        let _ = writeln!(
            self.text,
            "{name}_bucket{{worker=\"{worker}\",le=\"+Inf\"}} {count}\n\
             {name}_sum{{worker=\"{worker}\"}} {sum}\n\
             {name}_count{{worker=\"{worker}\"}} {count}"
        );
    }
}
