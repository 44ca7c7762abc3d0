// SPDX-License-Identifier: GPL-2.0

//! Two pages at once with the SHA extensions of x86-64: the only unsafe code of this crate.
//!
//! What SHA-256 is: FIPS 180-4, sections 4.1.2, 4.2.2, 5.1.1, 5.3.3 and 6.2.2, whose names are used
//! here. What the instructions do: Intel 64 and IA-32 Architectures Software Developer's Manual,
//! volume 2, SHA256RNDS2, SHA256MSG1 and SHA256MSG2. In short:
//!
//! | instruction | operands | gives |
//! |---|---|---|
//! | SHA256RNDS2 | CDGH, ABEF, two words of W + K | ABEF two rounds later; the ABEF of before is CDGH |
//! | SHA256MSG1 | W\[t-16..\], W\[t-12..\] | four of W\[t-16\] + sigma0(W\[t-15\]) |
//! | SHA256MSG2 | that + W\[t-7..\], W\[t-4..\] | W\[t..t+4\] |
//!
//! ABEF and CDGH are registers of four words, the first-named in the highest place.

#![allow(
    unsafe_code,
    reason = "the instructions are there on some processors only"
)]

use std::arch::x86_64::{
    __m128i,
    _mm_add_epi32,
    _mm_alignr_epi8,
    _mm_extract_epi32,
    _mm_loadu_si128,
    _mm_set_epi32,
    _mm_set_epi64x,
    _mm_sha256msg1_epu32,
    _mm_sha256msg2_epu32,
    _mm_sha256rnds2_epu32,
    _mm_shuffle_epi8,
    _mm_srli_si128, //
};

use super::{
    Bytes,
    Page,
    PAGE_BYTES, //
};

/// Bytes of a message block.
const BLOCK_BYTES: usize = 64;

/// Pages that are hashed at once.
const LANES: usize = 2;

/// The same register of each lane.
type Lanes = [__m128i; LANES];

/// FIPS 180-4, 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64
/// primes, by groups of four rounds.
#[rustfmt::skip]
const K: [[u32; 4]; 16] = [
    [0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5],
    [0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5],
    [0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3],
    [0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174],
    [0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc],
    [0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da],
    [0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7],
    [0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967],
    [0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13],
    [0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85],
    [0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3],
    [0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070],
    [0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5],
    [0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3],
    [0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208],
    [0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2],
];

/// FIPS 180-4, 5.3.3: A to H at the beginning.
const H0: [u32; 8] = [
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
];

/// FIPS 180-4, 5.1.1: what follows the bytes of a page, a 1, zeros, and the length in bits.
const PADDING: [u8; BLOCK_BYTES] = {
    let mut block = [0; BLOCK_BYTES];
    let length = (8 * PAGE_BYTES as u64).to_be_bytes();
    block[0] = 0x80;
    let mut n = 0;
    while n < length.len() {
        block[BLOCK_BYTES - length.len() + n] = length[n];
        n += 1;
    }
    block
};

/// Says that this processor has the instructions.
///
/// # Invariants
///
/// [`Extensions::find`] made it, so `sha`, `ssse3` and `sse4.1` are there. They stay as long as the
/// program runs.
#[derive(Clone, Copy)]
pub(crate) struct Extensions(());

impl Extensions {
    /// Looks whether they are there; the answer is remembered by the standard library.
    pub(crate) fn find() -> Option<Self> {
        let all = is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1");
        // INVARIANT: All three were found.
        all.then_some(Self(()))
    }

    /// The digests of two pages.
    pub(crate) fn two(self, pages: [&Page; LANES]) -> [Bytes; LANES] {
        // SAFETY: `digests` needs the processor to have `sha`, `ssse3` and `sse4.1`: by the
        // invariant of `self` it has, until the program ends.
        unsafe { digests(pages) }
    }
}

/// The hash values of both lanes.
#[derive(Clone, Copy)]
struct State {
    /// A, B, E and F.
    abef: Lanes,
    /// C, D, G and H.
    cdgh: Lanes,
}

/// The digests of `pages`.
///
/// # Safety
///
/// The processor has `sha`, `ssse3` and `sse4.1`.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
unsafe fn digests([first, second]: [&Page; LANES]) -> [Bytes; LANES] {
    let [a, b, c, d, e, f, g, h] = H0;
    let mut state = State {
        abef: [words([f, e, b, a]); LANES],
        cdgh: [words([h, g, d, c]); LANES],
    };
    for (first, second) in blocks(first).zip(blocks(second)) {
        state = compress(state, [message(first), message(second)]);
    }
    [
        digest(state.abef[0], state.cdgh[0]),
        digest(state.abef[1], state.cdgh[1]),
    ]
}

/// The blocks of a page as a message, its padding included.
fn blocks(page: &Page) -> impl Iterator<Item = &[u8]> {
    page.chunks_exact(BLOCK_BYTES).chain([&PADDING[..]])
}

