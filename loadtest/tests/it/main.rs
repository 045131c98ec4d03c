//! The real binary against a small server that answers in the wire form.

mod double;
mod kinds;
mod limits;
mod objectives;
mod open_loop;
mod report;
mod script;
mod server;
