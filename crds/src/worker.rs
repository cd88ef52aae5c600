//! The processes that move the changes.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::connection::OBJECT_NAME_RULE;
use crate::scheduling::{ImagePullSecret, Resources, Toleration};

/// The processes that move the changes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.shards == oldSelf.shards")
    .message("worker.shards cannot be changed on a running pipeline: the shards stand at different positions, so tables cannot move between them without loss. Delete the pipeline with deletionPolicy Delete and create it again with the new number"))]
#[x_kube(validation = Rule::new("self.storage == oldSelf.storage")
    .message("worker.storage cannot be changed on a running pipeline: Kubernetes does not change the volume claims of a StatefulSet"))]
pub struct Worker {
    /// Image of the worker. Without it, the one that belongs to the operator's version at the time the
    /// revision is minted; a later upgrade of the operator does not change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("!self.matches('[[:space:]]') && !self.contains('://')")
        .message("worker.image must be an image reference without scheme or spaces, for example registry.example.com/penstock-worker:0.1.0"))]
    pub image: Option<String>,

    /// Number of workers. The tables are divided among them; tables joined by foreign keys stay
    /// together. A source transaction is atomic in the sink within a shard.
    #[serde(default = "Worker::default_shards")]
    #[schemars(range(min = 1, max = 64))]
    pub shards: u16,

    /// The volume of each worker. It holds the sequence checkpoint, a few hundred kilobytes.
    #[serde(default)]
    pub storage: Storage,

    /// CPU and memory of each worker, as in a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// Node labels that a worker's node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(validation = Rule::new("self.all(k, k.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$') && self[k].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))")
        .message("worker.nodeSelector: a key or a value is not a Kubernetes label, for example kubernetes.io/arch: amd64"))]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that a worker tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,

    /// Secrets to pull the image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub image_pull_secrets: Vec<ImagePullSecret>,

    /// What the worker logs: a `tracing` filter such as `info` or `info,penstock_worker::sink=debug`.
    #[serde(default = "Worker::default_log")]
    #[schemars(length(min = 1, max = 1024))]
    pub log: String,
}

impl Worker {
    fn default_shards() -> u16 {
        1
    }
    fn default_log() -> String {
        "info".into()
    }
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            image: None,
            shards: Self::default_shards(),
            storage: Storage::default(),
            resources: None,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            image_pull_secrets: Vec::new(),
            log: Self::default_log(),
        }
    }
}

/// The volume of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size, as a Kubernetes quantity.
    #[serde(default = "Storage::default_size")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('16Mi')) >= 0")
        .message("worker.storage.size must be a quantity of at least 16Mi, for example 1Gi"))]
    pub size: String,

    /// Storage class. Without it, the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME_RULE)
        .message("worker.storage.storageClassName must be the name of a StorageClass: lowercase letters, digits, '-' and '.', for example fast-ssd"))]
    pub storage_class_name: Option<String>,
}

impl Storage {
    fn default_size() -> String {
        "1Gi".into()
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self { size: Self::default_size(), storage_class_name: None }
    }
}
