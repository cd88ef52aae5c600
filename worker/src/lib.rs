//! The worker of Penstock.
