//! AES-256-GCM of one packet of any length, in vectors of 512 bits.
//!
//! A general implementation spends 80 to 90 ns on a packet before the first byte. Here the powers of the hash key
//! are there already, and text and hash go through in steps of 256 bytes, which do not wait for each other but for the
//! sum. The hash is summed up as
//!
//! ```text
//! X = (…((X + B1) H^16 + B2 H^15 + … + B16 H) …) for every 16 blocks, reduced once each,
//! tag = ((X + R1) H^(r+1) + … + Rr H^2 + lengths H) + E(first counter)
//! ```
//!
//! No table is looked up and no branch taken by what is secret, but the one by the verdict.

use std::arch::x86_64::{
    __m128i, __m512i, _mm512_add_epi32, _mm512_set_epi64, _mm512_shuffle_epi8,
    _mm512_zextsi128_si512,
};

use hyphae_wire::frame::TAG_LEN;
use zerocopy::transmute;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::gcm::wide::{self, Product, WIDTH, broadcast, join, reversed, split, xor};
use crate::gcm::{self, ROUNDS, Rounds, bytes, encrypt, from_halves, key_of, times};

/// Bytes of a vector.
const VECTOR: usize = WIDTH * TAG_LEN;
/// Vectors of a step, and blocks.
const STEP: usize = 4;
const STEP_BLOCKS: usize = STEP * WIDTH;

/// An expanded key, on cache lines of its own.
#[derive(Zeroize, ZeroizeOnDrop)]
#[repr(C, align(64))]
pub(super) struct Key {
    rounds: Rounds,
    /// Powers of the hash key from the 17th down to the first, and zeros for those who read on.
    powers: [[u8; 16]; STEP_BLOCKS + 1 + STEP_BLOCKS],
}

impl Key {
    /// Expands a key; `None` when the processor lacks the instructions.
    pub(super) fn new(key: &[u8; 32]) -> Option<Box<Self>> {
        let able = gcm::is_possible() && wide::is_possible();
        let mut expanded = able.then(|| {
            Box::new(Self {
                rounds: [[0; 16]; ROUNDS + 1],
                powers: [[0; 16]; STEP_BLOCKS + 1 + STEP_BLOCKS],
            })
        })?;
        // SAFETY: the processor has what the function is compiled for.
        unsafe { expand(key, &mut expanded) };
        Some(expanded)
    }

    /// Encrypts `text` in place; gives its tag.
    pub(super) fn seal(&self, counter: u64, aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        // SAFETY: a key exists only where the processor has what the function is compiled for.
        unsafe { run::<false>(self, counter, aad, text) }
    }

    /// Decrypts `text` in place; true when the tag is right. Else there are only zeros.
    pub(super) fn open(
        &self,
        counter: u64,
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> bool {
        // SAFETY: as above.
        let expected = unsafe { run::<true>(self, counter, aad, text) };
        let (expected, tag): (u128, u128) = (transmute!(expected), transmute!(*tag));
        let authentic = expected ^ tag == 0;
        if !authentic {
            text.fill(0);
        }
        authentic
    }
}

#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn expand(key: &[u8; 32], into: &mut Key) {
    let one = gcm::expand(key, &mut into.rounds);
    let mut power = one;
    for place in into.powers[..=STEP_BLOCKS].iter_mut().rev() {
        *place = bytes(power);
        power = times(power, one);
    }
}

/// Encrypts or decrypts; gives the tag that belongs to it.
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn run<const OPEN: bool>(key: &Key, counter: u64, aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
    // Bits of both.
    let lengths = from_halves(8 * text.len() as u64, 8 * aad.len() as u64);
    let [mask] = encrypt(&key.rounds, [first_counter(counter)]);
    let mut counters = Counters::new(counter);
    let mut sum = from_halves(0, 0);
    for part in aad.chunks(VECTOR) {
        let mut padded = [[0; VECTOR]];
        padded[0][..part.len()].copy_from_slice(part);
        let blocks = part.len().div_ceil(TAG_LEN);
        sum = gathered(products(key, sum, vectors(&padded), blocks)).reduced();
    }
    let len = text.len();
    let (whole, _) = text.as_chunks_mut::<VECTOR>();
    let (steps, _) = whole.as_chunks_mut::<STEP>();
    let rest = steps.len() * STEP * VECTOR;
    // Hashed while the next step is enciphered: one alone would wait for the other.
    let mut sealed = None;
    for step in steps {
        let came = vectors(step);
        let turned = counters.turn(key, came);
        *step = turned.map(|vector| bytes_of(vector));
        if let Some(before) = sealed.replace(if OPEN { came } else { turned }) {
            sum = absorb(key, sum, before);
        }
    }
    if let Some(before) = sealed {
        sum = absorb(key, sum, before);
    }
    let rest = &mut text[rest..len];
    let mut last = match rest.len().div_ceil(VECTOR) {
        0 => gcm::Product::zero(),
        1 => turn_last::<OPEN, 1>(key, &mut counters, sum, rest),
        2 => turn_last::<OPEN, 2>(key, &mut counters, sum, rest),
        3 => turn_last::<OPEN, 3>(key, &mut counters, sum, rest),
        _ => turn_last::<OPEN, STEP>(key, &mut counters, sum, rest),
    };
    let final_block = if rest.is_empty() {
        gcm::xor(sum, lengths)
    } else {
        lengths
    };
    last.add(final_block, key_of(key.powers[STEP_BLOCKS]));
    let hash = gcm::reversed(last.reduced());
    bytes(gcm::xor(hash, mask))
}

