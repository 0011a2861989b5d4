use std::fs;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// Two ranges with a gap between them, the first not of whole megabytes.
const RANGES: [(u64, u64); 2] = [(0, (2 << 20) + 0x3000), (1 << 30, 3 << 20)];

fn memory() -> GuestMemory {
    let ranges = RANGES.map(|(start, length)| (GuestAddress(start), length as usize));
    GuestMemory::from_ranges(&ranges).unwrap()
}

/// A file, and where it is.
fn fresh() -> (TempDir, std::path::PathBuf, Arc<File>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    (folder, path, Arc::new(file))
}

fn byte(memory: &GuestMemory, address: u64) -> u8 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn put(memory: &GuestMemory, address: u64, value: u8) {
    memory.write_obj(value, GuestAddress(address)).unwrap();
}

fn content(memory: &GuestMemory) -> Vec<u8> {
    let mut all = Vec::new();
    for (start, length) in RANGES {
        let mut part = vec![0; length as usize];
        memory.read_slice(&mut part, GuestAddress(start)).unwrap();
        all.extend(part);
    }
    all
}

const BOTH: [Prefault; 2] = [Prefault::No, Prefault::Yes];

#[test]
fn what_was_written_is_read_and_zeros_take_no_room() {
    let (_folder, path, file) = fresh();
    let before = memory();
    for (address, value) in [
        (0, 1),
        (0x3fff, 2),
        ((2 << 20) + 0x2fff, 3),
        (1 << 30, 4),
        ((1 << 30) + (2 << 20), 5),
    ] {
        put(&before, address, value);
    }
    // Used, and zero.
    put(&before, 0x10_0000, 0);
    let record = write(&file, &before).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), record.length);
    assert!(
        fs::metadata(&path).unwrap().blocks() * 512 <= 5 * PAGE as u64 + 0x8000,
        "holes stay holes"
    );
    assert_eq!(
        record.chunks.len(),
        4,
        "a megabyte of zeros has no checksum: {record:?}"
    );
    for prefault in BOTH {
        let after = map(&file, &path, &record, prefault).unwrap();
        assert!(content(&after) == content(&before), "{prefault:?}");
    }
}

#[test]
fn what_a_restored_guest_writes_stays_its_own() {
    let (_folder, path, file) = fresh();
    let before = memory();
    put(&before, 0x5000, 1);
    let record = write(&file, &before).unwrap();
    let [one, two] = BOTH.map(|prefault| map(&file, &path, &record, prefault).unwrap());
    put(&one, 0x5000, 2);
    put(&one, 0x9000, 3);
    assert_eq!((byte(&two, 0x5000), byte(&two, 0x9000)), (1, 0));
    let third = map(&file, &path, &record, Prefault::No).unwrap();
    assert_eq!((byte(&third, 0x5000), byte(&third, 0x9000)), (1, 0));
}

#[test]
fn memory_that_was_restored_can_be_saved_again_touched_or_not() {
    let (_folder, path, file) = fresh();
    let before = memory();
    for page in [3, 5, 7, 300] {
        put(&before, page * PAGE as u64, page as u8);
    }
    let record = write(&file, &before).unwrap();
    for prefault in BOTH {
        let restored = map(&file, &path, &record, prefault).unwrap();
        put(&restored, 5 * PAGE as u64, 50); // Changed.
        put(&restored, 7 * PAGE as u64, 0); // Gone.
        put(&restored, 9 * PAGE as u64, 90); // New.
        let (_folder, again_path, again) = fresh();
        let again_record = write(&again, &restored).unwrap();
        let again = map(&again, &again_path, &again_record, Prefault::No).unwrap();
        let found = [3, 5, 7, 9, 300].map(|page| byte(&again, page * PAGE as u64));
        assert_eq!(found, [3, 50, 0, 90, 44], "{prefault:?}");
    }
}

