//! The stage without servers: what fits, what a row becomes, and what changes of columns mean.

mod changes;
mod copies;
mod fits;
mod fixtures;
mod masks;
