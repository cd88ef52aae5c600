//! The names that operator, worker and people share: labels, annotations, files, ports.

use sha2::{Digest as _, Sha256};

/// API group of the resource, and prefix of labels and annotations.
pub const GROUP: &str = "penstock.dev";
/// Field manager of every server-side apply.
pub const FIELD_MANAGER: &str = "penstock-operator";
/// Finalizer on `CdcPipeline`.
pub const FINALIZER: &str = "penstock.dev/clean-up";
/// Label: name of the pipeline that owns an object.
pub const LABEL_PIPELINE: &str = "penstock.dev/pipeline";
/// Label: revision that an object belongs to, such as `r1a2b3c4d`.
pub const LABEL_REVISION: &str = "penstock.dev/revision";
/// Label: UID of the pipeline that a volume belongs to.
pub const LABEL_UID: &str = "penstock.dev/uid";
/// Annotation a user sets on a new pipeline: UID of a deleted one whose retained state it takes over.
pub const ANNOTATION_ADOPT: &str = "penstock.dev/adopt";

/// Annotation a user sets: tables to be copied again, once per token, as `TOKEN:TABLE,TABLE`.
pub const ANNOTATION_RESNAPSHOT: &str = "penstock.dev/resnapshot";

/// Annotation a user sets: the sink is compared with the source, once per token, as `TOKEN`.
pub const ANNOTATION_COMPARE_SOURCE: &str = "penstock.dev/compare-source";

/// Annotation a user sets: the canary of this revision is promoted, if every row is the same. Its value is the revision's name.
pub const ANNOTATION_PROMOTE: &str = "penstock.dev/promote";

/// Annotation a user sets: the canary of this revision is rejected and removed. Its value is the revision's name.
pub const ANNOTATION_ABORT: &str = "penstock.dev/abort";

/// Annotation a user sets: this revision gives the tables back to the one that it was promoted over. Its value is the revision's name.
pub const ANNOTATION_ROLL_BACK: &str = "penstock.dev/roll-back";

/// Container port of `/healthz`, `/readyz` and `/metrics`, plain HTTP.
pub const PORT_HEALTH: u16 = 8080;
/// Container port of `/v1/report` and `/v1/directive`, TLS with a bearer token.
pub const PORT_CONTROL: u16 = 8443;

/// Folder of the worker's volume.
pub const DIR_STATE: &str = "/var/lib/penstock";
/// Folder with `pipeline.yaml`, the manifest the worker runs.
pub const DIR_CONFIG: &str = "/etc/penstock/config";
/// Folder with `tls.crt`, `tls.key`, `ca.crt` and `token` of the worker's control API.
pub const DIR_CONTROL: &str = "/etc/penstock/control";
/// Folder with one folder per database end (`source`, `sink`), each with `username` and `password`.
pub const DIR_CREDENTIALS: &str = "/etc/penstock/credentials";
/// Folder with one folder per database end (`source`, `sink`), each with `ca/ca.crt` and
/// `client/tls.crt`, `client/tls.key`, as far as they are given.
pub const DIR_TLS: &str = "/etc/penstock/tls";

/// Folder with one folder per Secret that a mask names, each with `key`.
pub const DIR_MASK_KEYS: &str = "/etc/penstock/mask-keys";

/// Key of a mask's key in its Secret.
pub const FILE_MASK_KEY: &str = "key";
/// Key of the manifest in the ConfigMap.
pub const FILE_PIPELINE: &str = "pipeline.yaml";
/// Key of the bearer token in the control Secret.
pub const FILE_TOKEN: &str = "token";

/// The first 8 hex digits of the SHA-256 of a pipeline's UID: what its names in databases are made from.
pub fn uid8(uid: &str) -> String {
    let mut digest = hex::encode(Sha256::digest(uid));
    digest.truncate(8);
    digest
}

/// Name of the replication slot of one shard. It survives a change of revision.
pub fn slot(uid: &str, shard: u16) -> String {
    format!("penstock_{}_{shard}", uid8(uid))
}

/// Name of the publication that a pipeline keeps, unless the manifest gives one.
pub fn publication(uid: &str) -> String {
    format!("penstock_{}", uid8(uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_databases_are_made_from_the_uid_and_stay_the_same() {
        let uid = "0b7c5a1e-6f3a-4c55-9d0e-2f7d0c9f1a11";
        assert_eq!(uid8(uid), "fa08af98");
        assert_eq!(slot(uid, 3), "penstock_fa08af98_3");
        assert_eq!(publication(uid), "penstock_fa08af98");
    }
}
