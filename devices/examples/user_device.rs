//! A whole PCI device in a process of its own: `cargo run --example user_device -- SOCKET`. The guest finds it as 1b36:00fe.
//!
//! BAR 0: at 0x00 "RPRS"; at 0x04 a word that keeps what is written; at 0x08 an address of 64 bits; whoever writes to 0x10
//! gets a greeting there, by DMA, and then the interrupt of vector 0. MSI-X is at 0x800.

use std::{collections::BTreeMap, env, fs::File, io, io::Write, path::Path};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Vendor, device, Status (a list of capabilities); class; where the list is; MSI-X with one vector, in BAR 0.
const CONFIG: [(usize, u32); 7] = [
    (0x00, 0x00fe_1b36),
    (0x04, 0x0010_0000),
    (0x08, 0xff00_0000),
    (0x34, 0x40),
    (0x40, 0x11),
    (0x44, 0x800),
    (0x48, 0xc00),
];

#[derive(Default)]
struct Greeter {
    memory: GuestMemoryMmap,
    vectors: BTreeMap<u32, File>,
    registers: [u8; 0x14],
}

impl ServerBackend for Greeter {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let config: Vec<u8> = (0..0x100)
            .map(|at| {
                CONFIG
                    .iter()
                    .find(|(word, _)| *word == at & !3)
                    .map_or(0, |(_, word)| word.to_le_bytes()[at & 3])
            })
            .collect();
        let source = if region == 7 { &config[..] } else { &self.registers[..] };
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = source.get(at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if region != 0 || !(0x04..0x14).contains(&offset) {
            return Ok(());
        }
        self.registers
            .iter_mut()
            .skip(offset as usize)
            .zip(data)
            .for_each(|(place, byte)| *place = *byte);
        if offset == 0x10 {
            let address = u64::from_le_bytes(self.registers[0x08..0x10].try_into().expect("8 bytes"));
            self.memory
                .write_slice(b"hello from another process", GuestAddress(address))
                .map_err(io::Error::other)?;
            self.vectors
                .get_mut(&0)
                .map_or(Ok(()), |event| event.write_all(&1_u64.to_ne_bytes()))?;
        }
        Ok(())
    }

    fn dma_map(&mut self, _: DmaMapFlags, offset: u64, address: u64, size: u64, file: Option<File>) -> io::Result<()> {
        let file = file.ok_or_else(|| io::Error::other("this device maps memory"))?;
        let region = MmapRegion::from_file(FileOffset::new(file, offset), size as usize).map_err(io::Error::other)?;
        let region = GuestRegionMmap::new(region, GuestAddress(address)).ok_or_else(|| io::Error::other("no range"))?;
        self.memory = self.memory.insert_region(region.into()).map_err(io::Error::other)?;
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.memory = self
            .memory
            .remove_region(GuestAddress(address), size)
            .map_err(io::Error::other)?
            .0;
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.registers = [0; 0x14];
        self.registers[..4].copy_from_slice(b"RPRS");
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, start: u32, _: u32, events: Vec<File>) -> io::Result<()> {
        self.vectors.extend((start..).zip(events));
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let region = |index, size| ServerRegion {
        region_info: vfio_region_info {
            index,
            size,
            flags: VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
            ..Default::default()
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    };
    let regions = (0..9)
        .map(|index| {
            region(
                index,
                match index {
                    0 => 0x1000,
                    7 => 0x100,
                    _ => 0,
                },
            )
        })
        .collect();
    let irqs = (0..5)
        .map(|index| IrqInfo {
            index,
            flags: VFIO_IRQ_INFO_EVENTFD,
            count: u32::from(index == 2),
        })
        .collect();
    let socket = env::args_os().nth(1).ok_or("usage: user_device SOCKET")?;
    Ok(Server::new(Path::new(&socket), true, irqs, regions)?.run(&mut Greeter::default())?)
}
