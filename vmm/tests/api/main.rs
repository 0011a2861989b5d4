//! The VMM as its callers see it: the lifecycle, and the REST API over its socket.

mod calls;
mod doubles;
mod lifecycle;
mod refusals;
mod wire;
mod world;
