// SPDX-License-Identifier: GPL-2.0

//! Compression of blocks: one zstd stream over the blocks of a connection, flushed after each, so
//! that a page which resembles an earlier one costs little.
//!
//! Memory that does not compress is not compressed: after a block that hardly shrank, blocks are
//! stored, and a sample of one of the next is tried now and then. Stored blocks do not enter the
//! zstd stream.

use zstd::zstd_safe::{
    compress_bound,
    get_error_name,
    zstd_sys::ZSTD_EndDirective,
    CCtx,
    CParameter,
    DCtx,
    DParameter,
    InBuffer,
    OutBuffer, //
};

use crate::error::{
    Error,
    Fault, //
};
use crate::limits;
use crate::page::PAGE_BYTES;

/// How hard to compress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    Off,
    /// With that level of zstd, from 1 to 19, where it is worth it.
    Level(u8),
}

/// Levels that there are.
const LEVELS: std::ops::RangeInclusive<u8> = 1..=19;

/// Blocks with fewer bytes of content than this are compressed whatever was learned: they cost
/// little, and say little about the others.
const JUDGED_BYTES: usize = 4 * PAGE_BYTES;

/// Pages of a sample.
const SAMPLE_PAGES: usize = 4;

/// At most so many blocks are stored between two samples.
const PAUSE_MAX: u32 = 8;

/// The sender's end.
pub(crate) struct Compressor {
    /// The zstd stream.
    stream: CCtx<'static>,
    /// What compresses samples.
    sampler: CCtx<'static>,
    /// A sample, and what became of it.
    sample: [Vec<u8>; 2],
    /// What the last blocks were like.
    state: State,
}

/// What the last blocks were like. A block that does not shrink leads from `Shrinks` to `Stored`;
/// each sample that does not shrink doubles the pause; one that does leads back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// They became smaller.
    Shrinks,
    /// They did not.
    Stored {
        /// Blocks to store before the next sample.
        left: u32,
        /// Blocks to store after it, if it is no better.
        pause: u32,
    },
}

impl Compressor {
    /// One that compresses with `level`.
    ///
    /// # Errors
    ///
    /// There is no such level.
    pub(crate) fn new(level: u8) -> Result<Self, Error> {
        if !LEVELS.contains(&level) {
            return Err(Error::Level(level));
        }
        let mut stream = CCtx::create();
        let parameters = [
            CParameter::CompressionLevel(level.into()),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
        ];
        for parameter in parameters {
            stream.set_parameter(parameter).map_err(failed)?;
        }
        Ok(Self {
            stream,
            sampler: CCtx::create(),
            sample: Default::default(),
            state: State::Shrinks,
        })
    }

    /// Whether to store a block without a look at it: its operations are `raw` bytes, of which
    /// `content` are pages and literals.
    pub(crate) fn passes(&mut self, raw: usize, content: usize) -> bool {
        let State::Stored { left, pause } = self.state else {
            return false;
        };
        if left == 0 || !judged(raw, content) {
            return false;
        }
        self.state = State::Stored {
            left: left - 1,
            pause,
        };
        true
    }

    /// Whether to compress a block of the operations `raw` that did not pass.
    pub(crate) fn wants(&mut self, raw: &[u8], content: usize) -> bool {
        if !judged(raw.len(), content) {
            return true;
        }
        let State::Stored { pause, .. } = self.state else {
            return true;
        };
        if self.sample_shrinks(raw) {
            return true;
        }
        self.state = State::Stored {
            left: pause,
            pause: (2 * pause).min(PAUSE_MAX),
        };
        false
    }

