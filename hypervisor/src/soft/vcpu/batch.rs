//! Batches that are for the platform: repeated string instructions on its registers.

use reprise_emulator::{Direction, Reply, Request};

use super::SoftVcpu;

impl SoftVcpu {
    /// Moves the elements of `batch` between the platform and RAM; fewer, if the platform does not have them all, and
    /// `None` if it has not even the first.
    pub(super) fn answer_batch(&mut self, batch: &Request) -> Option<Reply> {
        let to_guest = matches!(batch.direction, Direction::ReadTo { .. });
        let mut done = 0;
        while let Some((address, guest)) = batch.element(done) {
            let direction = match to_guest {
                true => Direction::Read,
                false => Direction::Write(self.load(guest, batch.size)),
            };
            let element = Request {
                address,
                direction,
                ..*batch
            };
            match self.answer_one(&element) {
                Some(Reply::Value(value)) if to_guest => self.store(guest, batch.size, value),
                Some(_) => {}
                // The rest, or all, is a device's.
                None => break,
            }
            done += 1;
        }
        (done > 0).then_some(Reply::Value(u64::from(done)))
    }

    /// What RAM holds, ones where there is none.
    fn load(&mut self, guest: u64, size: u8) -> u64 {
        let mut bytes = [0; 8];
        match self
            .emulator
            .aside()
            .read(guest, &mut bytes[..usize::from(size.min(8))])
        {
            true => u64::from_le_bytes(bytes),
            false => u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))),
        }
    }

    /// Writes RAM; what there is not stays away.
    fn store(&mut self, guest: u64, size: u8, value: u64) {
        let _no_ram = self
            .emulator
            .aside()
            .write(guest, &value.to_le_bytes()[..usize::from(size.min(8))]);
    }
}
