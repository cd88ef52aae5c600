//! The worker of Penstock.

fn main() {}
