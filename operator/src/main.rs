//! The operator of Penstock.

fn main() {}
