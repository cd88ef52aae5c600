//! The Secrets of masks: who gets their keys, who waits for them, and who does not.

use k8s_openapi::api::core::v1::PodSpec;
use penstock_crds::report::Reason;
use penstock_crds::spec::DeletionPolicy;
use penstock_crds::transform::{ColumnMask, HashMask, TableTransform};

use super::comparison::asked;
use super::scene::*;
use crate::plan::manifests::{clean_up_job, config_map};
use crate::plan::{Manifest, Step};
use crate::world::{SecretKeys, World};

/// A mask of the spec hashes with the key of this Secret.
fn masking(mut world: World, secret: &str) -> World {
    let hash = Some(HashMask { key_secret: secret.into() });
    let mask = ColumnMask { columns: vec!["mail".into()], hash, redact: None, truncate: None };
    world.pipeline.spec.transforms = vec![TableTransform {
        tables: vec!["public.inventory".into()],
        mask_columns: vec![mask],
        ..TableTransform::default()
    }];
    world.secrets.insert(secret.into(), SecretKeys::Present(["key".to_owned()].into()));
    world
}

fn applied(world: &World) -> Vec<Manifest> {
    let steps = planned(world).steps.into_iter();
    steps
        .filter_map(|step| match step {
            Step::Apply(manifest) => Some(manifest),
            Step::AddFinalizer
            | Step::RemoveFinalizer
            | Step::IssueControlSecret
            | Step::Delete(_)
            | Step::Direct { .. }
            | Step::Emit(_) => None,
        })
        .collect()
}

/// Where a pod finds the key of the Secret `pii`.
fn place_of_key(pod: &PodSpec) -> Option<String> {
    let volumes = pod.volumes.as_ref()?;
    let is_key = |secret: Option<&str>| secret == Some("pii");
    let volume = volumes
        .iter()
        .find(|volume| is_key(volume.secret.as_ref().and_then(|secret| secret.secret_name.as_deref())))?;
    let mounts = pod.containers[0].volume_mounts.as_ref()?;
    mounts.iter().find(|mount| mount.name == volume.name).map(|mount| mount.mount_path.clone())
}

#[test]
fn whoever_reads_rows_gets_the_key_of_a_mask_and_the_clean_up_does_not() {
    let mut world = masking(guarded(), "pii");
    world.revisions = vec![revision(&world, 1)];
    let sets = applied(&world).into_iter().find_map(|manifest| {
        let Manifest::StatefulSet(set) = manifest else { return None };
        set.spec?.template.spec
    });
    assert_eq!(place_of_key(&sets.unwrap()).as_deref(), Some("/etc/penstock/mask-keys/pii"));
    let mut resting = masking(at_rest(), "pii");
    resting.revisions = world.revisions.clone();
    let name = resting.revisions[0].name.clone();
    resting.sets = vec![set(&name, 2, false)];
    for pod in &mut resting.pods {
        pod.revision = name.clone();
        pod.answer = answered(report(&name, pod.shard, penstock_crds::report::WorkerPhase::Streaming));
    }
    let comparison = applied(&asked(seen(up_to_date(resting)), "now")).into_iter().find_map(|manifest| {
        let Manifest::Comparison(job) = manifest else { return None };
        job.spec?.template.spec
    });
    assert_eq!(place_of_key(&comparison.unwrap()).as_deref(), Some("/etc/penstock/mask-keys/pii"));
    let (clean_up, _) = clean_up_job(&world, &world.revisions[0]).unwrap();
    let Manifest::Job(clean_up) = clean_up else { panic!("{clean_up:?}") };
    assert_eq!(place_of_key(&clean_up.spec.unwrap().template.spec.unwrap()), None);
}

#[test]
fn a_mask_whose_secret_is_missing_is_said_before_a_pod_hangs_on_it() {
    let mut world = masking(guarded(), "pii");
    world.revisions = vec![revision(&world, 1)];
    for (keys, sentence) in [
        (
            SecretKeys::Missing,
            "The Secret pii that transforms.maskColumns.hash.keySecret names does not exist",
        ),
        (SecretKeys::Present(["token".to_owned()].into()), "has no key: add the key key"),
    ] {
        world.secrets.insert("pii".into(), keys);
        let status = planned(&world).status.unwrap();
        let told = status.conditions.iter().any(|condition| {
            condition.reason == format!("{:?}", Reason::CredentialsMissing)
                && condition.message.contains(sentence)
        });
        assert!(told, "{sentence}: {:#?}", status.conditions);
    }
}

#[test]
fn deleting_a_pipeline_does_not_wait_for_the_secret_of_a_mask() {
    let mut world = masking(stopped(DeletionPolicy::Delete), "pii");
    world.secrets.insert("pii".into(), SecretKeys::Missing);
    let is_clean_up = |manifest: &Manifest| matches!(manifest, Manifest::Job(_));
    assert!(applied(&world).iter().any(is_clean_up), "{:#?}", planned(&world));
}

#[test]
fn a_revision_runs_with_its_own_transforms_until_the_next_takes_over() {
    let mut world = masking(guarded(), "pii");
    let old = revision(&world, 1);
    world.revisions = vec![old.clone()];
    world.pipeline.spec.transforms.clear();
    let Manifest::ConfigMap(map) = config_map(&world, &old).unwrap() else { panic!() };
    let yaml = map.data.unwrap().remove("pipeline.yaml").unwrap();
    let manifest = penstock_crds::manifest::parse(&yaml).unwrap();
    assert_eq!(manifest.spec.transforms, old.minted.data.transforms);
    assert!(!manifest.spec.transforms.is_empty());
}
