//! What the calls take that change a VM.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The device that `vm.remove-device` removes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRemoveDevice {
    /// Its name.
    pub id: String,
}
