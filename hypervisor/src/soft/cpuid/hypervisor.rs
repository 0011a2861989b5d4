//! The leaves from 0x4000_0000 on: which hypervisor this is, and what it offers.

use super::super::clock::TSC_KHZ;
use super::super::vm::MAX_VCPUS;
use super::words;

/// A leaf: EAX, EBX, ECX, EDX.
type Leaf = (u32, [u32; 4]);

/// KVM's features (Linux, `Documentation/virt/kvm/x86/cpuid.rst`).
const KVM_FEATURES: u32 = 1 << 1        // port accesses need no delay
    | 1 << 3                            // kvmclock at MSRs 0x4b56_4d00 and 0x4b56_4d01
    | 1 << 5                            // steal time at MSR 0x4b56_4d03
    | 1 << 7                            // a kick ends HLT
    | 1 << 11                           // a hypercall sends IPIs
    | 1 << 13                           // a hypercall yields
    | 1 << 24; // the counters of all vCPUs agree

/// KVM's leaves.
pub fn kvm() -> Vec<Leaf> {
    let [ebx, ecx, edx] = words(b"KVMKVMKVM\0\0\0");
    vec![
        (0x4000_0000, [0x4000_0010, ebx, ecx, edx]),
        (0x4000_0001, [KVM_FEATURES, 0, 0, 0]),
        // Frequencies of the counter and of the local APIC timer's input, in kHz.
        (0x4000_0010, [TSC_KHZ, TSC_KHZ, 0, 0]),
    ]
}

/// Hyper-V's privileges (TLFS, "Hypervisor Feature Identification"): the registers and calls that there are.
const HYPERV_PRIVILEGES: u32 = 1 << 1   // reference time: HV_X64_MSR_TIME_REF_COUNT
    | 1 << 4                            // interrupt controller: EOI, ICR, TPR, VP assist page
    | 1 << 5                            // hypercalls: HV_X64_MSR_GUEST_OS_ID, HV_X64_MSR_HYPERCALL
    | 1 << 6                            // HV_X64_MSR_VP_INDEX
    | 1 << 9                            // reference time: HV_X64_MSR_REFERENCE_TSC
    | 1 << 11; // frequencies: HV_X64_MSR_TSC_FREQUENCY, HV_X64_MSR_APIC_FREQUENCY

/// Hyper-V's features.
const HYPERV_FEATURES: u32 = 1 << 4     // fast calls with input in XMM registers
    | 1 << 8; // the frequencies' registers

/// What a guest had better do (TLFS, "Implementation Recommendations").
const HYPERV_RECOMMENDATIONS: u32 = 1 << 2  // flush others' translations by hypercall
    | 1 << 5                            // take no watchdog seriously: the host's time slices are long
    | 1 << 10                           // send IPIs to several by hypercall
    | 1 << 11; // name more than 64 processors in such calls

/// How often a guest tries for a lock before it notifies of a long wait.
const HYPERV_SPINS: u32 = 0xfff;

/// Hyper-V's leaves.
pub fn hyperv() -> Vec<Leaf> {
    let [ebx, ecx, edx] = words(b"Microsoft Hv");
    vec![
        (0x4000_0000, [0x4000_0005, ebx, ecx, edx]),
        (0x4000_0001, [u32::from_le_bytes(*b"Hv#1"), 0, 0, 0]),
        // Build and version of a hypervisor that is none of Microsoft's.
        (0x4000_0002, [0; 4]),
        (0x4000_0003, [HYPERV_PRIVILEGES, 0, 0, HYPERV_FEATURES]),
        (0x4000_0004, [HYPERV_RECOMMENDATIONS, HYPERV_SPINS, 0, 0]),
        // Virtual and logical processors; interrupt vectors for devices of the host, of which none is passed through.
        (0x4000_0005, [MAX_VCPUS, MAX_VCPUS, 0, 0]),
    ]
}