/// Encrypts or decrypts what is less than a step, in so many vectors; gives what it adds to the hash, of which
/// the lengths are still missing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn turn_last<const OPEN: bool, const N: usize>(
    key: &Key,
    counters: &mut Counters,
    sum: __m128i,
    rest: &mut [u8],
) -> gcm::Product {
    let mut padded = [[0; VECTOR]; N];
    padded.as_flattened_mut()[..rest.len()].copy_from_slice(rest);
    let came = vectors(&padded);
    let mut turned = counters.turn(key, came).map(|vector| bytes_of(vector));
    rest.copy_from_slice(&turned.as_flattened()[..rest.len()]);
    let sealed = if OPEN {
        came
    } else {
        // What is behind the text is no part of it.
        turned.as_flattened_mut()[rest.len()..].fill(0);
        vectors(&turned)
    };
    // One power higher each: the lengths come after them.
    let highest = rest.len().div_ceil(TAG_LEN) + 1;
    gathered(products(key, sum, sealed, highest))
}

/// The block whose encryption hides the tag: four zero bytes, the counter in little-endian, and one in
/// big-endian.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn first_counter(counter: u64) -> __m128i {
    from_halves(counter << 32, counter >> 32 | 1 << 56)
}

/// The blocks of counter mode that come next.
struct Counters {
    /// As in [`first_counter`], but for the numbers, which are in little-endian.
    next: __m512i,
}

impl Counters {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
    fn new(counter: u64) -> Self {
        let number = |n: u64| from_halves(counter << 32, counter >> 32 | n << 32);
        Self {
            next: join([number(2), number(3), number(4), number(5)]),
        }
    }

    /// Adds as much of the key stream.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
    fn turn<const N: usize>(&mut self, key: &Key, mut text: [__m512i; N]) -> [__m512i; N] {
        // The last four bytes of each block are the other way round.
        let order = broadcast(from_halves(0x0706_0504_0302_0100, 0x0c0d_0e0f_0b0a_0908));
        let four = broadcast(from_halves(0, (WIDTH as u64) << 32));
        let mut blocks = text;
        for block in &mut blocks {
            *block = _mm512_shuffle_epi8(self.next, order);
            self.next = _mm512_add_epi32(self.next, four);
        }
        for (text, block) in text.iter_mut().zip(wide::encrypt(&key.rounds, blocks)) {
            *text = xor(*text, block);
        }
        text
    }
}

/// The sum after a step more.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn absorb(key: &Key, sum: __m128i, step: [__m512i; STEP]) -> __m128i {
    gathered(products(key, sum, step, STEP_BLOCKS)).reduced()
}

/// Blocks, the sum added to the first, times powers of the hash key from this one down.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn products<const N: usize>(
    key: &Key,
    sum: __m128i,
    blocks: [__m512i; N],
    highest: usize,
) -> Product {
    let (powers, _) = key.powers[STEP_BLOCKS + 1 - highest..].as_chunks::<WIDTH>();
    let mut sum = _mm512_zextsi128_si512(sum);
    let mut product = Product::zero();
    for (block, powers) in blocks.into_iter().zip(powers) {
        let powers: [u8; VECTOR] = transmute!(*powers);
        product.add(xor(reversed(block), sum), vector(&powers));
        sum = xor(sum, sum);
    }
    product
}

/// The sum of the four quarters, not reduced.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn gathered(product: Product) -> gcm::Product {
    let fold = |part| {
        let [a, b, c, d] = split(part);
        gcm::xor(gcm::xor(a, b), gcm::xor(c, d))
    };
    gcm::Product {
        low: fold(product.low),
        middle: fold(product.middle),
        high: fold(product.high),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn vectors<const N: usize>(bytes: &[[u8; VECTOR]; N]) -> [__m512i; N] {
    let mut vectors = [broadcast(from_halves(0, 0)); N];
    for (place, bytes) in vectors.iter_mut().zip(bytes) {
        *place = vector(bytes);
    }
    vectors
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn vector(bytes: &[u8; VECTOR]) -> __m512i {
    let [a, b, c, d, e, f, g, h]: [i64; 8] = transmute!(*bytes);
    _mm512_set_epi64(h, g, f, e, d, c, b, a)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
fn bytes_of(vector: __m512i) -> [u8; VECTOR] {
    let [a, b, c, d] = split(vector);
    transmute!([bytes(a), bytes(b), bytes(c), bytes(d)])
}
