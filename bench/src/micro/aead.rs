//! The ciphers of the packet path.

use std::hint::black_box;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use clap::Args as ClapArgs;
use hyphae_forward::Aead;
use hyphae_wire::Suite;
use hyphae_wire::frame::{TAG_LEN, nonce};

use super::{Turn, nanos, timed};
use crate::output::{Measured, show_measured};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Bytes that are encrypted; the 56 of a frame's headers are what a relay seals.
    #[arg(long, value_delimiter = ',', default_value = "56,64,512,1400")]
    sizes: Vec<usize>,
    /// Seconds per row.
    #[arg(long, default_value_t = 0.2)]
    seconds: f64,
}

/// As in a frame: link header and end-to-end tag.
const AAD: [u8; 32] = [3; 32];
const KEY: [u8; 32] = [7; 32];
/// Messages of one turn.
const MESSAGES: u64 = 64;

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let time = Duration::from_secs_f64(args.seconds);
    let mut rows = Vec::new();
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for size in &args.sizes {
            eprintln!("{suite}, {size} bytes");
            rows.extend(measure(suite, *size, time)?);
        }
    }
    show_measured("aead", &rows, "aws-lc-rs itself, same key and nonces", json)
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

    fn seal(&mut self, seal: impl Fn(u64, &mut [u8]) -> anyhow::Result<[u8; TAG_LEN]>) -> Turn {
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

    /// Opens what `seal` sealed, in place; it is sealed before every turn.
    fn open(
        &mut self,
        seal: impl Fn(u64, &mut [u8]) -> anyhow::Result<[u8; TAG_LEN]>,
        open: impl Fn(u64, &mut [u8]) -> anyhow::Result<()>,
    ) -> Turn {
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
