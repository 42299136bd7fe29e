//! The log of a process: text or JSON on standard error, with a filter that can be changed at run time. Control
//! characters in values are escaped, because names, topics and errors come from other nodes. Write errors are ignored.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use anyhow::Context;
use hyphae_config::{Config, LogFormat};
use rustix::fs::fstat;
use tracing::field::Field;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use crate::text;

/// Replaces the filter; the error is that of [`check_level`].
pub(crate) type SetLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Parses a filter.
pub(crate) fn check_level(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(text).map_err(|error| {
        format!(
            "'{text}' is not a log filter ({error}): use error, warn, info, debug or trace, also by module"
        )
    })
}

/// Starts the log of this process.
pub(crate) fn start(config: &Config) -> anyhow::Result<SetLevel> {
    let filter = check_level(&config.log_level).map_err(anyhow::Error::msg)?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        // Internal errors would be printed to standard error, with a panic when that fails.
        .log_internal_errors(false);
    let lines = match config.log_format {
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true);
            lines.with_writer(|| JsonLines(io::stderr())).boxed()
        }
        LogFormat::Text => {
            let lines = lines.with_writer(io::stderr);
            let lines = lines.fmt_fields(debug_fn(field).delimited(" "));
            match to_journal() {
                true => lines.event_format(Journal).boxed(),
                false => lines.compact().boxed(),
            }
        }
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .context("log")?;
    Ok(Arc::new(move |level| {
        handle
            .reload(check_level(level)?)
            .map_err(|error| error.to_string())
    }))
}

/// Writes a field of an event: the message without, other fields with their names.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    let value = text::one_line(&value);
    match field.name() {
        "message" => writer.write_str(&value),
        name => write!(writer, "{name}={value}"),
    }
}

/// Writes JSON events with additional escapes for unsafe characters that JSON permits.
struct JsonLines<W>(W);

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let event_text = String::from_utf8_lossy(event);
        self.0.write_all(text::json(&event_text).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Whether standard error is connected to the journal, systemd.exec(5) `JOURNAL_STREAM`.
fn to_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    fstat(std::io::stderr())
        .is_ok_and(|file| device.parse() == Ok(file.st_dev) && inode.parse() == Ok(file.st_ino))
}

/// Lines for the journal: without time, with the level as a priority prefix, sd-daemon(3).
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (level, target) = (event.metadata().level(), event.metadata().target());
        write!(writer, "<{}>{target}: ", priority(*level))?;
        context
            .field_format()
            .format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Priority, syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::Mutex;
    use tracing_subscriber::fmt::MakeWriter;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Captured {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn journal_lines_have_priorities_and_no_time() {
        let captured = Captured::default();
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(captured.clone())
            .fmt_fields(debug_fn(field).delimited(" "))
            .event_format(Journal);
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(peer = 7, "peer is down");
            tracing::debug!("more");
        });
        let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        let target = module_path!();
        assert_eq!(
            text,
            format!("<4>{target}: peer is down peer=7\n<7>{target}: more\n")
        );
    }

    #[test]
    fn control_characters_in_values_are_escaped_in_both_formats() {
        let log = |json: bool| {
            let captured = Captured::default();
            let writer = captured.clone();
            let lines = tracing_subscriber::fmt::layer().with_ansi(false);
            let lines = match json {
                true => lines
                    .json()
                    .with_writer(move || JsonLines(writer.clone()))
                    .boxed(),
                false => lines
                    .with_writer(writer)
                    .fmt_fields(debug_fn(field).delimited(" "))
                    .boxed(),
            };
            let subscriber = tracing_subscriber::registry().with(lines);
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(topic = %"\x1b[2J\n<3>forged\u{9b}\u{202e}", "refused");
            });
            String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
        };
        let (lines, json) = (log(false), log(true));
        let shown = r"refused topic=\u{1b}[2J\n<3>forged\u{9b}\u{202e}";
        assert!(lines.trim_end().ends_with(shown), "{lines}");
        assert!(json.contains(r"\u001b[2J\n<3>forged\u009b\u202e"), "{json}");
        assert_eq!((lines.lines().count(), json.lines().count()), (1, 1));
    }

    #[test]
    fn an_invalid_filter_is_refused() {
        assert!(check_level("info,hyphae_overlay=debug").is_ok());
        assert!(check_level("info,=,").is_err() && check_level("loud=what").is_err());
    }
}
