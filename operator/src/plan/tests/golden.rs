use penstock_crds::names::{ANNOTATION_ADOPT, ANNOTATION_RESNAPSHOT};
use penstock_crds::report::{Notice, NoticeReason, Reason, WorkerPhase};
use penstock_crds::spec::DeletionPolicy;
use serde::Serialize;
use std::collections::BTreeMap;

use super::scene::*;
use crate::plan::manifests::{clean_up_job, controller_revision};
use crate::plan::{DoomedKind, Manifest, Plan, Step, unobserved};
use crate::world::{Answer, CleanUpJob, ControlSecret, PodTrouble, SecretKeys, World};

/// A plan with its objects named, not written out: those have golden files of their own.
#[derive(Serialize)]
struct Outline {
    steps: Vec<String>,
    waits_for: Option<String>,
    status: Option<penstock_crds::CdcPipelineStatus>,
    looks_again: bool,
}

fn outline(plan: Plan) -> Outline {
    Outline {
        steps: plan.steps.iter().map(step).collect(),
        waits_for: plan.waits_for,
        status: plan.status,
        looks_again: plan.look_again.is_some(),
    }
}

pub(super) fn step(step: &Step) -> String {
    match step {
        Step::AddFinalizer => "add the finalizer".into(),
        Step::RemoveFinalizer => "remove the finalizer".into(),
        Step::IssueControlSecret => "issue the control Secret".into(),
        Step::Apply(manifest) => format!("apply {}", object(manifest)),
        Step::Delete(doomed) => format!("delete {:?} {}", doomed.kind, doomed.name),
        Step::Direct { pod, directive } => {
            format!("direct {pod}: {}", serde_json::to_string(directive).unwrap())
        }
        Step::Emit(event) => format!("tell {:?} {}: {}", event.kind, event.reason, event.note),
    }
}

fn object(manifest: &Manifest) -> String {
    let value = serde_json::to_value(manifest).unwrap();
    let word =
        |pointer: &str| value.pointer(pointer).and_then(|word| word.as_str()).unwrap_or_default().to_owned();
    let detail = match manifest {
        Manifest::StatefulSet(_) => format!(" with {} replicas", value["spec"]["replicas"]),
        Manifest::ControllerRevision(_) => format!(" as number {}", value["revision"]),
        Manifest::ServiceAccount(_) | Manifest::Service(_) | Manifest::ConfigMap(_) | Manifest::Job(_) => {
            String::new()
        }
        Manifest::Comparison(_) => " that compares".into(),
    };
    format!("{} {}{detail}", word("/kind"), word("/metadata/name"))
}

pub(super) fn golden(situation: &str, world: &World) {
    insta::with_settings!({snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_yaml_snapshot!(situation, outline(planned(world)));
    });
}

#[test]
fn from_creation_to_the_first_row() {
    golden("01_created", &created());
    golden("02_guarded", &guarded());
    golden("03_minted", &minted());
    golden("04_pods_start", &with_workers(|_, _| Answer::NotRunning));
    golden("05_workers_connect", &in_phase(WorkerPhase::Starting));
    golden("06_snapshotting", &in_phase(WorkerPhase::Snapshotting));
    golden("07_streaming", &in_phase(WorkerPhase::Streaming));
    golden("08_at_rest", &at_rest());
}

#[test]
fn tables_are_copied_again_once_per_token_and_a_bad_annotation_is_told() {
    let annotated = |value: &str| {
        let mut world = at_rest();
        let annotations = BTreeMap::from([(ANNOTATION_RESNAPSHOT.to_owned(), value.to_owned())]);
        world.pipeline.metadata.annotations = Some(annotations);
        world
    };
    golden("09_resnapshot_wanted", &annotated("t-1:public.inventory,sales.*"));
    let mut settled = annotated("t-1:public.inventory,sales.*");
    let Answer::Report { report, .. } = &mut settled.pods[0].answer else { unreachable!() };
    report.resnapshot = Some("t-1".into());
    assert_eq!(planned(&settled).steps, planned(&at_rest()).steps, "it is at rest");
    let wrong: Vec<String> = planned(&annotated("public.inventory")).steps.iter().map(step).collect();
    assert!(wrong.iter().any(|step| step.contains("tell Warning AnnotationInvalid") && step.contains("write TOKEN:TABLE")), "{wrong:?}");
}

