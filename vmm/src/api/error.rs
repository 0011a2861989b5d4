//! Refusals as they go over the wire: a status, and a JSON array with the chain of errors.

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use crate::config::ConfigError;
use crate::lifecycle::{VmmError, chain};
use crate::snapshot::SnapshotError;

/// A refusal.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    chain: Vec<String>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            chain: vec![text.into()],
        }
    }
}

impl From<VmmError> for Refusal {
    fn from(error: VmmError) -> Self {
        let status = match &error {
            VmmError::NoVm | VmmError::NoDevice { .. } => StatusCode::NOT_FOUND,
            VmmError::Exists { .. } | VmmError::WrongState { .. } => StatusCode::CONFLICT,
            VmmError::BadConfig { .. }
            | VmmError::Build { .. }
            | VmmError::Restore { .. }
            | VmmError::Device { .. }
            | VmmError::Resize { .. }
            | VmmError::Fixed { .. } => StatusCode::BAD_REQUEST,
            VmmError::Snapshot { source } => match source {
                SnapshotError::NoParent { .. } | SnapshotError::Foreign { .. } => StatusCode::BAD_REQUEST,
                SnapshotError::InUse { .. } => StatusCode::CONFLICT,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
            VmmError::Machine { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            VmmError::NotSupported { .. } => StatusCode::NOT_IMPLEMENTED,
            VmmError::Closing => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self {
            status,
            chain: chain(&error),
        }
    }
}

impl From<ConfigError> for Refusal {
    fn from(error: ConfigError) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            chain: chain(&error),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.chain).expect("a list of strings is always JSON");
        (self.status, [(CONTENT_TYPE, "application/json")], body).into_response()
    }
}
