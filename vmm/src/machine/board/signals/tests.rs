use reprise_devices::pci::Msix;
use reprise_devices::pci::msix::control;
use reprise_hypervisor::{HypervisorError, InterruptLine, Vcpu, VmState};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;

/// A kernel with so many events, and what it was told.
#[derive(Default)]
struct Kernel {
    most: usize,
    events: Mutex<Vec<Arc<Told>>>,
    sent: Mutex<Vec<(u64, u32)>>,
}

/// Where an event's messages were told to go, over time.
struct Told {
    event: EventFd,
    messages: Mutex<Vec<Option<u32>>>,
}

impl MessageEvent for Told {
    fn set(&self, message: Option<signals::Message>) -> Result<(), HypervisorError> {
        let mut messages = self.messages.lock().unwrap();
        messages.push(message.map(|message| message.data));
        match message {
            Some(signals::Message { address: 0, .. }) => Err(HypervisorError::Unsupported { what: "address 0" }),
            _ => Ok(()),
        }
    }

    fn event(&self) -> &EventFd {
        &self.event
    }
}

impl Vm for Kernel {
    fn message_event(&self) -> Result<Arc<dyn MessageEvent>, HypervisorError> {
        let mut events = self.events.lock().unwrap();
        if events.len() == self.most {
            return Err(HypervisorError::Unsupported { what: "one more" });
        }
        let event = Arc::new(Told {
            event: EventFd::new(EFD_NONBLOCK).unwrap(),
            messages: Mutex::default(),
        });
        events.push(Arc::clone(&event));
        Ok(event)
    }

    fn signal_msi(&self, address: u64, data: u32) {
        self.sent.lock().unwrap().push((address, data));
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, HypervisorError> {
        Err(HypervisorError::VcpuIndex { index })
    }
    fn interrupt_line(&self, gsi: u32) -> Result<Arc<dyn InterruptLine>, HypervisorError> {
        Err(HypervisorError::Gsi { gsi, max: 0 })
    }
    fn memory_written(&self, _address: u64, _length: u64) {}
    fn set_paused(&self, _paused: bool) {}
    fn state(&self) -> Result<VmState, HypervisorError> {
        Err(HypervisorError::Unsupported { what: "a state" })
    }
    fn restore(&self, _state: &VmState) -> Result<(), HypervisorError> {
        Err(HypervisorError::Unsupported { what: "a state" })
    }
}

impl Kernel {
    /// How often the event of this place was signalled since it was asked last.
    fn signals(&self, place: usize) -> u64 {
        self.events.lock().unwrap()[place].event.read().unwrap_or(0)
    }

    fn told(&self, place: usize) -> Vec<Option<u32>> {
        std::mem::take(&mut self.events.lock().unwrap()[place].messages.lock().unwrap())
    }
}

/// MSI-X with three vectors, on, in front of a kernel with `most` events.
fn msix(most: usize) -> (Msix, Arc<Kernel>) {
    let kernel = Arc::new(Kernel {
        most,
        ..Kernel::default()
    });
    let msix = Msix::new(3, Arc::new(Events::new(Arc::clone(&kernel) as Arc<dyn Vm>)));
    msix.set_control(control::ENABLE, true);
    (msix, kernel)
}

/// Gives a vector a message with `data`, unmasked.
fn set(msix: &Msix, vector: u64, address: u64, data: u32) {
    msix.write_table(vector * 16, 8, address);
    msix.write_table(vector * 16 + 8, 8, data.into());
}

#[test]
fn a_vector_has_an_event_once_it_may_be_sent_and_kernel_and_vector_agree_on_where_it_goes() {
    let (msix, kernel) = msix(3);
    assert_eq!(kernel.events.lock().unwrap().len(), 0, "all are masked");
    set(&msix, 1, 0xfee0_0000, 0x41);
    assert_eq!(kernel.events.lock().unwrap().len(), 1);
    assert_eq!(kernel.told(0), [Some(0x41)]);
    msix.signal(1);
    msix.signal(1);
    assert_eq!(kernel.signals(0), 2);
    set(&msix, 1, 0xfee0_0000, 0x41);
    assert_eq!(kernel.told(0), [], "that is no change");
    msix.write_table(16 + 8, 4, 0x42);
    assert_eq!(kernel.told(0), [Some(0x42)]);
    assert_eq!(kernel.sent.lock().unwrap().len(), 0);
}

#[test]
fn a_masked_vector_is_pending_in_the_table_and_signalled_behind_its_route_when_it_is_unmasked() {
    let (msix, kernel) = msix(3);
    set(&msix, 1, 0xfee0_0000, 0x41);
    let ways: [[&dyn Fn(); 2]; 2] = [
        [&|| msix.write_table(16 + 12, 4, 1), &|| msix.write_table(16 + 12, 4, 0)],
        [
            &|| msix.set_control(control::ENABLE | control::FUNCTION_MASK, true),
            &|| msix.set_control(control::ENABLE, true),
        ],
    ];
    for [mask, unmask] in ways {
        kernel.told(0);
        mask();
        assert_eq!(kernel.told(0), [None]);
        msix.signal(1);
        msix.signal(1);
        assert_eq!((kernel.signals(0), msix.read_pending(0, 8)), (0, 0b10));
        unmask();
        assert_eq!(kernel.told(0), [Some(0x41)]);
        assert_eq!((kernel.signals(0), msix.read_pending(0, 8)), (1, 0));
    }
}

#[test]
fn what_the_host_has_no_event_for_is_sent_one_by_one() {
    let (msix, kernel) = msix(1);
    set(&msix, 0, 0xfee0_0000, 0x41);
    set(&msix, 1, 0xfee0_0000, 0x42);
    set(&msix, 0, 0, 0x43);
    for vector in 0..3 {
        msix.signal(vector);
    }
    assert_eq!(*kernel.sent.lock().unwrap(), [(0, 0x43), (0xfee0_0000, 0x42)]);
    assert_eq!(kernel.signals(0), 0, "it refused address 0");
}
