//! Worlds to plan for: a pipeline `inventory` with two shards, and what can happen to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use penstock_crds::CdcPipeline;
use penstock_crds::names::{self, FINALIZER};
use penstock_crds::report::{
    Decisions, Lag, LineageRole, Problem, Reachability, Reason, Report, SnapshotProgress, WorkerPhase,
};
use penstock_crds::revision::{DataAffecting, MintedRevision, RevisionName};

use crate::plan::manifests::workers_made_from;
use crate::plan::{Plan, plan};
use crate::world::{
    Answer, ControlSecret, KnownRevision, Owned, PodTrouble, RevisionCourse, SecretKeys, WorkerPod,
    WorkerSet, World,
};

pub(crate) const UID: &str = "0b7c5a1e-6f3a-4c55-9d0e-2f7d0c9f1a11";
pub(crate) const IMAGE: &str = "registry.example.com/penstock-worker:0.1.0";

pub(crate) fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

/// The pipeline as it was created.
pub(crate) fn pipeline() -> CdcPipeline {
    static PIPELINE: LazyLock<CdcPipeline> = LazyLock::new(parsed);
    PIPELINE.clone()
}

fn parsed() -> CdcPipeline {
    let mut pipeline = penstock_crds::manifest::parse(
        "
apiVersion: penstock.dev/v1alpha1
kind: CdcPipeline
metadata: {name: inventory, namespace: shop}
spec:
  source:
    postgres:
      connection: {host: shop-db, database: shop, credentialsSecret: shop-db}
      tables: [public.inventory, 'sales.*']
  sink:
    postgres:
      connection: {host: warehouse-db, database: warehouse, credentialsSecret: warehouse-db}
  worker: {shards: 2}
",
    )
    .unwrap();
    pipeline.metadata.uid = Some(UID.into());
    pipeline.metadata.generation = Some(3);
    pipeline
}

/// A pipeline that was just created; both Secrets are there.
pub(crate) fn created() -> World {
    let keys = || SecretKeys::Present(BTreeSet::from(["username".into(), "password".into()]));
    World {
        now: now(),
        default_image: IMAGE.into(),
        pipeline: pipeline(),
        uid: UID.into(),
        namespace_terminating: false,
        revisions: Vec::new(),
        unreadable: Vec::new(),
        sets: Vec::new(),
        pods: Vec::new(),
        claims: Vec::new(),
        config_maps: Vec::new(),
        secrets: BTreeMap::from([("shop-db".into(), keys()), ("warehouse-db".into(), keys())]),
        control: ControlSecret::Missing,
        pods_lack_since: None,
        clean_up: None,
        clean_up_pods: Vec::new(),
        comparisons: Vec::new(),
        comparison_pods: Vec::new(),
        comparison_refused: None,
        rollout_jobs: Vec::new(),
        rollout_pods: Vec::new(),
        taken: Vec::new(),
        refused: None,
    }
}

/// It waits for the operator before it goes.
pub(crate) fn guarded() -> World {
    let mut world = created();
    world.pipeline.metadata.finalizers = Some(vec![FINALIZER.into()]);
    world
}

pub(crate) fn revision(world: &World, number: i64) -> KnownRevision {
    let data = DataAffecting::from(&world.pipeline.spec);
    KnownRevision {
        name: data.name().unwrap(),
        number,
        minted: MintedRevision { image: data.image.clone().unwrap_or_else(|| IMAGE.into()), data },
        uid: format!("revision-{number}"),
        course: RevisionCourse::default(),
    }
}

/// The revision of its spec is minted.
pub(crate) fn minted() -> World {
    let mut world = guarded();
    world.revisions = vec![revision(&world, 1)];
    world
}

pub(crate) fn owned(revision: &RevisionName, what: &str) -> Owned {
    Owned {
        name: format!("{what}-{revision}"),
        uid: format!("uid-{what}-{revision}"),
        revision: revision.clone(),
    }
}

pub(crate) fn set(revision: &RevisionName, replicas: i32, is_observed_empty: bool) -> WorkerSet {
    WorkerSet {
        object: owned(revision, "inventory"),
        replicas_wanted: replicas,
        is_observed: true,
        is_observed_empty,
        is_deleting: false,
    }
}

pub(crate) fn pod(revision: &RevisionName, shard: u16, answer: Answer) -> WorkerPod {
    WorkerPod {
        name: format!("inventory-{revision}-{shard}"),
        revision: revision.clone(),
        shard,
        uid: format!("uid-pod-{revision}-{shard}"),
        made_from: String::new(),
        is_deleting: false,
        trouble: None,
        answer,
    }
}

/// Every pod is made from the spec as it is now.
pub(crate) fn up_to_date(mut world: World) -> World {
    let made_from = |name: &RevisionName| {
        let revision = world.revisions.iter().find(|revision| revision.name == *name)?;
        Some(workers_made_from(&world, revision).unwrap())
    };
    let hashes: Vec<String> =
        world.pods.iter().map(|pod| made_from(&pod.revision).unwrap_or_default()).collect();
    for (pod, hash) in world.pods.iter_mut().zip(hashes) {
        pod.made_from = hash;
    }
    world
}