#[test]
fn what_keeps_workers_from_starting_is_said() {
    let mut world = minted();
    world.secrets.insert("shop-db".into(), SecretKeys::Missing);
    golden("10_secret_missing", &world);
    world.secrets.insert("shop-db".into(), SecretKeys::Present(["username".to_owned()].into()));
    golden("11_secret_key_missing", &world);

    let mut world = minted();
    world.taken = vec!["Service inventory-worker".into()];
    golden("12_name_taken", &world);
    let mut world = minted();
    world.refused = Some("StatefulSet inventory: exceeded quota: pods".into());
    golden("13_refused_by_kubernetes", &world);
    let mut world = minted();
    world.revisions[0].minted.data.tables = vec!["other.tables".into()];
    golden("14_revision_name_clash", &world);
    let mut world = at_rest();
    world.unreadable = vec!["ControllerRevision inventory-r1a2b3c4d: missing field `shards`".into()];
    golden("19_revision_unreadable", &world);

    golden(
        "15_image_pull_fails",
        &with_trouble(PodTrouble::ImagePull("pod a cannot pull image b: not found".into())),
    );
    golden(
        "16_worker_crashes",
        &with_trouble(PodTrouble::Crashing("the worker ended with code 1: bad flag".into())),
    );
    golden(
        "17_unschedulable",
        &with_trouble(PodTrouble::Unschedulable("0/1 nodes: insufficient memory".into())),
    );
    let mut world = with_workers(|_, _| Answer::NotRunning);
    world.pods.pop();
    world.pods_lack_since = Some(now() - jiff::SignedDuration::from_secs(30));
    let verdict = planned(&world).waits_for.unwrap();
    assert!(verdict.starts_with("Starting"), "30 seconds are granted: {verdict}");
    world.pods_lack_since = Some(now() - jiff::SignedDuration::from_secs(31));
    golden("27_pods_refused", &world);
    golden("18_container_fails", &with_trouble(PodTrouble::Container("no such user".into())));
}

#[test]
fn what_workers_say_becomes_conditions() {
    let password = "The source refuses the password of user shop: correct the Secret shop-db";
    golden("20_halted", &with_problem(WorkerPhase::Halted, Reason::SourceAuthenticationFailed, password));
    let refused = "Connecting to shop-db:5432 failed: connection refused";
    golden("21_retrying", &with_problem(WorkerPhase::Retrying, Reason::SourceUnreachable, refused));

    let mut world = at_rest();
    world.pods[1].answer = Answer::Silent { error: "no answer within 3 seconds".into() };
    golden("22_one_worker_is_silent", &world);
    let mut world = at_rest();
    world.now = "2026-03-01T12:00:16Z".parse().unwrap();
    golden("23_reports_are_stale", &world);

    let mut world = in_phase(WorkerPhase::Streaming);
    let Answer::Report { report, .. } = &mut world.pods[0].answer else { unreachable!() };
    report.notices =
        vec![Notice { id: 1, reason: NoticeReason::VolumeRebuilt, message: "rebuilt from the sink".into() }];
    report.lag = Some(penstock_crds::report::Lag { bytes: 9, seconds: 75.0 });
    golden("24_notice_and_lag", &seen(world));

    let mut world = at_rest();
    world.secrets.insert("shop-db".into(), SecretKeys::Missing);
    golden("25_secret_missing_while_streaming", &world);
    let mut world = with_workers(|_, _| Answer::NotRunning);
    world.secrets.insert("shop-db".into(), SecretKeys::Missing);
    golden("26_secret_missing_while_starting", &world);
}

