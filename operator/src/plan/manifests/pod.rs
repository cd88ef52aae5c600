//! What the pods of workers and of the clean-up Job have in common: the restricted security context and
//! the folders that the worker reads.

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, KeyToPath, PodSecurityContext,
    PodSpec, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use penstock_crds::connection::PostgresConnection;
use penstock_crds::names::{DIR_CONFIG, DIR_CREDENTIALS, DIR_MASK_KEYS, DIR_TLS};
use penstock_crds::transform::key_secrets;

use crate::names;
use crate::plan::MASK_KEYS;
use crate::world::{KnownRevision, World};

/// User and group of the worker's image.
const NON_ROOT: i64 = 65_532;
/// Files of Secrets are readable by the pod's group only.
const GROUP_READABLE: i32 = 0o440;

/// A pod of the pipeline with everything but its containers' purpose.
pub(super) fn pod_spec(world: &World, revision: &KnownRevision, container: Container) -> PodSpec {
    let worker = &world.pipeline.spec.worker;
    let given = |is_empty: bool| (!is_empty).then_some(());
    PodSpec {
        service_account_name: Some(names::of_workers(world.name())),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(NON_ROOT),
            run_as_group: Some(NON_ROOT),
            fs_group: Some(NON_ROOT),
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        node_selector: given(worker.node_selector.is_empty()).map(|()| worker.node_selector.clone()),
        tolerations: given(worker.tolerations.is_empty())
            .map(|()| worker.tolerations.iter().map(Into::into).collect()),
        image_pull_secrets: given(worker.image_pull_secrets.is_empty())
            .map(|()| worker.image_pull_secrets.iter().map(Into::into).collect()),
        volumes: Some(volumes(world, revision)),
        containers: vec![container],
        ..PodSpec::default()
    }
}

/// A container of the pipeline with everything but its arguments.
pub(super) fn container(world: &World, name: &str, image: &str, args: Vec<String>) -> Container {
    Container {
        name: name.into(),
        image: Some(image.into()),
        image_pull_policy: Some("IfNotPresent".into()),
        args: Some(args),
        resources: world.pipeline.spec.worker.resources.as_ref().map(Into::into),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            ..SecurityContext::default()
        }),
        // The last words of a worker that cannot start become the pipeline's condition.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(volume_mounts(world)),
        ..Container::default()
    }
}

/// The folders as arguments of the worker.
pub(super) fn folder_arguments() -> Vec<String> {
    [
        ("--file", format!("{DIR_CONFIG}/pipeline.yaml")),
        ("--credentials-dir", DIR_CREDENTIALS.into()),
        ("--tls-dir", DIR_TLS.into()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect()
}

/// Whose state is meant, as an argument of the worker; none: that which the pipeline began with, which older workers know, too.
pub(super) fn lineage_arguments(revision: &KnownRevision) -> Vec<String> {
    let lineage = revision.course.lineage.iter();
    lineage.flat_map(|lineage| ["--lineage".to_owned(), lineage.clone()]).collect()
}

/// The two ends of a pipeline, as their folders are called.
fn ends(world: &World) -> [(&'static str, &PostgresConnection); 2] {
    let spec = &world.pipeline.spec;
    [("source", &spec.source.postgres.connection), ("sink", &spec.sink.postgres.connection)]
}

fn volumes(world: &World, revision: &KnownRevision) -> Vec<Volume> {
    let mut volumes = vec![
        Volume {
            name: "config".into(),
            config_map: Some(ConfigMapVolumeSource {
                name: names::of_revision(world.name(), &revision.name),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "tmp".into(),
            empty_dir: Some(EmptyDirVolumeSource { size_limit: Some(Quantity("64Mi".into())), medium: None }),
            ..Volume::default()
        },
    ];
    for (end, connection) in ends(world) {
        volumes.push(secret_volume(
            &format!("{end}-credentials"),
            &connection.credentials_secret,
            &["username", "password"],
        ));
        if let Some(secret) = &connection.tls.ca_secret {
            volumes.push(secret_volume(&format!("{end}-ca"), secret, &["ca.crt"]));
        }
        if let Some(secret) = &connection.tls.client_certificate_secret {
            volumes.push(secret_volume(&format!("{end}-client"), secret, &["tls.crt", "tls.key"]));
        }
    }
    volumes
}

fn volume_mounts(world: &World) -> Vec<VolumeMount> {
    let mut mounts = vec![
        read_only("config", DIR_CONFIG.into()),
        VolumeMount { name: "tmp".into(), mount_path: "/tmp".into(), ..VolumeMount::default() },
    ];
    for (end, connection) in ends(world) {
        mounts.push(read_only(&format!("{end}-credentials"), format!("{DIR_CREDENTIALS}/{end}")));
        if connection.tls.ca_secret.is_some() {
            mounts.push(read_only(&format!("{end}-ca"), format!("{DIR_TLS}/{end}/ca")));
        }
        if connection.tls.client_certificate_secret.is_some() {
            mounts.push(read_only(&format!("{end}-client"), format!("{DIR_TLS}/{end}/client")));
        }
    }
    mounts
}

/// Mounts the keys of the revision's masks into a pod that reads rows.
pub(super) fn mount_mask_keys(pod: &mut PodSpec, revision: &KnownRevision) {
    for (number, secret) in key_secrets(&revision.minted.data.transforms).into_iter().enumerate() {
        let volume = format!("mask-key-{number}");
        pod.volumes.get_or_insert_default().push(secret_volume(&volume, secret, &MASK_KEYS));
        for container in &mut pod.containers {
            let mounts = container.volume_mounts.get_or_insert_default();
            mounts.push(read_only(&volume, format!("{DIR_MASK_KEYS}/{secret}")));
        }
    }
}

/// A volume with some keys of a Secret.
pub(super) fn secret_volume(name: &str, secret: &str, keys: &[&str]) -> Volume {
    Volume {
        name: name.into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.into()),
            default_mode: Some(GROUP_READABLE),
            items: Some(
                keys.iter()
                    .map(|key| KeyToPath { key: (*key).into(), path: (*key).into(), mode: None })
                    .collect(),
            ),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// A mount that cannot be written to.
pub(super) fn read_only(volume: &str, path: String) -> VolumeMount {
    VolumeMount { name: volume.into(), mount_path: path, read_only: Some(true), ..VolumeMount::default() }
}
