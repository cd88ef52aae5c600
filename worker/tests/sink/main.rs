//! The PostgreSQL sink and the checkpoint on the volume, against a real server.

mod fence;
mod load;
mod rows;
mod start;
mod support;
mod tables;
mod values;
mod volume;
