mod assembly;
mod encode;
mod errors;
mod fixtures;
mod properties;
