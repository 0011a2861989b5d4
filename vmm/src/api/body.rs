//! Request bodies: JSON whatever the Content-Type says, and of limited size.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::error::Refusal;
use crate::config::from_json;

/// The largest body that is read, in bytes. A configuration has a few thousand.
const LIMIT: usize = 1 << 20;

/// How much of a body that is too large is taken from the client and dropped, in bytes. Many clients look for an answer
/// only once they have sent everything, and find a closed connection instead if nobody takes it.
const DISCARD: u64 = 256 << 20;

/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A body that holds one JSON value.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refusal> {
        let text = read(request).await?;
        Ok(Self(from_json(&text)?))
    }
}

async fn read(request: Request) -> Result<Vec<u8>, Refusal> {
    // Such a client waits for our word before it sends the body; reading would give it.
    let polite = request.headers().contains_key(EXPECT);
    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let mut body = request.into_body();
    if announced.is_some_and(|length| length > LIMIT as u64) {
        if !polite {
            discard(&mut body).await;
        }
        return Err(too_large());
    }
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                format!("the request's body cannot be read: {error}"),
            )
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if text.len() + data.len() > LIMIT {
            discard(&mut body).await;
            return Err(too_large());
        }
        text.extend_from_slice(&data);
    }
    Ok(text)
}

async fn discard(body: &mut axum::body::Body) {
    let all = async {
        let mut left = DISCARD;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            let Some(rest) = left.checked_sub(length) else { return };
            left = rest;
        }
    };
    // Whether it was everything or not, the answer is the same.
    let _ = tokio::time::timeout(PATIENCE, all).await;
}

fn too_large() -> Refusal {
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the request's body is too large; expected at most {LIMIT} bytes"),
    )
}
