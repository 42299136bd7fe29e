//! The ciphers of the packet path.

use std::hint::black_box;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use clap::Args as ClapArgs;
use hyphae_aead::{Aead, LinkAead};
use hyphae_wire::Suite;
use hyphae_wire::frame::{OVERHEAD, TAG_LEN, nonce};

use super::{Round, nanos, timed};
use crate::output::{Measured, show_measured};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Bytes that are encrypted, a packet at a time.
    #[arg(long, value_delimiter = ',', default_value = "56,64,512,1400")]
    sizes: Vec<usize>,
    /// Frames of a train whose link parts, 56 bytes each, are sealed and opened at once.
    #[arg(long, value_delimiter = ',', default_value = "1,2,8,64")]
    trains: Vec<usize>,
    /// Seconds per row.
    #[arg(long, default_value_t = 0.2)]
    seconds: f64,
}

/// As in a frame: link header and end-to-end tag.
const AAD: [u8; 32] = [3; 32];
const KEY: [u8; 32] = [7; 32];
/// Messages of one round.
const MESSAGES: u64 = 64;

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let time = Duration::from_secs_f64(args.seconds);
    let mut rows = Vec::new();
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for size in &args.sizes {
            eprintln!("{suite}, {size} bytes");
            rows.extend(measure(suite, *size, time)?);
        }
        for frames in &args.trains {
            eprintln!("{suite}, link parts of {frames} frames");
            rows.extend(link_parts(suite, *frames, time)?);
        }
    }
    show_measured(
        "aead",
        &rows,
        "aws-lc-rs itself, same key and nonces; of link parts: one after the other",
        json,
    )
}

/// Every message with room for its tag.
struct Messages {
    bytes: Vec<Vec<u8>>,
    size: usize,
}

impl Messages {
    fn new(size: usize) -> Self {
        let one = vec![0x5a; size + TAG_LEN];
        let bytes = vec![one; usize::try_from(MESSAGES).unwrap_or(0)];
        Self { bytes, size }
    }

    fn seal(&mut self, seal: impl Fn(u64, &mut [u8]) -> anyhow::Result<[u8; TAG_LEN]>) -> Round {
        let size = self.size;
        let (result, took) = timed(|| {
            for (counter, message) in (0..).zip(&mut self.bytes) {
                let (text, tag) = message.split_at_mut(size);
                tag.copy_from_slice(&seal(counter, black_box(text))?);
            }
            anyhow::Ok(())
        });
        result?;
        Ok((MESSAGES, took))
    }

    /// Opens what `seal` sealed, in place; it is sealed before every round.
    fn open(
        &mut self,
        seal: impl Fn(u64, &mut [u8]) -> anyhow::Result<[u8; TAG_LEN]>,
        open: impl Fn(u64, &mut [u8]) -> anyhow::Result<()>,
    ) -> Round {
        self.seal(seal)?;
        let (result, took) = timed(|| {
            let mut messages = (0..).zip(&mut self.bytes);
            messages.try_for_each(|(counter, message)| open(counter, black_box(message)))
        });
        result?;
        ensure!(self.bytes[0][0] == 0x5a, "what was sealed is there again");
        Ok((MESSAGES, took))
    }
}

fn measure(suite: Suite, size: usize, time: Duration) -> anyhow::Result<[Measured; 2]> {
    let algorithm = match suite {
        Suite::Aes256Gcm => &AES_256_GCM,
        Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    };
    let refused = |_| anyhow!("the cipher refuses");
    let bare = LessSafeKey::new(UnboundKey::new(algorithm, &KEY).map_err(refused)?);
    let bare_nonce = |counter| Nonce::assume_unique_for_key(nonce(counter));
    let bare_seal = |counter, text: &mut [u8]| {
        let tag = bare.seal_in_place_separate_tag(bare_nonce(counter), Aad::from(AAD), text);
        let mut out = [0; TAG_LEN];
        out.copy_from_slice(tag.map_err(refused)?.as_ref());
        Ok(out)
    };
    let bare_open = |counter, message: &mut [u8]| {
        let opened = bare.open_in_place(bare_nonce(counter), Aad::from(AAD), message);
        opened.map(drop).map_err(refused)
    };
    let ours = Aead::new(suite, &KEY);
    let our_seal = |counter, text: &mut [u8]| Ok(ours.seal(counter, &AAD, text));
    let our_open = |counter, message: &mut [u8]| Ok(ours.open(counter, &AAD, message)?);
    let (mut a, mut b) = (Messages::new(size), Messages::new(size));
    let seal = nanos(time, [&mut || a.seal(our_seal), &mut || b.seal(bare_seal)])?;
    ensure!(a.bytes == b.bytes, "both seal the same");
    let (mut a, mut b) = (Messages::new(size), Messages::new(size));
    let open = nanos(
        time,
        [&mut || a.open(our_seal, our_open), &mut || {
            b.open(bare_seal, bare_open)
        }],
    )?;
    let row = |what, [own, base]: [f64; 2]| {
        let row = Measured::new(what, suite.to_string(), own, "ns").size(size);
        row.against(base)
            .note(format!("{:.2} GB/s", size as f64 / own))
    };
    Ok([row("seal", seal), row("open", open)])
}

/// Link parts of a train, all in one call against one by one.
fn link_parts(suite: Suite, frames: usize, time: Duration) -> anyhow::Result<[Measured; 2]> {
    const SEGMENT: usize = OVERHEAD + 64;
    // One train is shorter than the resolution of the clock.
    const ROUNDS: usize = 32;
    ensure!((1..=64).contains(&frames), "a train has 1 to 64 frames");
    let keys = [LinkAead::new, LinkAead::one_by_one].map(|new| new(suite, &KEY));
    let plain: Vec<u8> = (0..ROUNDS * frames)
        .flat_map(|counter| {
            let mut frame = [0x5a; SEGMENT];
            frame[8..16].copy_from_slice(&(counter as u64).to_le_bytes());
            frame
        })
        .collect();
    let seal = |key: &LinkAead| {
        let mut bytes = plain.clone();
        let ((), took) = timed(|| {
            for train in bytes.chunks_mut(frames * SEGMENT) {
                key.seal(black_box(train), SEGMENT);
            }
        });
        (bytes, took)
    };
    let open = |key: &LinkAead| {
        let (mut bytes, _) = seal(key);
        let mut authentic = [false; 64];
        let (all, took) = timed(|| {
            bytes.chunks_mut(frames * SEGMENT).all(|train| {
                key.open(black_box(train), SEGMENT, &mut authentic);
                authentic[..frames].iter().all(|authentic| *authentic)
            })
        });
        ensure!(all, "what was sealed opens");
        Ok(((ROUNDS * frames) as u64, took))
    };
    let [ours, base] = &keys;
    ensure!(seal(ours).0 == seal(base).0, "both seal the same");
    let count = (ROUNDS * frames) as u64;
    let seal = nanos(
        time,
        [&mut || Ok((count, seal(ours).1)), &mut || {
            Ok((count, seal(base).1))
        }],
    )?;
    let open = nanos(time, [&mut || open(ours), &mut || open(base)])?;
    let row = |what, [own, base]: [f64; 2]| {
        let row = Measured::new(what, suite.to_string(), own, "ns").size(frames);
        row.against(base).note(format!("of {frames} frames"))
    };
    Ok([row("seal link parts", seal), row("open link parts", open)])
}