    /// Appends the compressed `raw` to `out`, and learns.
    ///
    /// # Errors
    ///
    /// The compression fails. The stream is of no use any more then.
    pub(crate) fn compress(
        &mut self,
        raw: &[u8],
        content: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let before = out.len();
        out.reserve(compress_bound(raw.len()) + 64);
        let mut input = InBuffer::around(raw);
        loop {
            let at = out.len();
            let mut output = OutBuffer::around_pos(&mut *out, at);
            let flush = ZSTD_EndDirective::ZSTD_e_flush;
            let left = self.stream.compress_stream2(&mut output, &mut input, flush);
            if left.map_err(failed)? == 0 && input.pos() == raw.len() {
                break;
            }
            out.reserve(PAGE_BYTES);
        }
        if judged(raw.len(), content) {
            self.learn(raw.len(), out.len() - before);
        }
        Ok(())
    }

    /// Learns from a block that became `size` bytes.
    fn learn(&mut self, raw: usize, size: usize) {
        let shrank = size <= raw - raw / 16;
        self.state = match self.state {
            _ if shrank => State::Shrinks,
            State::Shrinks => State::Stored { left: 0, pause: 1 },
            // The sample looked better than the block was.
            State::Stored { pause, .. } => State::Stored {
                left: pause,
                pause: (2 * pause).min(PAUSE_MAX),
            },
        };
    }

    /// Whether a few pages out of `raw` become smaller by an eighth.
    fn sample_shrinks(&mut self, raw: &[u8]) -> bool {
        let [sample, small] = &mut self.sample;
        sample.clear();
        for part in raw.chunks(raw.len().div_ceil(SAMPLE_PAGES)) {
            let middle = part.len().saturating_sub(PAGE_BYTES) / 2;
            let end = part.len().min(middle + PAGE_BYTES);
            sample.extend_from_slice(&part[middle..end]);
        }
        small.clear();
        small.reserve(compress_bound(sample.len()));
        let size = self.sampler.compress(small, sample, 1);
        size.is_ok_and(|size| size <= sample.len() - sample.len() / 8)
    }
}

/// Whether a block tells something of the memory that is sent.
fn judged(raw: usize, content: usize) -> bool {
    content >= JUDGED_BYTES && content > raw / 2
}

/// The error of a failed compression.
fn failed(code: usize) -> Error {
    Error::Compress(get_error_name(code).to_owned())
}

/// The receiver's end.
pub(crate) struct Decompressor {
    /// The zstd stream.
    stream: DCtx<'static>,
}

impl Decompressor {
    /// The beginning of a stream.
    ///
    /// # Errors
    ///
    /// The library refuses the limit of the window.
    pub(crate) fn new() -> Result<Self, Error> {
        let mut stream = DCtx::create();
        let window = DParameter::WindowLogMax(limits::WINDOW_LOG);
        stream.set_parameter(window).map_err(failed)?;
        Ok(Self { stream })
    }

    /// Decompresses `wire` into the empty buffer `out`: `expected` bytes. No more than
    /// [`limits::BLOCK_RAW_MAX`] bytes and a few are ever written.
    ///
    /// # Errors
    ///
    /// It cannot be decompressed, it becomes more or fewer bytes, or the stream ends.
    pub(crate) fn decompress(
        &mut self,
        wire: &[u8],
        expected: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        out.clear();
        out.reserve(limits::BLOCK_RAW_MAX + 1);
        let mut input = InBuffer::around(wire);
        while input.pos() < wire.len() {
            let (read, written) = (input.pos(), out.len());
            let mut output = OutBuffer::around_pos(&mut *out, written);
            let more = self.stream.decompress_stream(&mut output, &mut input);
            let more = more.map_err(|code| Fault::Zstd(get_error_name(code).to_owned()))?;
            if more == 0 {
                return Err(Fault::Zstd("the stream ends".to_owned()));
            }
            if input.pos() == read && out.len() == written {
                return Err(Fault::Zstd("it becomes too long".to_owned()));
            }
        }
        if out.len() != expected {
            return Err(Fault::Length {
                what: "Decompressed bytes",
                found: out.len() as u64,
                expected: expected as u64,
            });
        }
        Ok(())
    }
}
