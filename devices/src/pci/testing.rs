//! Doubles for tests of PCI: who receives messages, and a device that remembers.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::{Message, Messages, Registers};
use crate::bus::Response;

/// Remembers the messages sent and the routes told, and that a vector's messages go to where they were routed.
#[derive(Default)]
pub(crate) struct Inbox {
    sent: Mutex<Vec<Message>>,
    routes: Mutex<Vec<(u16, Option<Message>)>>,
    now: Mutex<BTreeMap<u16, Option<Message>>>,
}

impl Inbox {
    /// The messages since the last call.
    pub(crate) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }

    /// The routes told since the last call.
    pub(crate) fn take_routes(&self) -> Vec<(u16, Option<Message>)> {
        std::mem::take(&mut self.routes.lock().unwrap())
    }
}

impl Messages for Inbox {
    fn send(&self, message: Message) {
        self.sent.lock().unwrap().push(message);
    }

    fn signal(&self, vector: u16, message: Message) {
        let routed = self.now.lock().unwrap().get(&vector).copied().flatten();
        assert_eq!(routed, Some(message), "where vector {vector} was routed");
        self.send(message);
    }

    fn route(&self, vector: u16, message: Option<Message>) {
        self.now.lock().unwrap().insert(vector, message);
        self.routes.lock().unwrap().push((vector, message));
    }
}

/// Byte-wide memory behind every BAR, initially 0x5a.
#[derive(Default)]
pub(crate) struct Scratch {
    bytes: Mutex<BTreeMap<(u8, u64), u8>>,
    pub(crate) master: Mutex<Vec<bool>>,
    placed: Mutex<Vec<(u8, Option<u64>)>>,
}

impl Scratch {
    /// Where BARs were put since the last call.
    pub(crate) fn take_placed(&self) -> Vec<(u8, Option<u64>)> {
        std::mem::take(&mut self.placed.lock().unwrap())
    }
}

impl Registers for Scratch {
    fn read(&self, bar: u8, offset: u64, size: u8) -> Response {
        let bytes = self.bytes.lock().unwrap();
        Response::Done(crate::bytes::read(offset, size, |at| {
            *bytes.get(&(bar, at)).unwrap_or(&0x5a)
        }))
    }

    fn write(&self, bar: u8, offset: u64, size: u8, value: u64) -> Response {
        let mut bytes = self.bytes.lock().unwrap();
        crate::bytes::write(offset, size, value, |at, byte| _ = bytes.insert((bar, at), byte));
        Response::Done(0)
    }

    fn set_master(&self, master: bool) {
        self.master.lock().unwrap().push(master);
    }

    fn placed(&self, bar: u8, address: Option<u64>) {
        self.placed.lock().unwrap().push((bar, address));
    }
}
