//! Test kit of Penstock.
