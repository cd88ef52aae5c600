//! Where a worker may run and what it may use: the parts of a pod that a manifest can set.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::connection::{OBJECT_NAME_MESSAGE, OBJECT_NAME_RULE};

/// CPU and memory of a worker.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What a worker may use at most, for example `memory: 256Mi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, Quantity>,

    /// What is set aside for a worker, for example `cpu: 100m`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, Quantity>,
}

/// What Kubernetes accepts as a quantity.
const QUANTITY_PATTERN: &str = r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$";

fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"x-kubernetes-int-or-string": true, "pattern": QUANTITY_PATTERN},
    })
}

impl From<&Resources> for core::ResourceRequirements {
    fn from(resources: &Resources) -> Self {
        let given = |map: &BTreeMap<String, Quantity>| (!map.is_empty()).then(|| map.clone());
        Self { limits: given(&resources.limits), requests: given(&resources.requests), claims: None }
    }
}

/// A taint that a worker tolerates, as in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.key) || (has(self.operator) && self.operator == 'Exists')")
    .message("worker.tolerations: an entry without a key tolerates every taint and needs operator: Exists"))]
#[x_kube(validation = Rule::new("!has(self.value) || !has(self.operator) || self.operator == 'Equal'")
    .message("worker.tolerations: operator Exists does not compare, so value would be ignored: remove it"))]
#[x_kube(validation = Rule::new("!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')")
    .message("worker.tolerations: tolerationSeconds has a meaning only with effect: NoExecute"))]
pub struct Toleration {
    /// Key of the taint. Without it, every key, and the operator must be `Exists`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub key: Option<String>,

    /// `Equal` compares the value (the default), `Exists` takes any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,

    /// Value of the taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,

    /// Effect of the taint. Without it, every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,

    /// Seconds that a worker stays on a node that gets the taint. Without it, forever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub toleration_seconds: Option<i64>,
}

impl From<&Toleration> for core::Toleration {
    fn from(toleration: &Toleration) -> Self {
        Self {
            key: toleration.key.clone(),
            operator: toleration.operator.map(|operator| format!("{operator:?}")),
            value: toleration.value.clone(),
            effect: toleration.effect.map(|effect| format!("{effect:?}")),
            toleration_seconds: toleration.toleration_seconds,
        }
    }
}

/// How a toleration compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TolerationOperator {
    /// The value must be equal.
    Equal,
    /// Any value will do.
    Exists,
}

/// What a taint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TaintEffect {
    /// New pods are not placed there.
    NoSchedule,
    /// New pods are placed there only if they must.
    PreferNoSchedule,
    /// Pods are evicted.
    NoExecute,
}

/// A Secret to pull the image with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImagePullSecret {
    /// Name of the Secret, of type `kubernetes.io/dockerconfigjson`.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME_RULE).message(OBJECT_NAME_MESSAGE))]
    pub name: String,
}

impl From<&ImagePullSecret> for core::LocalObjectReference {
    fn from(secret: &ImagePullSecret) -> Self {
        Self { name: secret.name.clone() }
    }
}
