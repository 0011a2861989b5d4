//! FADT: the fixed hardware (ACPI, Fixed ACPI Description Table).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use reprise_devices::acpi::ports;
use reprise_devices::rtc;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// IAPC_BOOT_ARCH.
mod boot_arch {
    /// LEGACY_DEVICES: there are devices on the ISA bus, a serial port.
    pub const LEGACY_DEVICES: u16 = 1 << 0;
    /// 8042: there is a keyboard controller. It has no keyboard, but it can reset the machine.
    pub const I8042: u16 = 1 << 1;
    /// VGA Not Present: a system need not look for one, nor for its memory.
    pub const NO_VGA: u16 = 1 << 2;
}

/// The table. The machine begins in ACPI mode, so SMI_CMD is 0 and there is nothing to enable.
pub fn table(facs: u64, dsdt: u64) -> FADT {
    let low = |address: u64| u32::try_from(address).expect("tables lie below 1 MiB");
    let port = |address: u64| u32::try_from(address).expect("ports have 16 bits");
    let length = |length: u64| u8::try_from(length).expect("registers have a few bytes");
    let register =
        |address: u64, bytes: u64, access| GAS::new(AddressSpace::SystemIo, length(8 * bytes), 0, access, address);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // These two say that there is *no* such fixed hardware; the power button, whose flag is clear, is there.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.firmware_ctrl = low(facs).into();
    fadt.dsdt = low(dsdt).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::try_from(ports::SCI_GSI).expect("an ISA interrupt").into();
    fadt.pm1a_evt_blk = port(ports::PM1A_EVT).into();
    fadt.pm1_evt_len = length(ports::PM1A_EVT_LENGTH);
    fadt.x_pm1a_evt_blk = register(ports::PM1A_EVT, ports::PM1A_EVT_LENGTH, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = port(ports::PM1A_CNT).into();
    fadt.pm1_cnt_len = length(ports::PM1A_CNT_LENGTH);
    fadt.x_pm1a_cnt_blk = register(ports::PM1A_CNT, ports::PM1A_CNT_LENGTH, AccessSize::WordAccess);
    fadt.pm_tmr_blk = port(ports::PM_TMR).into();
    fadt.pm_tmr_len = length(ports::PM_TMR_LENGTH);
    fadt.x_pm_tmr_blk = register(ports::PM_TMR, ports::PM_TMR_LENGTH, AccessSize::DwordAccess);
    fadt.gpe0_blk = port(ports::GPE0).into();
    fadt.gpe0_blk_len = length(ports::GPE0_LENGTH);
    fadt.x_gpe0_blk = register(ports::GPE0, ports::GPE0_LENGTH, AccessSize::ByteAccess);
    fadt.reset_reg = register(ports::RESET, 1, AccessSize::ByteAccess);
    fadt.reset_value = ports::RESET_VALUE;
    // More than these mean: C2 and C3 are not there.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = rtc::CENTURY;
    fadt.iapc_boot_arch = (boot_arch::LEGACY_DEVICES | boot_arch::I8042 | boot_arch::NO_VGA).into();
    fadt.finalize()
}
