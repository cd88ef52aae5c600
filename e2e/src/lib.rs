//! Test kit of Penstock: throw-away PostgreSQL servers, a write load, a checker in plain SQL, a proxy that breaks
//! connections, a volume that fails. It shares no code with the worker, so that it can find the worker wrong.

pub mod checker;
pub mod load;
pub mod postgres;
pub mod proxy;
pub mod volume;

pub mod kubernetes;
