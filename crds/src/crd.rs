//! The CustomResourceDefinition as it is installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

use crate::CdcPipeline;

/// The CustomResourceDefinition of `CdcPipeline`, as the chart installs it.
pub fn definition() -> CustomResourceDefinition {
    CdcPipeline::crd()
}
