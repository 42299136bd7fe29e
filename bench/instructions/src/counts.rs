//! Counts instructions with valgrind and compares them with the committed counts.
//!
//! Valgrind emulates one processor for all programs if the real one has AVX2, so counts do not depend on the machine.
//! They depend on the versions of compiler and valgrind: with other versions, the comparison is printed and never
//! fails.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::scenarios::SCENARIOS;

/// Growth that fails the check, percent.
const GROWTH_MAX: f64 = 3.0;

/// Environment that counts depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tools {
    compiler: String,
    valgrind: String,
    /// Version of the C library, whose memory functions are counted too.
    libc: String,
    processor: String,
}

impl fmt::Display for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            compiler,
            valgrind,
            libc,
            processor,
        } = self;
        write!(f, "{compiler}, {valgrind}, libc {libc}, {processor}")
    }
}

/// Instructions per operation, and their environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Counts {
    tools: Tools,
    instructions: BTreeMap<String, f64>,
}

/// Counts, and compares the result with a file.
pub(crate) fn check(file: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let committed: Counts = serde_json::from_str(&text).context("committed counts")?;
    let now = count()?;
    let grown = compare(&committed, &now)?;
    let accept = format!(
        "cargo run --release -p hyphae-instructions -- accept {}",
        file.display()
    );
    if committed.tools != now.tools {
        eprintln!(
            "SKIPPED: counted with {}, but committed with {}: growth fails nothing; to hold against these tools \
             from now on: {accept}",
            now.tools, committed.tools
        );
        return Ok(());
    }
    ensure!(
        grown.is_empty(),
        "more instructions than committed, by over {GROWTH_MAX} %: {}. If that is worth it, say why in \
         the commit and commit the new counts: {accept}",
        grown.join(", ")
    );
    Ok(())
}

/// Counts, and writes a file.
pub(crate) fn accept(file: &Path) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(&count()?)?;
    std::fs::write(file, text + "\n").with_context(|| file.display().to_string())
}

/// Prints both; returns the scenarios whose counts have grown too much.
fn compare(committed: &Counts, now: &Counts) -> anyhow::Result<Vec<String>> {
    let (mut grown, mut out) = (Vec::new(), std::io::stdout());
    writeln!(
        out,
        "{:<24} {:>10} {:>10} {:>8}",
        "instructions per", "committed", "now", "change"
    )?;
    for (name, count) in &now.instructions {
        let Some(before) = committed.instructions.get(name) else {
            writeln!(out, "{name:<24} {:>10} {count:>10.1} {:>8}", "-", "new")?;
            continue;
        };
        let percent = (count / before - 1.0) * 100.0;
        writeln!(
            out,
            "{name:<24} {before:>10.1} {count:>10.1} {percent:>+7.1}%"
        )?;
        if percent > GROWTH_MAX {
            grown.push(format!("{name} {percent:+.1} %"));
        } else if percent < -GROWTH_MAX {
            writeln!(out, "{:<24} `accept` records it as the new baseline", "")?;
        }
    }
    Ok(grown)
}

fn count() -> anyhow::Result<Counts> {
    let tools = tools()?;
    let directory =
        std::env::temp_dir().join(format!("hyphae-instructions-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let counted = SCENARIOS
        .iter()
        .map(|scenario| anyhow::Ok(((*scenario).to_owned(), one(scenario, &directory)?)));
    let instructions = counted.collect::<anyhow::Result<_>>();
    std::fs::remove_dir_all(&directory)?;
    Ok(Counts {
        tools,
        instructions: instructions?,
    })
}

fn tools() -> anyhow::Result<Tools> {
    let libc = said(Command::new("ldd").arg("--version"))?;
    let libc = libc
        .lines()
        .next()
        .and_then(|line| line.split(' ').next_back());
    Ok(Tools {
        compiler: said(Command::new("rustc").arg("--version"))?,
        valgrind: said(Command::new("valgrind").arg("--version"))
            .context("valgrind is needed (Debian: apt-get install valgrind)")?,
        libc: libc.unwrap_or_default().to_owned(),
        processor: processor(),
    })
}

/// Properties of the processor that are visible under valgrind.
fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    let wide =
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("aes");
    #[cfg(not(target_arch = "x86_64"))]
    let wide = false;
    let wide = if wide { " with AVX2 and AES" } else { "" };
    format!("{}{wide}", std::env::consts::ARCH)
}

/// Instructions per operation of one scenario.
fn one(scenario: &str, directory: &Path) -> anyhow::Result<f64> {
    let out = directory.join(scenario);
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--toggle-collect=*counted*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["run", scenario]);
    let operations: f64 = said(&mut command)?
        .parse()
        .context("a number of operations")?;
    let text = std::fs::read_to_string(&out)?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let instructions: f64 = totals.context("callgrind's totals")?.trim().parse()?;
    if instructions == 0.0 || operations == 0.0 {
        bail!("{scenario}: nothing was counted");
    }
    // Compared with a resolution of a tenth.
    Ok((instructions / operations * 10.0).round() / 10.0)
}

/// Standard output of a program.
fn said(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, f64)]) -> Counts {
        let each = of.iter().map(|(name, count)| ((*name).to_owned(), *count));
        Counts {
            tools: Tools {
                compiler: String::new(),
                valgrind: String::new(),
                libc: String::new(),
                processor: processor(),
            },
            instructions: each.collect(),
        }
    }

    #[test]
    fn only_growth_beyond_the_limit_is_reported() {
        let committed = counts(&[("a", 100.0), ("b", 100.0), ("c", 100.0)]);
        let now = counts(&[("a", 102.9), ("b", 103.2), ("c", 50.0), ("new", 1.0)]);
        assert_eq!(compare(&committed, &now).unwrap(), ["b +3.2 %"]);
    }
}