pub(crate) fn report(revision: &RevisionName, shard: u16, phase: WorkerPhase) -> Report {
    let is_copied = phase == WorkerPhase::Streaming;
    Report {
        uid: UID.into(),
        revision: revision.0.clone(),
        shard,
        role: Some(LineageRole::Stable),
        epoch: Some(4),
        phase,
        sequence: 100,
        position: Some("0/16B3748".into()),
        lag: Some(Lag { bytes: 10, seconds: 0.5 }),
        slot: Some(names::slot(UID, shard)),
        publication: Some(names::publication(UID)),
        source: Reachability::Reachable,
        sink: Reachability::Reachable,
        resnapshot: None,
        decisions: Some(Decisions::default()),
        snapshot: Some(SnapshotProgress {
            tables: 3,
            tables_copied: if is_copied { 3 } else { 1 },
            rows_copied: 10,
            rows_estimated: 30,
        }),
        problem: None,
        notices: Vec::new(),
    }
}

pub(crate) fn answered(report: Report) -> Answer {
    Answer::Report { report: Box::new(report), at: now() }
}

/// Its objects are there; its workers answer like this.
pub(crate) fn with_workers(answer: impl Fn(&RevisionName, u16) -> Answer) -> World {
    let mut world = minted();
    let name = world.revisions[0].name.clone();
    world.control = ControlSecret::Issued { renew_at: "2026-04-01T00:00:00Z".parse().unwrap() };
    world.sets = vec![set(&name, 2, false)];
    world.config_maps = vec![owned(&name, "config")];
    world.claims = vec![owned(&name, "claim-0"), owned(&name, "claim-1")];
    world.pods = (0..2).map(|shard| pod(&name, shard, answer(&name, shard))).collect();
    up_to_date(world)
}

/// Its workers are in this phase, and say so.
pub(crate) fn in_phase(phase: WorkerPhase) -> World {
    with_workers(|name, shard| answered(report(name, shard, phase)))
}

/// Its workers meet this problem.
pub(crate) fn with_problem(phase: WorkerPhase, reason: Reason, message: &str) -> World {
    with_workers(|name, shard| {
        let mut report = report(name, shard, phase);
        if shard == 1 {
            report.problem = Some(Problem { reason, message: message.into() });
            report.source = Reachability::Unreachable;
        }
        answered(report)
    })
}

/// Its first pod cannot run.
pub(crate) fn with_trouble(trouble: PodTrouble) -> World {
    let mut world = with_workers(|_, _| Answer::NotRunning);
    world.pods[0].trouble = Some(trouble);
    world
}

/// It streams, and was seen doing so.
pub(crate) fn at_rest() -> World {
    seen(in_phase(WorkerPhase::Streaming))
}

/// The world after its plan was carried out as far as the status goes.
pub(crate) fn seen(mut world: World) -> World {
    world.pipeline.status = plan(&world).unwrap().status;
    world
}

/// The spec lists other tables than the revision that runs.
pub(crate) fn edited() -> World {
    let mut world = at_rest();
    world.pipeline.spec.source.postgres.tables = vec!["public.inventory".into(), "public.orders".into()];
    world.pipeline.metadata.generation = Some(4);
    world
}

/// The edit's revision is minted; the old one's workers still run.
pub(crate) fn replacing() -> World {
    let mut world = edited();
    world.revisions.push(revision(&world, 2));
    world
}

/// The old revision's workers are gone; the new one's are in this phase.
pub(crate) fn replaced(phase: Option<WorkerPhase>) -> World {
    let mut world = replacing();
    let (old, new) = (world.revisions[0].name.clone(), world.revisions[1].name.clone());
    world.sets = vec![set(&old, 0, true)];
    world.pods = Vec::new();
    if let Some(phase) = phase {
        world.sets.push(set(&new, 2, false));
        world.config_maps.push(owned(&new, "config"));
        world.claims.extend([owned(&new, "claim-0"), owned(&new, "claim-1")]);
        world.pods = (0..2).map(|shard| pod(&new, shard, answered(report(&new, shard, phase)))).collect();
    }
    up_to_date(world)
}

pub(crate) fn deleted(mut world: World) -> World {
    world.pipeline.metadata.deletion_timestamp = Some(Time(now()));
    world
}

/// It was deleted and its workers are gone.
pub(crate) fn stopped(policy: penstock_crds::spec::DeletionPolicy) -> World {
    let mut world = deleted(at_rest());
    world.pipeline.spec.deletion_policy = policy;
    world.sets.clear();
    world.pods.clear();
    world
}

pub(crate) fn planned(world: &World) -> Plan {
    plan(world).unwrap()
}
