//! Writes a page with plots from results.

mod page;
mod plots;
mod svg;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args as ClapArgs;

use crate::output::Document;

#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// Files with output of `--json`, or the `performance.json` of an earlier report.
    #[arg(required_unless_present = "run")]
    files: Vec<PathBuf>,
    /// Run all benchmarks now, for about 15 minutes; needs root and an idle machine.
    #[arg(long, conflicts_with = "files")]
    run: bool,
    /// Output directory of `performance.md`, `performance.json` and the plots in `performance/`.
    #[arg(long, default_value = "docs")]
    out: PathBuf,
}

/// Command lines of `--run`.
const RUNS: [&str; 12] = [
    "aead",
    "fib",
    "ring",
    "handshake",
    "scale",
    "rib --prefixes 1000,10000,100000",
    "transit --trains 1,4,16,64 --sizes 64,1292 --runs 1 --workers 1,2",
    "tunnel",
    "latency --samples 2000",
    "versus --streams 1 --samples 1000",
    "peers --peers 10,100,1000,10000 --settle 25 --seconds 5",
    "bus",
];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let documents = if args.run {
        measure()?
    } else {
        read(&args.files)?
    };
    ensure!(!documents.is_empty(), "nothing was measured");
    write(&args.out, &documents)
}

/// Runs this program for each command line.
fn measure() -> anyhow::Result<Vec<Document>> {
    crate::process::need_root()?;
    crate::process::hyphae(None)?;
    let start = Instant::now();
    let mut documents = Vec::new();
    for line in RUNS {
        eprintln!(
            "[{:.0} s] hyphae-bench {line}",
            start.elapsed().as_secs_f64()
        );
        let mut command = Command::new(std::env::current_exe()?);
        command.args(line.split(' ')).arg("--json");
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "`{line}`: {}; see its error above",
            output.status
        );
        documents.push(serde_json::from_slice(&output.stdout).context("output of the subcommand")?);
    }
    eprintln!("[{:.0} s] done", start.elapsed().as_secs_f64());
    Ok(documents)
}

fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for file in files {
        let name = || file.display().to_string();
        let text = std::fs::read_to_string(file).with_context(name)?;
        let many = text.trim_start().starts_with('[');
        if many {
            documents.extend(serde_json::from_str::<Vec<Document>>(&text).with_context(name)?);
        } else {
            documents.push(serde_json::from_str(&text).with_context(name)?);
        }
    }
    Ok(documents)
}

fn write(out: &Path, documents: &[Document]) -> anyhow::Result<()> {
    let folder = out.join("performance");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let plots = plots::all(documents)?;
    for plot in &plots {
        std::fs::write(folder.join(plot.file), &plot.svg)?;
    }
    std::fs::write(out.join("performance.md"), page::write(documents, &plots)?)?;
    let json = serde_json::to_string_pretty(documents)?;
    std::fs::write(out.join("performance.json"), json + "\n")?;
    eprintln!("written: {}", out.join("performance.md").display());
    Ok(())
}

/// The rows of one subcommand; none when it was not run.
fn rows_of<R: for<'a> serde::Deserialize<'a>>(
    documents: &[Document],
    bench: &str,
) -> anyhow::Result<Vec<R>> {
    match documents.iter().find(|document| document.bench == bench) {
        Some(document) => document.rows_as(),
        None => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests;
