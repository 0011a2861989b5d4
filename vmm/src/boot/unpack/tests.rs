use std::io::Write;

use super::*;

const MAX: usize = 4 * LZ4_BLOCK;

fn unpack(payload: &[u8]) -> Result<Vec<u8>, UnpackError> {
    super::unpack(payload, MAX)
}

/// Something compressible, longer than one LZ4 block.
fn original() -> Vec<u8> {
    (0..LZ4_BLOCK as u32 / 4 + 1000)
        .flat_map(|n| (n / 7).to_le_bytes())
        .collect()
}

/// A stream with the unpacked size behind it, as the kernel's build has it.
fn with_size(mut stream: Vec<u8>, size: usize) -> Vec<u8> {
    stream.extend(u32::try_from(size).unwrap().to_le_bytes());
    stream
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn lz4(data: &[u8]) -> Vec<u8> {
    let mut frame = LZ4_LEGACY.to_vec();
    for block in data.chunks(LZ4_BLOCK) {
        let packed = lz4_flex::block::compress(block);
        frame.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
        frame.extend(packed);
    }
    frame
}

fn bzip2(data: &[u8]) -> Vec<u8> {
    let mut encoder = ::bzip2::write::BzEncoder::new(Vec::new(), ::bzip2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn every_format_gives_back_what_was_packed() {
    let data = original();
    for (format, packed) in [
        (Format::Gzip, gzip(&data)),
        (Format::Lz4, with_size(lz4(&data), data.len())),
        (Format::Bzip2, with_size(bzip2(&data), data.len())),
        (Format::Zstd, with_size(zstd(&data), data.len())),
    ] {
        assert_eq!(Format::of(&packed), Some(format));
        let unpacked = unpack(&packed).unwrap_or_else(|error| panic!("{format}: {error}: {error:?}"));
        assert!(unpacked == data, "{format}");
    }
}

#[test]
fn xz_and_lzma_made_by_xz_utils_are_unpacked() {
    // `printf 'reprise reprise reprise' | xz --check=crc32 --x86 --lzma2=dict=1MiB`, the filters of a kernel build.
    let xz = include_bytes!("tests/text.xz");
    // The same with `--format=lzma`.
    let lzma = include_bytes!("tests/text.lzma");
    for packed in [&xz[..], &lzma[..]] {
        assert_eq!(
            unpack(&with_size(packed.to_vec(), 23)).unwrap(),
            b"reprise reprise reprise"
        );
    }
}

#[test]
fn what_is_no_known_format_is_named_by_its_first_bytes() {
    for payload in [&b""[..], b"\x1f", b"MZ\x90\0\0\0\0\0"] {
        let error = unpack(payload).unwrap_err();
        assert!(
            matches!(&error, UnpackError::UnknownFormat { magic } if payload.starts_with(magic)),
            "{error:?}"
        );
    }
}

#[test]
fn damage_is_found_and_is_no_more_than_an_error() {
    let data = &original()[..100_000];
    for packed in [
        gzip(data),
        with_size(lz4(data), data.len()),
        with_size(bzip2(data), data.len()),
        with_size(zstd(data), data.len()),
    ] {
        let format = Format::of(&packed).unwrap();
        let half = &packed[..packed.len() / 2];
        assert!(
            matches!(unpack(half), Err(UnpackError::Damaged { format: found, .. }) if found == format),
            "half of a {format} stream"
        );
        for at in (4..packed.len()).step_by(packed.len() / 50) {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x55;
            // Some damage no checksum covers; but it never panics, and never gives more than a little.
            if let Ok(unpacked) = unpack(&damaged) {
                assert!(unpacked.len() <= 2 * LZ4_BLOCK, "{format} at {at}");
            }
        }
    }
}

#[test]
fn a_small_file_cannot_fill_the_host_s_memory() {
    let zeros = vec![0; MAX + 1];
    for packed in [
        gzip(&zeros),
        with_size(lz4(&zeros), MAX),
        with_size(bzip2(&zeros), 7),
        with_size(zstd(&zeros), 0),
    ] {
        assert!(packed.len() < MAX / 50);
        let error = unpack(&packed).unwrap_err();
        assert!(matches!(error, UnpackError::TooLarge { max: MAX }), "{error:?}");
    }
}
