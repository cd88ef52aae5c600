//! The operator of Penstock.