/// FIPS 180-4, 6.2.2: the hash values after one more block of each lane, W\[0..16\] of which are
/// `messages`.
///
/// # Safety
///
/// The processor has `sha`, `ssse3` and `sse4.1`.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
unsafe fn compress(before: State, [m, n]: [[__m128i; 4]; LANES]) -> State {
    let mut state = before;
    let [mut p, mut q, mut r, mut s] = [[m[0], n[0]], [m[1], n[1]], [m[2], n[2]], [m[3], n[3]]];
    for k in K[..12].chunks_exact(4) {
        state = rounds(state, p, k[0]);
        p = schedule(p, q, r, s);
        state = rounds(state, q, k[1]);
        q = schedule(q, r, s, p);
        state = rounds(state, r, k[2]);
        r = schedule(r, s, p, q);
        state = rounds(state, s, k[3]);
        s = schedule(s, p, q, r);
    }
    state = rounds(state, p, K[12]);
    state = rounds(state, q, K[13]);
    state = rounds(state, r, K[14]);
    state = rounds(state, s, K[15]);
    State {
        abef: add(state.abef, before.abef),
        cdgh: add(state.cdgh, before.cdgh),
    }
}

/// Four rounds of both lanes, with four words of W and of K.
///
/// # Safety
///
/// The processor has `sha`.
#[inline]
#[target_feature(enable = "sha,sse2")]
unsafe fn rounds(State { abef, cdgh }: State, w: Lanes, k: [u32; 4]) -> State {
    let wk = add(w, [words(k); LANES]);
    // Two rounds later the old ABEF is CDGH.
    let middle = [
        _mm_sha256rnds2_epu32(cdgh[0], abef[0], wk[0]),
        _mm_sha256rnds2_epu32(cdgh[1], abef[1], wk[1]),
    ];
    let upper = [_mm_srli_si128::<8>(wk[0]), _mm_srli_si128::<8>(wk[1])];
    State {
        abef: [
            _mm_sha256rnds2_epu32(abef[0], middle[0], upper[0]),
            _mm_sha256rnds2_epu32(abef[1], middle[1], upper[1]),
        ],
        cdgh: middle,
    }
}

/// FIPS 180-4, 6.2.2, step 1: W\[t..t+4\] from the 16 words before, the oldest first.
///
/// # Safety
///
/// The processor has `sha` and `ssse3`.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3")]
unsafe fn schedule(w16: Lanes, w12: Lanes, w8: Lanes, w4: Lanes) -> Lanes {
    let sums = [
        _mm_sha256msg1_epu32(w16[0], w12[0]),
        _mm_sha256msg1_epu32(w16[1], w12[1]),
    ];
    let w7 = [
        _mm_alignr_epi8::<4>(w4[0], w8[0]),
        _mm_alignr_epi8::<4>(w4[1], w8[1]),
    ];
    let sums = add(sums, w7);
    [
        _mm_sha256msg2_epu32(sums[0], w4[0]),
        _mm_sha256msg2_epu32(sums[1], w4[1]),
    ]
}

/// The words of a block, which are big-endian, in four registers.
///
/// # Safety
///
/// The processor has `ssse3`.
#[inline]
#[target_feature(enable = "sse2,ssse3")]
unsafe fn message(block: &[u8]) -> [__m128i; 4] {
    let order = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let mut message = [order; 4];
    for (register, bytes) in message.iter_mut().zip(block.chunks_exact(16)) {
        // SAFETY: The load reads 16 bytes, aligned or not: `bytes` has 16 that may be read for as
        // long as it is borrowed, which is until after the load.
        let words = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        *register = _mm_shuffle_epi8(words, order);
    }
    message
}

/// FIPS 180-4, 6.2.2: the hash value as bytes.
///
/// # Safety
///
/// The processor has `sse4.1`.
#[inline]
#[target_feature(enable = "sse2,sse4.1")]
unsafe fn digest(abef: __m128i, cdgh: __m128i) -> Bytes {
    let [a, b] = [_mm_extract_epi32::<3>(abef), _mm_extract_epi32::<2>(abef)];
    let [c, d] = [_mm_extract_epi32::<3>(cdgh), _mm_extract_epi32::<2>(cdgh)];
    let [e, f] = [_mm_extract_epi32::<1>(abef), _mm_extract_epi32::<0>(abef)];
    let [g, h] = [_mm_extract_epi32::<1>(cdgh), _mm_extract_epi32::<0>(cdgh)];
    let mut bytes = [0; 32];
    let places = bytes.chunks_exact_mut(4);
    for (place, word) in places.zip([a, b, c, d, e, f, g, h]) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// Four words, the lowest place first.
///
/// # Safety
///
/// The processor has `sse2`, as every x86-64 has.
#[inline]
#[target_feature(enable = "sse2")]
unsafe fn words([a, b, c, d]: [u32; 4]) -> __m128i {
    // CAST: The bits stay the same.
    _mm_set_epi32(d as i32, c as i32, b as i32, a as i32)
}

/// The sums of four words in each lane, modulo 2^32.
///
/// # Safety
///
/// The processor has `sse2`, as every x86-64 has.
#[inline]
#[target_feature(enable = "sse2")]
unsafe fn add(x: Lanes, y: Lanes) -> Lanes {
    [_mm_add_epi32(x[0], y[0]), _mm_add_epi32(x[1], y[1])]
}