#[test]
fn what_cannot_be_observed_is_not_ready() {
    let mut world = at_rest();
    let error = "listing pods: the API server gave no answer within 10 seconds";
    let later = now() + jiff::SignedDuration::from_secs(60);
    let status = unobserved(&world.pipeline, later, error);
    insta::with_settings!({snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_yaml_snapshot!("28_cannot_be_observed", status);
    });
    world.pipeline.status = Some(status.clone());
    let again = unobserved(&world.pipeline, later + jiff::SignedDuration::from_secs(60), error);
    assert_eq!(again, status, "the same again writes nothing");
}

#[test]
fn a_changed_spec_replaces_the_revision() {
    golden("30_edited", &edited());
    golden("31_old_workers_run", &replacing());
    let mut world = replacing();
    world.sets[0].replicas_wanted = 0;
    world.pods.iter_mut().for_each(|pod| pod.is_deleting = true);
    golden("32_old_workers_end", &seen(world));
    golden("33_old_workers_are_gone", &replaced(None));
    golden("34_new_workers_copy", &replaced(Some(WorkerPhase::Snapshotting)));
    golden("35_new_workers_stream", &replaced(Some(WorkerPhase::Streaming)));

    let mut world = replacing();
    world.secrets.insert("shop-db".into(), SecretKeys::Missing);
    golden("36_old_workers_stay_while_new_ones_cannot_start", &world);

    let mut world = replaced(Some(WorkerPhase::Streaming));
    world.pipeline.spec = pipeline().spec;
    golden("37_back_to_an_older_revision", &world);

    let mut world = at_rest();
    for number in 2..=12 {
        let mut older = world.revisions[0].clone();
        older.name = penstock_crds::revision::RevisionName(format!("rold{number:05}"));
        older.number = -number;
        older.uid = format!("revision-{number}");
        world.revisions.push(older);
    }
    golden("38_old_revisions_are_forgotten", &world);
}

#[test]
fn a_changed_setting_restarts_every_worker_at_once_whatever_state_they_are_in() {
    let mut world = at_rest();
    world.pods[1].trouble = Some(PodTrouble::Crashing("the worker ended with code 1: no such host".into()));
    world.pods[1].answer = Answer::NotRunning;
    world.pipeline.spec.sink.postgres.batch.max_rows = 7;
    golden("80_outdated_workers_go", &world);
    world.pods[1].is_deleting = true;
    world.pods.remove(0);
    golden("81_outdated_workers_end", &seen(world));

    let mut world = at_rest();
    world.pipeline.spec.sink.postgres.batch.max_rows = 7;
    world.pipeline.spec.paused = true;
    let is_pod = |step: &Step| matches!(step, Step::Delete(doomed) if doomed.kind == DoomedKind::Pod);
    assert!(!planned(&world).steps.iter().any(is_pod), "the StatefulSet ends them");
}

#[test]
fn a_changed_setting_waits_for_its_secret() {
    let mut world = at_rest();
    world.pipeline.spec.source.postgres.connection.credentials_secret = "shop-db-2".into();
    world.secrets.insert("shop-db-2".into(), SecretKeys::Missing);
    golden("82_changed_while_its_secret_is_missing", &world);
    world.secrets.clone_from(&at_rest().secrets);
    world.secrets.insert("shop-db-2".into(), world.secrets["shop-db"].clone());
    golden("83_its_secret_is_there", &seen(world));
}

#[test]
fn a_pause_stops_the_workers() {
    let mut world = at_rest();
    world.pipeline.spec.paused = true;
    golden("40_pausing", &world);
    world.sets[0].replicas_wanted = 0;
    world.sets[0].is_observed_empty = true;
    world.pods.clear();
    golden("41_paused", &seen(world));
}

