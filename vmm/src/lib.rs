//! Reprise vmm.
