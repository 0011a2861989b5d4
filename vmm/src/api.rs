//! The REST server: `/api/v1` on a UNIX socket, for the clients that cloud-hypervisor's API has.
//!
//! # Invariants
//! - One thread serves all connections and never waits for a guest: calls that may take time run on threads of their own,
//!   while `vmm.ping` and `vm.info` are answered at once.
//! - No client starves another: at [`connections::LIMIT`](connections) connections the one that has been idle longest
//!   (waiting for its request counts as idle) makes room; a body is read to its limit only.
//! - Every answer to an intelligible request that is not a success has a JSON array of strings as its body, the chain of
//!   errors from the outermost to the root.
//! - Header names are spelled `Content-Length: `, for there are clients that compare letter by letter.
//!
//! # Life
//! [`ApiSocket`] names the place, [`ApiServer::start`] binds it and serves, dropping the server lets running calls answer,
//! closes all connections and removes the socket.

mod body;
mod connections;
mod devices;
mod error;
mod openapi;
mod routes;
mod server;
mod socket;

pub use openapi::document;
pub use server::{ApiError, ApiServer};
pub use socket::ApiSocket;
