//! The worker of Penstock: moves the changes of one shard of a `CdcPipeline` from source to sink, exactly once.

pub mod batch;
pub mod change;
pub mod checkpoint;
pub mod clean_up;
pub mod compare;
pub mod decide;
pub mod decode;
pub mod evolve;
pub mod failpoint;
pub mod failure;
pub mod incremental;
pub mod lineage;
pub mod mask_keys;
pub mod pipeline;
pub mod postgres;
pub mod progress;
pub mod resnapshot;
pub mod rollout;
pub mod serve;
pub mod settings;
pub mod sink;
pub mod source;
pub mod status;
pub mod supervisor;
pub mod telemetry;
pub mod transform;
