//! The VMM as its callers see it: the lifecycle, and the REST API over its socket.

mod calls;
mod devices;
mod doubles;
mod lifecycle;
mod refusals;
mod snapshot;
mod wire;
mod world;