#[test]
fn deletion_goes_step_by_step() {
    golden("50_deleted", &deleted(at_rest()));
    golden("51_retained", &stopped(DeletionPolicy::Retain));
    let mut world = stopped(DeletionPolicy::Retain);
    let annotations = BTreeMap::from([(ANNOTATION_ADOPT.to_owned(), "an-older-uid".to_owned())]);
    world.pipeline.metadata.annotations = Some(annotations);
    let status = world.pipeline.status.as_mut().unwrap();
    status.slots = vec!["penstock_firstown_0".into(), "penstock_firstown_1".into()];
    status.publication = Some("penstock_firstown".into());
    golden("52_retained_by_an_heir", &world);
    let status = world.pipeline.status.as_mut().unwrap();
    (status.stable_revision, status.publication) = (None, None);
    status.slots.clear();
    golden("55_retained_by_an_heir_that_may_not_have_started", &world);
    let mut world = stopped(DeletionPolicy::Retain);
    world.refused = Some("creating the Event: exceeded quota".into());
    golden("56_what_is_retained_cannot_be_told", &world);
    golden("53_never_minted", &deleted(guarded()));
    golden("54_not_ours_to_hold", &deleted(created()));
}

#[test]
fn the_clean_up_goes_step_by_step() {
    let mut world = stopped(DeletionPolicy::Delete);
    golden("60_clean_up_begins", &world);
    let (_, made_from) = clean_up_job(&world, &world.revisions[0]).unwrap();
    world.clean_up = Some(CleanUpJob {
        uid: "job".into(),
        made_from,
        is_deleting: false,
        is_complete: false,
        failure: None,
    });
    golden("61_clean_up_runs", &world);
    let mut failing = world.clone();
    failing.clean_up.as_mut().unwrap().failure = Some("connecting to shop-db:5432 was refused".into());
    golden("62_clean_up_fails", &failing);
    let mut refused = world.clone();
    refused.pods_lack_since = Some(now() - jiff::SignedDuration::from_secs(31));
    golden("76_the_pod_of_the_clean_up_is_refused", &refused);
    failing.pipeline.spec.deletion_policy = DeletionPolicy::Retain;
    golden("63_given_up", &failing);
    failing.clean_up = None;
    failing.clean_up_pods = vec!["inventory-clean-up-x".into()];
    golden("71_given_up_while_the_clean_up_ends", &failing);
    let mut edited = world.clone();
    edited.pipeline.spec.source.postgres.connection.host = "shop-db-2".into();
    golden("64_clean_up_with_another_spec", &edited);
    world.clean_up.as_mut().unwrap().is_complete = true;
    golden("65_volumes_go", &world);
    world.claims.clear();
    golden("66_cleaned_up", &world);
    let annotations = BTreeMap::from([(ANNOTATION_ADOPT.to_owned(), "an-older-uid".to_owned())]);
    world.pipeline.metadata.annotations = Some(annotations);
    golden("74_an_heir_is_cleaned_up", &world);

    let mut world = stopped(DeletionPolicy::Delete);
    world.secrets.insert("shop-db".into(), SecretKeys::Missing);
    golden("67_clean_up_lacks_a_secret", &world);
    let mut world = stopped(DeletionPolicy::Delete);
    world.revisions.clear();
    golden("72_clean_up_after_a_foreground_deletion", &world);
    let mut world = stopped(DeletionPolicy::Delete);
    world.pipeline.status = None;
    world.claims.clear();
    golden("73_no_worker_ever_ran", &world);
    let mut world = stopped(DeletionPolicy::Delete);
    world.taken = vec!["Job inventory-clean-up".into()];
    golden("69_clean_up_name_taken", &world);
    let mut world = stopped(DeletionPolicy::Delete);
    world.refused = Some("exceeded quota".into());
    golden("70_clean_up_refused", &world);
    let mut world = stopped(DeletionPolicy::Delete);
    world.namespace_terminating = true;
    golden("68_namespace_goes", &world);
    assert!(planned(&world).leaves_something_behind());
    world.pipeline.spec.deletion_policy = DeletionPolicy::Retain;
    golden("75_namespace_goes_and_the_state_is_retained", &world);
    assert!(!planned(&world).leaves_something_behind());
}

