//! Writes a pipeline's status, if it is another than the stored one.

use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use penstock_crds::names::FIELD_MANAGER;
use penstock_crds::{CdcPipeline, CdcPipelineStatus};
use serde_json::json;

use crate::call::{CallError, call};

/// Writes the status, if it is another than the stored one. The UID makes it a no-op for a namesake.
pub(super) async fn write(
    client: &Client,
    pipeline: &CdcPipeline,
    status: &CdcPipelineStatus,
) -> Result<(), CallError> {
    if pipeline.status.as_ref() == Some(status) {
        return Ok(());
    }
    let name = pipeline.metadata.name.as_deref().unwrap_or_default();
    let namespace = pipeline.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<CdcPipeline> = Api::namespaced(client.clone(), namespace);
    let patch = Patch::Apply(json!({
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "CdcPipeline",
        "metadata": {"name": name, "namespace": namespace, "uid": pipeline.metadata.uid},
        "status": status,
    }));
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let outcome =
        call("writing the status of the pipeline", api.patch_status(name, &parameters, &patch)).await;
    match outcome {
        // Gone, or another object by now: nobody's status to write.
        Err(error) if error.is_code(404) || error.is_code(409) => Ok(()),
        outcome => outcome.map(drop),
    }
}
