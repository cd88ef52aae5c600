//! The tests on a real cluster, in one program, so that they fill both threads of the runner. Each has namespaces of
//! its own; what it does to the operator or to the `CustomResourceDefinition` it does alone ([`stage::ALONE`]).

mod comparison;
mod deletion;
mod faults;
mod interruptions;
mod lifecycle;
mod manifests;
mod operators;
mod requests;
mod rollouts;
mod stage;
mod tls;
