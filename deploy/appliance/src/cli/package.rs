//! Manual pages and completions for packages, generated from the definition of the command line.

use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

use super::Cli;

/// Writes manual pages into `man` below a directory, and completions beside it.
pub(crate) fn write(directory: &Path) -> anyhow::Result<()> {
    let man = directory.join("man");
    std::fs::create_dir_all(&man).with_context(|| man.display().to_string())?;
    clap_mangen::generate_to(Cli::command(), &man).context("manual pages")?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "hyphae", directory).context("completions")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_command_has_a_page_and_every_shell_its_completions() {
        let directory = tempfile::tempdir().unwrap();
        super::write(directory.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        for name in ["man/hyphae.1", "man/hyphae-up.1", "man/hyphae-peer-add.1"] {
            assert!(read(name).contains(".TH"), "{name}");
        }
        assert!(read("man/hyphae-up.1").contains("listen"));
        for name in ["hyphae.bash", "_hyphae", "hyphae.fish"] {
            assert!(read(name).contains("drain"), "{name}");
        }
    }
}