#[test]
fn how_to_adopt_is_said_first_and_the_longest_note_fits_an_event() {
    let mut world = stopped(DeletionPolicy::Retain);
    let revision = world.revisions[0].name.clone();
    world.claims = (0..64).map(|shard| owned(&revision, &format!("state-{shard}"))).collect();
    let spec = &mut world.pipeline.spec;
    spec.worker.shards = 64;
    for connection in [&mut spec.source.postgres.connection, &mut spec.sink.postgres.connection] {
        connection.host = "h".repeat(253);
        connection.database = "d".repeat(63);
    }
    let steps = planned(&world).steps;
    let Some(Step::Emit(event)) = steps.first() else { panic!("{steps:?}") };
    assert!(event.note.starts_with(&format!("A CdcPipeline with the annotation {ANNOTATION_ADOPT}: {UID} ")));
    assert!(event.note.len() <= 1024, "{}", event.note.len());
}

#[test]
fn the_control_certificate_is_renewed_when_it_is_due() {
    let mut world = at_rest();
    world.control = ControlSecret::Issued { renew_at: now() };
    assert!(planned(&world).steps.contains(&Step::IssueControlSecret));
}

#[test]
fn the_objects_are_these() {
    let mut world = minted();
    let spec = &mut world.pipeline.spec;
    spec.source.postgres.connection.tls.ca_secret = Some("shop-ca".into());
    spec.source.postgres.connection.tls.client_certificate_secret = Some("shop-client".into());
    spec.worker.node_selector = BTreeMap::from([("disk".into(), "fast".into())]);
    spec.worker.tolerations =
        vec![penstock_crds::scheduling::Toleration { key: Some("dedicated".into()), ..Default::default() }];
    spec.worker.image_pull_secrets = vec![penstock_crds::scheduling::ImagePullSecret { name: "pull".into() }];
    spec.worker.storage.storage_class_name = Some("fast".into());
    let keys = SecretKeys::Present(["ca.crt", "tls.crt", "tls.key"].map(String::from).into());
    world.secrets.insert("shop-ca".into(), keys.clone());
    world.secrets.insert("shop-client".into(), keys);

    let mut objects: Vec<Manifest> = planned(&world)
        .steps
        .into_iter()
        .filter_map(|step| match step {
            Step::Apply(manifest) => Some(manifest),
            Step::AddFinalizer
            | Step::RemoveFinalizer
            | Step::IssueControlSecret
            | Step::Delete(_)
            | Step::Direct { .. }
            | Step::Emit(_) => None,
        })
        .collect();
    objects.push(controller_revision(&world, &world.revisions[0]).unwrap());
    objects.push(clean_up_job(&world, &world.revisions[0]).unwrap().0);
    insta::with_settings!({snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true}, {
        for manifest in objects {
            let kind = serde_json::to_value(&manifest).unwrap()["kind"].as_str().unwrap().to_lowercase();
            insta::assert_yaml_snapshot!(format!("object_{kind}"), manifest);
        }
    });
}

#[test]
fn what_only_the_operator_acts_on_restarts_no_worker() {
    let template = |world: &World| {
        let steps = planned(world).steps;
        let set = steps.iter().find_map(|step| match step {
            Step::Apply(Manifest::StatefulSet(set)) => Some(set.spec.clone().unwrap().template),
            Step::AddFinalizer
            | Step::RemoveFinalizer
            | Step::IssueControlSecret
            | Step::Apply(_)
            | Step::Delete(_)
            | Step::Direct { .. }
            | Step::Emit(_) => None,
        });
        set.unwrap()
    };
    let before = template(&at_rest());
    let mut world = at_rest();
    world.pipeline.spec.paused = true;
    world.pipeline.spec.deletion_policy = DeletionPolicy::Delete;
    world.default_image = "registry.example.com/penstock-worker:9.9.9".into();
    assert_eq!(template(&world), before, "pausing, the deletion policy and an operator upgrade");
    world.pipeline.spec.sink.postgres.batch.max_rows = 7;
    assert_ne!(template(&world), before, "what the worker reads at its start replaces it");
}
