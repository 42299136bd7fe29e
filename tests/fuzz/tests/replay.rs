//! Every target over its corpus and over seeded mutations of it, on every `cargo test`. What
//! libFuzzer finds with its harnesses (docs/testing.md) is committed to the corpus and stays fixed.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use hyphae_test_fuzz::{TARGETS, Target};

/// Mutations tried per target.
const MUTATIONS: u64 = 20_000;
/// Longest input that a mutation grows to.
const LEN_MAX: usize = 4096;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = folder("corpus").join(target.name);
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
        .into_iter()
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

fn run(target: &Target, input: &[u8], origin: &str) {
    // Targets keep nothing between calls.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("target {}, {origin}, input {hex}", target.name);
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn corpus_passes() {
    for target in TARGETS {
        run(target, &[], "no bytes");
        for (path, input) in corpus(target) {
            run(target, &input, &path.display().to_string());
        }
    }
}

#[test]
fn mutations_of_the_corpus_pass() {
    std::thread::scope(|scope| {
        for target in TARGETS {
            scope.spawn(move || mutate_all(target));
        }
    });
}

fn mutate_all(target: &Target) {
    let corpus: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, input)| input).collect();
    for case in 0..MUTATIONS {
        let mut random = Random(case ^ 0x9e37_79b9_7f4a_7c15);
        let mut input = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut input, &corpus, &mut random);
            input.truncate(LEN_MAX);
        }
        run(target, &input, &format!("mutation {case}"));
    }
}

/// One small change, of the kinds that parsers get wrong.
fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    const EDGES: [u64; 10] = [
        0,
        1,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0xffff,
        u64::MAX,
        u64::MAX >> 1,
    ];
    let at = random.below(input.len() + 1);
    match random.below(8) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.next().to_le_bytes()[0],
        2 => {
            let mut value = EDGES[random.below(EDGES.len())].to_le_bytes();
            let width = (1usize << random.below(4)).min(input.len() - at);
            if random.below(2) == 0 {
                value[..width].reverse();
            }
            input[at..at + width].copy_from_slice(&value[..width]);
        }
        3 => input.truncate(at),
        4 => {
            let other = &corpus[random.below(corpus.len())];
            input.truncate(at);
            input.extend(&other[random.below(other.len() + 1)..]);
        }
        5 => {
            let piece = input[at..(at + random.below(64)).min(input.len())].to_vec();
            let to = random.below(input.len() + 1);
            input.splice(to..to, piece);
        }
        6 => _ = input.drain(at..(at + 1 + random.below(16)).min(input.len())),
        _ => {
            let bytes: Vec<u8> = (0..random.below(32))
                .map(|_| random.next().to_le_bytes()[0])
                .collect();
            input.splice(at..at, bytes);
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }
}

/// A target without a corpus or a harness, and the other way round, is a mistake.
#[test]
fn targets_corpus_and_harnesses_belong_together() {
    let names: BTreeSet<String> = TARGETS
        .iter()
        .map(|target| target.name.to_owned())
        .collect();
    assert_eq!(names.len(), TARGETS.len());
    let listed = |path: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder(path)).unwrap();
        let stems = entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_owned());
        stems.map(|stem| stem.into_string().unwrap()).collect()
    };
    assert_eq!(listed("corpus"), names);
    assert_eq!(listed("libfuzzer/fuzz_targets"), names);
    let manifest = std::fs::read_to_string(folder("libfuzzer/Cargo.toml")).unwrap();
    for name in names {
        assert!(
            manifest.contains(&format!("name = \"{name}\"\n")),
            "harness {name}"
        );
    }
}
