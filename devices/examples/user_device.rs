//! A whole PCI device, 1b36:00fe, in a process of its own: `cargo run --example user_device -- SOCKET`. BAR 0 has "RPRS" at 0,
//! and at 8 an address: a write to 0x10 has the device greet there, by DMA, and then interrupt with vector 0 of MSI-X.
use std::{env, fs::File, io, io::Write};
use vfio_bindings::bindings::vfio::vfio_region_info;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
/// Configuration space: IDs; Status: capabilities; class; where they are; MSI-X, its table, its pending bits.
const CONFIG: [u32; 19] = [
    0x00fe1b36, 0x100000, 0xff000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0x11, 0x800, 0xc00,
];
#[derive(Default)]
struct Greeter {
    memory: GuestMemoryMmap,
    interrupt: Option<File>,
    registers: [u32; 5],
}

impl ServerBackend for Greeter {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let words = if region == 7 { &CONFIG[..] } else { &self.registers };
        let word = words.get(offset as usize / 4).unwrap_or(&0) >> (offset % 4 * 8);
        let length = data.len().min(4);
        data[..length].copy_from_slice(&word.to_le_bytes()[..length]);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let register = self.registers.get_mut(offset as usize / 4);
        if let (0, 4.., Ok(word), Some(register)) = (region, offset, data.try_into(), register) {
            *register = u32::from_le_bytes(word);
        }
        if let (0, 0x10, Some(event)) = (region, offset, &mut self.interrupt) {
            let address = u64::from(self.registers[2]) | u64::from(self.registers[3]) << 32;
            let (greeting, at) = (b"hello from another process", GuestAddress(address));
            self.memory.write_slice(greeting, at).map_err(io::Error::other)?;
            event.write_all(&1_u64.to_ne_bytes())?;
        }
        Ok(())
    }

    fn dma_map(&mut self, _: DmaMapFlags, offset: u64, at: u64, size: u64, file: Option<File>) -> io::Result<()> {
        let file = FileOffset::new(file.ok_or(io::ErrorKind::Unsupported)?, offset);
        let region = MmapRegion::from_file(file, size as usize).map_err(io::Error::other)?;
        let region = GuestRegionMmap::new(region, GuestAddress(at)).ok_or(io::ErrorKind::InvalidInput)?;
        self.memory = self.memory.insert_region(region.into()).map_err(io::Error::other)?;
        Ok(())
    }
    fn dma_unmap(&mut self, _: DmaUnmapFlags, at: u64, size: u64) -> io::Result<()> {
        let rest = self.memory.remove_region(GuestAddress(at), size);
        rest.map(|rest| self.memory = rest.0).map_err(io::Error::other)
    }

    fn reset(&mut self) -> io::Result<()> {
        self.registers = [u32::from_le_bytes(*b"RPRS"), 0, 0, 0, 0];
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, mut events: Vec<File>) -> io::Result<()> {
        self.interrupt = events.pop().or(self.interrupt.take());
        Ok(())
    }
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let region = |(index, size)| {
        let mut region_info = vfio_region_info::default();
        (region_info.index, region_info.flags, region_info.size) = (index, 3, size);
        ServerRegion {
            region_info,
            sparse_areas: Vec::new(),
            mmap_fd: None,
        }
    };
    let irq = |(index, count)| IrqInfo { index, flags: 1, count };
    let regions = (0..).zip([0x1000, 0, 0, 0, 0, 0, 0, 0x100, 0]).map(region);
    let irqs = (0..).zip([0, 0, 1, 0, 0]).map(irq);
    let socket = env::args_os().nth(1).ok_or("usage: user_device SOCKET")?;
    let server = Server::new(socket.as_ref(), true, irqs.collect(), regions.collect())?;
    Ok(server.run(&mut Greeter::default())?)
}