#[test]
fn a_copy_that_lost_its_holes_is_as_good() {
    let (_folder, path, file) = fresh();
    let before = memory();
    put(&before, 0x5000, 1);
    let record = write(&file, &before).unwrap();
    let all = fs::read(&path).unwrap();
    fs::write(&path, all).unwrap();
    for prefault in BOTH {
        assert!(content(&map(&file, &path, &record, prefault).unwrap()) == content(&before));
    }
}

#[test]
fn a_file_of_another_length_is_refused_before_it_is_mapped() {
    let (_folder, path, file) = fresh();
    let before = memory();
    put(&before, 0x5000, 1);
    let record = write(&file, &before).unwrap();
    for length in [0, 1, PAGE as u64, record.length - 1, record.length + 1] {
        file.set_len(length).unwrap();
        for prefault in BOTH {
            let refused = map(&file, &path, &record, prefault).err();
            assert!(
                matches!(refused, Some(SnapshotError::Length { found, expected, .. }) if (found, expected) == (length, record.length)),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn a_record_that_makes_no_memory_is_refused() {
    let (_folder, path, file) = fresh();
    let record = write(&file, &memory()).unwrap();
    for ranges in [
        vec![],
        vec![(0, record.length - 1), (record.length, 1)],
        vec![(0, 0), (0, record.length)],
        vec![(0x1000, 0x1000), (0, record.length - 0x1000)],
        vec![(0, 0x2000), (0x1000, record.length - 0x2000)],
        vec![(u64::MAX - 0xfff, record.length)],
        vec![(0, u64::MAX - 0xfff), (u64::MAX - 0xfff, 0x1000)],
        vec![(0, record.length / PAGE as u64 * PAGE as u64 / 2 + 1)],
    ] {
        let record = Record {
            ranges,
            ..record.clone()
        };
        let refused = map(&file, &path, &record, Prefault::No).err();
        assert!(
            matches!(refused, Some(SnapshotError::Damaged { .. })),
            "{record:?}: {refused:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is(
        used in proptest::collection::vec((0_u64..5 << 20, any::<u8>()), 1..20),
        at in 0_u64..5 << 20,
        bit in 0_u32..8,
    ) {
        let (_folder, path, file) = fresh();
        let before = memory();
        for (offset, value) in used {
            put(&before, if offset < RANGES[0].1 { offset } else { (1 << 30) + offset - RANGES[0].1 }, value);
        }
        let record = write(&file, &before).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
        for prefault in BOTH {
            let refused = map(&file, &path, &record, prefault).err();
            let found = matches!(refused, Some(SnapshotError::Damaged { .. }));
            prop_assert!(found, "{:?}", refused);
        }
    }

    #[test]
    fn any_memory_comes_back(used in proptest::collection::vec((0_u64..5 << 20, 1_usize..20_000, any::<u8>()), 0..20)) {
        let (_folder, path, file) = fresh();
        let before = memory();
        for (offset, length, value) in used {
            let address = if offset < RANGES[0].1 { offset } else { (1 << 30) + offset - RANGES[0].1 };
            // What does not fit into its range is cut.
            let _ = before.write(&vec![value; length], GuestAddress(address));
        }
        let record = write(&file, &before).unwrap();
        for prefault in BOTH {
            let after = map(&file, &path, &record, prefault).unwrap();
            prop_assert!(content(&after) == content(&before), "{:?}", prefault);
        }
    }
}

#[test]
fn an_error_in_one_thread_is_the_error_of_all() {
    let pieces = pieces(&[(0, 100 << 20)]);
    let result = each(&pieces, |piece, _| {
        if piece.offset == 50 << 20 {
            Err(io::Error::other("here"))
        } else {
            Ok(piece.offset)
        }
    });
    assert_eq!(result.unwrap_err().to_string(), "here");
    let mut all = each(&pieces, |piece, _| Ok(piece.offset)).unwrap();
    all.sort_unstable();
    assert!(all.iter().copied().eq((0..100).map(|piece| piece << 20)));
}
