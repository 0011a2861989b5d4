//! A machine as plain data, and back.
//!
//! # Invariants
//! - A machine is saved while it is paused, in the order devices, hypervisor, vCPUs: what happens in between (an answer that
//!   comes late) is then saved twice rather than not at all, and what is saved twice is recognised.
//! - A restored machine is paused: no vCPU has run and no clock has moved when [`Machine::restore`] returns.

use std::path::Path;

use reprise_hypervisor::{Hypervisor, Vcpu, VcpuState, Vm, VmState};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::board::{Board, BoardState};
use super::gate::Gate;
use super::{Begin, Machine, MachineError, MachineOptions, OnEnd, PATIENCE, Parked, memory};
use crate::config::VmConfig;
use crate::snapshot::{self, Prefault, Snapshot, SnapshotError};

/// Everything that a machine remembers but its memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct MachineState {
    pub(super) vm: VmState,
    pub(super) board: BoardState,
    pub(super) vcpus: Vec<SavedVcpu>,
}

/// A vCPU, and where it is in the device access that it waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedVcpu {
    pub(super) state: VcpuState,
    pub(super) parked: Option<Parked>,
}

impl Machine {
    /// Writes the machine, which is paused and was made of `config`, into the folder `destination`: a free path, an empty
    /// folder, or a snapshot to replace. The machine stays as it is.
    ///
    /// # Errors
    /// [`SnapshotError`]; what was at `destination` before is then still there.
    pub fn snapshot(&self, config: &VmConfig, destination: &Path) -> Result<(), SnapshotError> {
        let state = self
            .state()
            .map_err(|error| SnapshotError::Machine { source: error.into() })?;
        snapshot::save(destination, config, &self.memory, &state)
    }

    /// Builds the machine of `snapshot`, whose configuration is valid: as [`new`](Self::new) but with the state and the memory
    /// that it had, and paused: [`resume`](Self::resume) lets it go on.
    ///
    /// # Errors
    /// [`MachineError`] naming what is in the way; nothing is left behind.
    pub fn restore(
        snapshot: &Snapshot,
        prefault: Prefault,
        hypervisor: &dyn Hypervisor,
        options: MachineOptions,
        on_end: OnEnd,
    ) -> Result<Self, MachineError> {
        let config = snapshot.config();
        memory::check(config.memory.size)?;
        let state: MachineState = snapshot.machine()?;
        let memory = snapshot.memory(prefault)?;
        let found: u64 = memory.iter().map(|region| region.len()).sum();
        if found != config.memory.size {
            let expected = config.memory.size;
            return Err(MachineError::MemorySize { found, expected });
        }
        // Devices in other processes see what is in a file, and a snapshot's is not to change.
        let memory = match config.shares_memory() {
            true => memory::share(&memory)?,
            false => memory,
        };
        Self::build(
            config,
            hypervisor,
            options,
            on_end,
            memory,
            Begin::Restore(Box::new(state)),
        )
    }

    fn state(&self) -> Result<MachineState, MachineError> {
        let board = self.board.state()?;
        let vm = self.vm.state()?;
        let told = self.shared.gate.states(PATIENCE);
        let told = told.map_err(|vcpu| MachineError::Mute { vcpu })?;
        let mut vcpus = Vec::new();
        for (state, index) in told.into_iter().zip(0..) {
            let state = state.map_err(|source| MachineError::State { vcpu: index, source })?;
            let parked = self.shared.gate.parked(index as usize);
            vcpus.push(SavedVcpu { state, parked });
        }
        Ok(MachineState { vm, board, vcpus })
    }
}

/// Gives a machine that has not run what `state` remembers, and leaves it paused.
pub(super) fn restore(
    state: MachineState,
    vm: &dyn Vm,
    board: &Board,
    vcpus: &mut [Box<dyn Vcpu>],
    gate: &Gate,
) -> Result<(), MachineError> {
    let (saved, own) = (state.vcpus.len(), vcpus.len());
    if saved != own {
        return Err(MachineError::VcpuStates { saved, own });
    }
    vm.set_paused(true);
    board.set_paused(true);
    vm.restore(&state.vm)?;
    board.restore(&state.board)?;
    for ((vcpu, saved), index) in vcpus.iter_mut().zip(state.vcpus).zip(0..) {
        let refused = |source| MachineError::FirstState { vcpu: index, source };
        vcpu.restore(saved.state).map_err(refused)?;
        if let Some(parked) = saved.parked {
            gate.restore(index as usize, parked);
        }
    }
    Ok(())
}
