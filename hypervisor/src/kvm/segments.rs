//! Segment and table registers: the crate's own, and KVM's.
//!
//! KVM has the access rights bit by bit, and besides says whether a segment is *unusable*; here that is one that is not
//! present.

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};
use reprise_emulator::Cpu;
use reprise_emulator::cpu::{Attributes, Seg, Segment, TableRegister};

/// What KVM's segment and table registers say.
pub fn read(cpu: &mut Cpu, from: &kvm_sregs) {
    for (seg, segment) in [
        (Seg::Es, &from.es),
        (Seg::Cs, &from.cs),
        (Seg::Ss, &from.ss),
        (Seg::Ds, &from.ds),
        (Seg::Fs, &from.fs),
        (Seg::Gs, &from.gs),
    ] {
        cpu.segments[seg] = from_kvm(segment);
    }
    cpu.ldtr = from_kvm(&from.ldt);
    cpu.tr = from_kvm(&from.tr);
    cpu.gdtr = table_from_kvm(&from.gdt);
    cpu.idtr = table_from_kvm(&from.idt);
}

/// Puts segment and table registers where KVM takes them.
pub fn write(cpu: &Cpu, to: &mut kvm_sregs) {
    let segment = |seg| to_kvm(&cpu.segments[seg]);
    to.es = segment(Seg::Es);
    to.cs = segment(Seg::Cs);
    to.ss = segment(Seg::Ss);
    to.ds = segment(Seg::Ds);
    to.fs = segment(Seg::Fs);
    to.gs = segment(Seg::Gs);
    to.ldt = to_kvm(&cpu.ldtr);
    to.tr = to_kvm(&cpu.tr);
    to.gdt = table_to_kvm(cpu.gdtr);
    to.idt = table_to_kvm(cpu.idtr);
}

fn from_kvm(from: &kvm_segment) -> Segment {
    let bit = |value: u8, place: u32| u16::from(value & 1) << place;
    let present = from.present & 1 != 0 && from.unusable == 0;
    let attributes = u16::from(from.type_ & 0xf)
        | bit(from.s, 4)
        | u16::from(from.dpl & 3) << 5
        | bit(u8::from(present), 7)
        | bit(from.avl, 12)
        | bit(from.l, 13)
        | bit(from.db, 14)
        | bit(from.g, 15);
    Segment {
        selector: from.selector,
        attributes: Attributes(attributes),
        limit: from.limit,
        base: from.base,
    }
}

fn to_kvm(segment: &Segment) -> kvm_segment {
    let rights = segment.attributes;
    let bit = |place: u32| (rights.0 >> place & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (rights.0 & 0xf) as u8,
        present: bit(7),
        dpl: rights.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: u8::from(!rights.is_present()),
        padding: 0,
    }
}

fn table_from_kvm(from: &kvm_dtable) -> TableRegister {
    TableRegister {
        base: from.base,
        limit: from.limit,
    }
}

fn table_to_kvm(table: TableRegister) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        ..kvm_dtable::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_access_right_has_its_place() {
        for place in [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15] {
            let segment = Segment {
                selector: 0x1234,
                attributes: Attributes(1 << place),
                limit: 0xfedc_ba98,
                base: 0x1234_5678_9abc_def0,
            };
            assert_eq!(from_kvm(&to_kvm(&segment)), segment, "bit {place}");
        }
    }

    #[test]
    fn what_is_unusable_is_not_present() {
        let mut segment = to_kvm(&Segment::flat(8, Attributes(0xc09b)));
        assert_eq!((segment.present, segment.unusable), (1, 0));
        segment.unusable = 1;
        assert!(!from_kvm(&segment).attributes.is_present());
        assert_eq!(to_kvm(&Segment::null(3)).unusable, 1);
    }
}
