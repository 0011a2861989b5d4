use std::io::Write;
use std::path::PathBuf;

use linux_loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use reprise_emulator::cpu::{Cr0, Mode, Seg, gpr};
use tempfile::TempDir;

use super::test_images::{self, Elf, Segment, memory};
use super::*;

const MIB: usize = 1 << 20;

/// Files of one test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

fn payload(kernel: &Path) -> Payload<'_> {
    Payload {
        kernel,
        initramfs: None,
        command_line: "console=ttyS0",
        rsdp: 0xe_0000,
    }
}

fn text(memory: &GuestMemory, address: u64) -> String {
    let mut bytes = vec![0; 4096];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

fn pvh_kernel() -> Vec<u8> {
    Elf {
        pvh: Some(0x20_0004),
        ..Elf::default()
    }
    .bytes()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_vmlinux_with_the_note_is_entered_through_pvh_and_told_everything() {
    let files = Files::new();
    let (kernel, initramfs) = (files.file("vmlinux", &pvh_kernel()), files.file("initramfs", b"cpio"));
    let memory = memory(64 * MIB);
    let entry = load(
        &memory,
        &Payload {
            initramfs: Some(&initramfs),
            ..payload(&kernel)
        },
    )
    .unwrap();
    assert_eq!(entry, Entry::Pvh { rip: 0x20_0004 });

    let info: hvm_start_info = memory.read_obj(GuestAddress(layout::START_INFO)).unwrap();
    assert_eq!((info.magic, info.version), (0x336e_c578, 1));
    assert_eq!(info.rsdp_paddr, 0xe_0000);
    assert_eq!(text(&memory, info.cmdline_paddr), "console=ttyS0");
    assert_eq!(info.nr_modules, 1);
    let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!(module.size, 4);
    assert_eq!(module.paddr % PAGE, 0);
    assert_eq!(text(&memory, module.paddr), "cpio");
    let map: Vec<(u64, u64, u32)> = (0..u64::from(info.memmap_entries))
        .map(|index| {
            memory
                .read_obj::<hvm_memmap_table_entry>(GuestAddress(info.memmap_paddr + 24 * index))
                .unwrap()
        })
        .map(|entry| (entry.addr, entry.size, entry.type_))
        .collect();
    assert_eq!(
        map,
        [
            (0, 0x9_fc00, 1),
            (0x9_fc00, 0x400, 2),
            (0xe_0000, 0x2_0000, 2),
            (0x10_0000, 63 << 20, 1)
        ]
    );
}

#[test]
fn the_pvh_entry_is_flat_protected_mode_without_paging() {
    let cpu = Entry::Pvh { rip: 0x100_0850 }.cpu();
    assert_eq!(cpu.rip, 0x100_0850);
    assert_eq!(cpu.view.mode, Mode::Protected);
    assert_eq!(cpu.cr0.0, Cr0::PE | Cr0::ET);
    assert_eq!(cpu.gpr.get(gpr::RBX), layout::START_INFO);
    assert_eq!((cpu.segments[Seg::Cs].base, cpu.segments[Seg::Cs].limit), (0, u32::MAX));
    assert!(cpu.segments[Seg::Cs].attributes.is_big() && cpu.segments[Seg::Cs].attributes.is_code());
    assert!(cpu.segments[Seg::Ss].attributes.is_writable_data());
    assert_eq!(cpu.tr.limit, 0x67, "as the PVH specification asks");
    assert!(!cpu.flags.interrupt());
}

#[test]
fn a_vmlinux_without_the_note_is_entered_in_64_bit_mode_with_memory_mapped_to_itself() {
    let files = Files::new();
    let kernel = files.file("vmlinux", &Elf::default().bytes());
    let memory = memory(64 * MIB);
    let entry = load(&memory, &payload(&kernel)).unwrap();
    assert_eq!(entry, Entry::Linux64 { rip: 0x20_0000 });
    let cpu = entry.cpu();
    assert_eq!(cpu.view.mode, Mode::Long);
    assert_eq!(cpu.gpr.get(gpr::RSI), layout::ZERO_PAGE);
    assert_eq!(
        (cpu.segments[Seg::Cs].selector, cpu.segments[Seg::Ds].selector),
        (0x10, 0x18)
    );
    for address in [0, 0x20_0000, 0xfee0_0000_u64] {
        let table = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let pointers = table(cpu.cr3) & !0xfff;
        let directory = table(pointers + 8 * (address >> 30)) & !0xfff;
        let page = table(directory + 8 * (address >> 21 & 511));
        assert_eq!(page & !0x1f_ffff, address & !0x1f_ffff);
        assert_eq!(page & 0x83, 0x83, "present, writable, 2 MiB");
    }
}

#[test]
fn a_vmlinuz_is_unpacked_here_and_entered_through_pvh() {
    let files = Files::new();
    let image = test_images::BzImage {
        payload: gzip(&pvh_kernel()),
        ..Default::default()
    };
    let kernel = files.file("vmlinuz", &image.bytes());
    assert_eq!(
        load(&memory(64 * MIB), &payload(&kernel)).unwrap(),
        Entry::Pvh { rip: 0x20_0004 }
    );
}

#[test]
fn a_vmlinuz_that_cannot_be_unpacked_here_unpacks_itself() {
    let files = Files::new();
    let without_note = gzip(&Elf::default().bytes());
    for (name, payload_bytes) in [
        ("unknown", b"????????".to_vec()),
        ("damaged", gzip(b"x")[..12].to_vec()),
        ("note", without_note),
    ] {
        let image = test_images::BzImage {
            payload: payload_bytes,
            ..Default::default()
        };
        let (kernel, initramfs) = (files.file(name, &image.bytes()), files.file("initramfs", &[7; 5000]));
        let memory = memory(64 * MIB);
        let entry = load(
            &memory,
            &Payload {
                initramfs: Some(&initramfs),
                ..payload(&kernel)
            },
        )
        .unwrap();
        assert_eq!(entry, Entry::Linux64 { rip: 0x10_0200 }, "{name}");
        assert_eq!(text(&memory, 0x10_0200), "64-bit entry");
        let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        let (version, magic, boot_flag) = (params.hdr.version, params.hdr.header, params.hdr.boot_flag);
        assert_eq!((version, magic, boot_flag), (0x020f, 0x5372_6448, 0xaa55));
        let (start, size) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
        assert_eq!(
            (u64::from(start) + 8192, size),
            (64 << 20, 5000),
            "as high as it fits, on a page"
        );
        let (line, rsdp) = (params.hdr.cmd_line_ptr, params.acpi_rsdp_addr);
        assert_eq!(text(&memory, line.into()), "console=ttyS0");
        assert_eq!(rsdp, 0xe_0000);
        assert_eq!(params.e820_entries, 4);
    }
}

#[test]
fn a_kernel_without_a_64_bit_entry_is_entered_in_32_bit_mode() {
    let files = Files::new();
    let image = test_images::BzImage {
        has_64_bit_entry: false,
        ..Default::default()
    };
    let kernel = files.file("vmlinuz", &image.bytes());
    let entry = load(&memory(64 * MIB), &payload(&kernel)).unwrap();
    assert_eq!(entry, Entry::Linux32 { rip: 0x10_0000 });
    let cpu = entry.cpu();
    assert_eq!(
        (cpu.view.mode, cpu.gpr.get(gpr::RSI)),
        (Mode::Protected, layout::ZERO_PAGE)
    );
}

#[test]
fn the_initramfs_stays_below_what_the_kernel_can_reach() {
    let files = Files::new();
    let image = test_images::BzImage {
        initramfs_max: 0x1ff_ffff,
        ..Default::default()
    };
    let (kernel, initramfs) = (
        files.file("vmlinuz", &image.bytes()),
        files.file("initramfs", &[7; 4096]),
    );
    let memory = memory(64 * MIB);
    load(
        &memory,
        &Payload {
            initramfs: Some(&initramfs),
            ..payload(&kernel)
        },
    )
    .unwrap();
    let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
    let start = params.hdr.ramdisk_image;
    assert_eq!(start, 0x200_0000 - 4096);
}

#[test]
fn files_that_are_no_kernel_are_refused_by_name() {
    let files = Files::new();
    let memory = memory(8 * MIB);
    let load = |path: &Path| load(&memory, &payload(path)).unwrap_err();
    let missing = files.0.path().join("nowhere");
    assert!(matches!(load(&missing), BootError::Read { part: Part::Kernel, path, .. } if path == missing));
    let error = load(files.0.path());
    assert!(
        matches!(
            error,
            BootError::NotAFile {
                found: "a directory",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(matches!(load(Path::new("/dev/null")), BootError::NotAFile { .. }));
    assert!(matches!(
        load(&files.file("empty", b"")),
        BootError::Empty { part: Part::Kernel, .. }
    ));
    for content in [&b"#!"[..], b"text that is no kernel", &[0; 2000]] {
        assert!(matches!(
            load(&files.file("other", content)),
            BootError::UnknownFormat { .. }
        ));
    }
    let error = load(&files.file("elf", b"\x7fELF\x02"));
    assert!(
        matches!(
            error,
            BootError::Elf {
                source: ElfError::Truncated { .. },
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_truncated_or_ancient_bzimage_is_refused() {
    let files = Files::new();
    let memory = memory(8 * MIB);
    let load = |path: &Path| load(&memory, &payload(path)).unwrap_err();
    let whole = test_images::BzImage::default().bytes();
    for end in [0x268, 1024, whole.len() - 1] {
        let error = load(&files.file("cut", &whole[..end]));
        assert!(
            matches!(error, BootError::TruncatedBzImage { size, expected, .. }
                if size == end as u64 && expected == whole.len() as u64),
            "{end}: {error:?}"
        );
    }
    let mut old = whole.clone();
    old[0x206] = 1;
    assert!(matches!(
        load(&files.file("old", &old)),
        BootError::OldBzImage { version: 0x0201, .. }
    ));
    let mut low = whole;
    low[0x211] = 0;
    assert!(matches!(load(&files.file("low", &low)), BootError::OldBzImage { .. }));
}

#[test]
fn what_does_not_fit_into_memory_is_refused_with_how_much_there_is() {
    let files = Files::new();
    let memory = memory(4 * MIB);
    let large = Elf {
        segments: vec![Segment {
            memory_size: 4 << 20,
            ..Segment::default()
        }],
        ..Elf::default()
    };
    let error = load(&memory, &payload(&files.file("large", &large.bytes()))).unwrap_err();
    assert!(
        matches!(
            error,
            BootError::Elf {
                source: ElfError::DoesNotFit { .. },
                ..
            }
        ),
        "{error:?}"
    );

    let hungry = test_images::BzImage {
        init_size: 3 << 20,
        ..Default::default()
    };
    let error = load(&memory, &payload(&files.file("hungry", &hungry.bytes()))).unwrap_err();
    assert!(
        matches!(
            error,
            BootError::BzImageTooLarge {
                end: 0x50_0000,
                ram_end: 0x40_0000,
                ..
            }
        ),
        "{error:?}"
    );

    let (kernel, initramfs) = (
        files.file("vmlinux", &pvh_kernel()),
        files.file("initramfs", &vec![0; 2 * MIB]),
    );
    let error = load(
        &memory,
        &Payload {
            initramfs: Some(&initramfs),
            ..payload(&kernel)
        },
    )
    .unwrap_err();
    assert!(
        matches!(
            error,
            BootError::InitramfsTooLarge {
                size: 0x20_0000,
                available: 0x1f_e000,
                ..
            }
        ),
        "{error:?}"
    );
    let initramfs = files.file("empty", b"");
    let error = load(
        &memory,
        &Payload {
            initramfs: Some(&initramfs),
            ..payload(&kernel)
        },
    )
    .unwrap_err();
    assert!(
        matches!(
            error,
            BootError::Empty {
                part: Part::Initramfs,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_command_line_that_the_kernel_would_cut_is_refused() {
    let files = Files::new();
    let kernel = files.file("vmlinux", &pvh_kernel());
    let memory = memory(8 * MIB);
    let load = |line: &str| {
        load(
            &memory,
            &Payload {
                command_line: line,
                ..payload(&kernel)
            },
        )
    };
    assert!(load(&"x".repeat(2047)).is_ok());
    let error = load(&"x".repeat(2048)).unwrap_err();
    assert!(
        matches!(
            error,
            BootError::CommandLineTooLong {
                length: 2048,
                max: 2047
            }
        ),
        "{error:?}"
    );
    assert!(matches!(
        load("a\0b").unwrap_err(),
        BootError::CommandLineNul { offset: 1 }
    ));
}

#[test]
fn a_real_kernel_unpacked_here_is_what_other_tools_unpack() {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    let (packed, unpacked) = (guest.join("vmlinuz"), guest.join("vmlinux"));
    if !packed.exists() || !unpacked.exists() {
        let required = std::env::var("REPRISE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "guest"));
        assert!(!required, "scripts/guest.sh has not been run");
        eprintln!("skipped: scripts/guest.sh has not been run");
        return;
    }
    let mut file = File::open(&packed).unwrap();
    let Found::BzImage(image) = BzImage::find(&mut file).unwrap() else {
        panic!("{} is no bzImage", packed.display())
    };
    let ours = unpack::unpack(&image.payload(&mut file).unwrap(), unpack::MAX_UNPACKED).unwrap();
    assert!(ours == std::fs::read(unpacked).unwrap());
}

fn word(memory: &GuestMemory, address: u64) -> u32 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

#[test]
fn a_multiboot_kernel_is_told_of_its_memory_command_line_module_and_loader() {
    let files = Files::new();
    let image = test_images::Multiboot::default().in_elf_32();
    let (kernel, module) = (files.file("kernel", &image), files.file("module", &[7; 5000]));
    let memory = memory(64 * MIB);
    let entry = load(
        &memory,
        &Payload {
            initramfs: Some(&module),
            ..payload(&kernel)
        },
    )
    .unwrap();
    assert_eq!(entry, Entry::Multiboot { rip: 0x20_000c });
    let field = |offset: u64| word(&memory, layout::MULTIBOOT_INFO + offset);
    assert_eq!(
        field(0),
        0x24d,
        "memory, command line, modules, memory map, loader's name"
    );
    assert_eq!((field(4), field(8)), (639, 63 << 10), "KiB from 0 and from 1 MiB");
    let line = text(&memory, field(16).into());
    assert_eq!(line, format!("{} console=ttyS0", kernel.display()));
    assert_eq!(field(20), 1);
    let list = u64::from(field(24));
    let (start, end) = (word(&memory, list), word(&memory, list + 4));
    assert_eq!((start, end - start), (0x20_2000, 5000), "on the page after the kernel");
    assert_eq!(memory.read_obj::<u8>(GuestAddress(start.into())).unwrap(), 7);
    assert_eq!(
        text(&memory, word(&memory, list + 8).into()),
        module.display().to_string()
    );
    assert_eq!(text(&memory, field(64).into()), "Reprise");
    let (length, map) = (u64::from(field(44)), u64::from(field(48)));
    let entries: Vec<[u32; 4]> = (0..length / 24)
        .map(|index| [0, 4, 12, 20].map(|offset| word(&memory, map + 24 * index + offset)))
        .collect();
    assert_eq!(
        entries,
        [
            [20, 0, 0x9_fc00, 1],
            [20, 0x9_fc00, 0x400, 2],
            [20, 0xe_0000, 0x2_0000, 2],
            [20, 0x10_0000, 63 << 20, 1]
        ]
    );
}

#[test]
fn the_multiboot_entry_is_flat_protected_mode_with_the_magic_number() {
    let cpu = Entry::Multiboot { rip: 0x10_0020 }.cpu();
    assert_eq!((cpu.view.mode, cpu.rip), (Mode::Protected, 0x10_0020));
    assert_eq!(cpu.gpr.get(gpr::RAX), 0x2bad_b002);
    assert_eq!(cpu.gpr.get(gpr::RBX), layout::MULTIBOOT_INFO);
    assert_eq!(cpu.cr0.0, Cr0::PE | Cr0::ET);
    assert!(!cpu.flags.interrupt());
    for seg in Seg::ALL {
        assert_eq!((cpu.segments[seg].base, cpu.segments[seg].limit), (0, u32::MAX));
    }
}

#[test]
fn a_header_in_a_64_bit_image_is_taken_only_where_pvh_does_not_say_otherwise() {
    let files = Files::new();
    let image = test_images::Multiboot::default();
    let memory = memory(8 * MIB);
    let both = files.file("both", &image.in_elf_64(Some(0x20_0004)));
    assert_eq!(load(&memory, &payload(&both)).unwrap(), Entry::Pvh { rip: 0x20_0004 });
    let error = load(&memory, &payload(&files.file("one", &image.in_elf_64(None)))).unwrap_err();
    assert!(
        matches!(
            error,
            BootError::Multiboot {
                source: MultibootError::Class64,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_module_that_does_not_fit_behind_the_kernel_is_refused() {
    let files = Files::new();
    let kernel = files.file("kernel", &test_images::Multiboot::default().in_elf_32());
    let module = files.file("module", &vec![0; 2 * MIB]);
    let payload = Payload {
        initramfs: Some(&module),
        ..payload(&kernel)
    };
    let error = load(&memory(4 * MIB), &payload).unwrap_err();
    assert!(
        matches!(
            error,
            BootError::InitramfsTooLarge {
                kernel_end: 0x20_2000,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(load(&memory(5 * MIB), &payload).is_ok());
}
