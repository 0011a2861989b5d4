//! Unpacks the compressed kernel inside a vmlinuz, so that the guest need not.
//!
//! # Purpose
//! A bzImage is a small program that unpacks the real kernel, at guest speed. The payload's place is in the setup header
//! and its format is one that everybody knows; unpacking it here takes a fraction of the time, and gives back the
//! vmlinux with its PVH entry point.
//!
//! # Invariants
//! - Nothing in the payload is trusted: output has a limit ([`MAX_UNPACKED`] but for tests), and what was unpacked is checked by the ELF
//!   loader as any other file.

use std::io::{self, Read};

/// The largest vmlinux that is unpacked, in bytes. Distribution kernels have 30 to 100 MiB.
pub const MAX_UNPACKED: usize = 512 << 20;

/// A payload that cannot be unpacked here. The image can still unpack itself.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A format that is not known.
    #[error("its payload begins with {magic:02x?}, which no known format does")]
    UnknownFormat {
        /// The first bytes, up to six.
        magic: Vec<u8>,
    },
    /// More than we care for.
    #[error("its payload unpacks to more than {max} bytes")]
    TooLarge {
        /// The most bytes that are unpacked.
        max: usize,
    },
    /// Damaged.
    #[error("its {format} payload cannot be unpacked")]
    Damaged {
        /// The format.
        format: Format,
        /// What the decoder says.
        source: io::Error,
    },
}

/// How a payload is packed (Linux, scripts/Makefile.lib).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// gzip.
    Gzip,
    /// xz with the x86 filter.
    Xz,
    /// The older .lzma.
    Lzma,
    /// Zstandard.
    Zstd,
    /// LZ4 in its legacy frame.
    Lz4,
    /// bzip2.
    Bzip2,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
        })
    }
}

impl Format {
    /// The format of `payload`, by its first bytes.
    pub fn of(payload: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Format); 6] = [
            (&[0x1f, 0x8b], Format::Gzip),
            (b"\xfd7zXZ\0", Format::Xz),
            (&[0x5d, 0, 0], Format::Lzma),
            (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
            (&LZ4_LEGACY, Format::Lz4),
            (b"BZh", Format::Bzip2),
        ];
        MAGIC
            .iter()
            .find(|(magic, _)| payload.starts_with(magic))
            .map(|(_, format)| *format)
    }
}

/// Unpacks `payload`, the compressed kernel and its size as they stand in a bzImage, into at most `max` bytes.
///
/// # Errors
/// [`UnpackError`] if that cannot be done here.
pub fn unpack(payload: &[u8], max: usize) -> Result<Vec<u8>, UnpackError> {
    let Some(format) = Format::of(payload) else {
        return Err(UnpackError::UnknownFormat {
            magic: payload.iter().take(6).copied().collect(),
        });
    };
    // All formats but gzip, whose trailer has it anyway, are followed by the unpacked size in four bytes.
    let (body, trailer) = match (format, payload.split_last_chunk::<4>()) {
        (Format::Gzip, _) | (_, None) => (payload, None),
        (_, Some((body, size))) => (body, Some(u32::from_le_bytes(*size))),
    };
    let expected = trailer.map_or(0, |size| usize::try_from(size).unwrap_or(max)).min(max);
    let mut output = Vec::new();
    let _ = output.try_reserve(expected);
    let damaged = |source| UnpackError::Damaged { format, source };
    if format == Format::Lz4 {
        return unpack_lz4(body, output, max);
    }
    let decoder: Box<dyn Read> = match format {
        Format::Gzip => Box::new(flate2::read::GzDecoder::new(body)),
        Format::Xz => Box::new(lzma_rust2::XzReader::new(body, false)),
        Format::Lzma => Box::new(lzma_rust2::LzmaReader::new_mem_limit(body, LZMA_MEMORY_KIB, None).map_err(damaged)?),
        Format::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(body);
            Box::new(decoder.map_err(|error| damaged(io::Error::other(error.to_string())))?)
        }
        Format::Lz4 | Format::Bzip2 => Box::new(bzip2::read::BzDecoder::new(body)),
    };
    let read = decoder.take(max as u64 + 1).read_to_end(&mut output).map_err(damaged)?;
    if read > max {
        Err(UnpackError::TooLarge { max })
    } else {
        Ok(output)
    }
}

/// What a .lzma dictionary may take, in KiB.
const LZMA_MEMORY_KIB: u32 = 256 << 10;

/// The magic number of LZ4's legacy frame.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// A block of the legacy frame unpacks to this many bytes, the last one to fewer (LZ4 Frame Format Description, Legacy
/// frame).
const LZ4_BLOCK: usize = 8 << 20;

fn unpack_lz4(frame: &[u8], mut output: Vec<u8>, max: usize) -> Result<Vec<u8>, UnpackError> {
    let damaged = |message: String| UnpackError::Damaged {
        format: Format::Lz4,
        source: io::Error::new(io::ErrorKind::InvalidData, message),
    };
    let mut rest = &frame[LZ4_LEGACY.len()..];
    while let Some((size, tail)) = rest.split_first_chunk::<4>() {
        let size = usize::try_from(u32::from_le_bytes(*size)).unwrap_or(usize::MAX);
        let Some((block, tail)) = tail.split_at_checked(size) else {
            return Err(damaged(format!(
                "a block of {size} bytes runs over the end, {} are left",
                tail.len()
            )));
        };
        let start = output.len();
        if start.saturating_add(LZ4_BLOCK) > max {
            return Err(UnpackError::TooLarge { max });
        }
        output.resize(start + LZ4_BLOCK, 0);
        let unpacked = lz4_flex::block::decompress_into(block, &mut output[start..])
            .map_err(|error| damaged(format!("at byte {start} of the output: {error}")))?;
        output.truncate(start + unpacked);
        rest = tail;
    }
    Ok(output)
}

#[cfg(test)]
mod tests;
