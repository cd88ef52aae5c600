//! What one worker runs: the manifest, its place in the pipeline, and its folders. Read once, at start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use penstock_crds::CdcPipeline;
use penstock_crds::manifest;
use penstock_crds::names;
use penstock_crds::revision::DataAffecting;
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::mask_keys::MaskKeyFiles;
use crate::postgres::{Credentials, End, Endpoint, EndpointFiles};
use crate::transform::{Entries, MaskKeys};
use penstock_crds::report::Reason;

/// Flags and environment of `penstock-worker`, the same for every subcommand.
#[derive(Clone, Debug, clap::Args)]
pub struct Folders {
    /// The manifest: a `CdcPipeline`, the very one that the cluster gets
    #[arg(long, short, env = "PENSTOCK_FILE", value_name = "FILE")]
    pub file: PathBuf,

    /// Folder with source/username, source/password, sink/username and sink/password. The environment
    /// variables `PENSTOCK_SOURCE_USERNAME`, `PENSTOCK_SOURCE_PASSWORD`, `PENSTOCK_SINK_USERNAME` and
    /// `PENSTOCK_SINK_PASSWORD` come first
    #[arg(long, env = "PENSTOCK_CREDENTIALS_DIR", value_name = "DIR", default_value = names::DIR_CREDENTIALS)]
    pub credentials_dir: PathBuf,

    /// Folder with source/ca/ca.crt, source/client/tls.crt, source/client/tls.key, and the same for sink,
    /// as far as the manifest names them
    #[arg(long, env = "PENSTOCK_TLS_DIR", value_name = "DIR", default_value = names::DIR_TLS)]
    pub tls_dir: PathBuf,

    /// Folder with one folder per Secret that a mask of the manifest names, each with the file key. The environment variable
    /// `PENSTOCK_MASK_KEY_` with the Secret's name in capitals (`PENSTOCK_MASK_KEY_SHOP_PII` for shop-pii) comes first
    #[arg(long, env = "PENSTOCK_MASK_KEYS_DIR", value_name = "DIR", default_value = names::DIR_MASK_KEYS)]
    pub mask_keys_dir: PathBuf,

    /// Revision; by default the one that the manifest means
    #[arg(long, env = "PENSTOCK_REVISION")]
    pub revision: Option<String>,

    /// The revision is, or began as, a canary: with slots, state and tables of its own
    #[arg(long, env = "PENSTOCK_CANARY")]
    pub canary: bool,

    /// The revision goes on from the state of a canary that another revision began; names that one
    #[arg(long, env = "PENSTOCK_LINEAGE", value_name = "REVISION", conflicts_with = "canary")]
    pub lineage: Option<String>,
}

/// Flags and environment of `penstock-worker run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub folders: Folders,

    /// Number of the revision: a worker takes a shard over from a revision with a lower one only. Without
    /// it the worker takes over whatever is there
    #[arg(long, env = "PENSTOCK_REVISION_NUMBER")]
    pub revision_number: Option<i64>,

    /// Shard to run, from 0
    #[arg(long, env = "PENSTOCK_SHARD", default_value_t = 0)]
    pub shard: u16,

    /// Folder for the checkpoint; by default `~/.local/state/penstock/NAMESPACE-NAME-SHARD`
    #[arg(long, env = "PENSTOCK_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Seconds after which a worker that needs a person looks whether the cause is gone
    #[arg(long, env = "PENSTOCK_RECHECK_SECONDS", value_name = "SECONDS", default_value_t = 20,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub recheck_seconds: u64,

    /// Seconds after which the position moves where there is nothing to apply, so that the source can free its log
    #[arg(long, env = "PENSTOCK_IDLE_ADVANCE_SECONDS", value_name = "SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub idle_advance_seconds: u64,

    /// Address for /healthz, /readyz and /metrics, plain HTTP; not served without it
    #[arg(long, env = "PENSTOCK_HEALTH_ADDRESS", value_name = "ADDRESS:PORT")]
    pub health_address: Option<SocketAddr>,

    /// Address for /v1/report, TLS with a bearer token; not served without it
    #[arg(long, env = "PENSTOCK_CONTROL_ADDRESS", value_name = "ADDRESS:PORT", requires = "control_dir")]
    pub control_address: Option<SocketAddr>,

    /// Folder with tls.crt, tls.key and token for the control API
    #[arg(long, env = "PENSTOCK_CONTROL_DIR", value_name = "DIR")]
    pub control_dir: Option<PathBuf>,
}

/// The pipeline a worker belongs to, and how to reach both its ends.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The manifest as written.
    pub manifest: CdcPipeline,
    /// Whose state the worker moves: the pipeline's first lineage, or a canary's.
    pub lineage: Lineage,
    /// Revision.
    pub revision: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The source database.
    pub source: Endpoint,
    /// The sink database.
    pub sink: Endpoint,
    /// What is done to rows on their way.
    pub transforms: Arc<Entries>,
    mask_keys: MaskKeyFiles,
}

/// What `penstock-worker run` runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The pipeline.
    pub pipeline: Pipeline,
    /// Its number; absent on a laptop.
    pub revision_number: Option<i64>,
    /// Shard, from 0.
    pub shard: u16,
    /// Folder of the checkpoint.
    pub state_dir: PathBuf,
    /// How often a worker that needs a person looks whether the cause is gone.
    pub recheck: Duration,
    /// After how long the position moves where there is nothing to apply.
    pub idle_advance: Duration,
}

impl Pipeline {
    /// Reads and checks the manifest.
    ///
    /// # Errors
    /// `ManifestInvalid`: the file cannot be read or is not a valid `CdcPipeline`.
    pub fn read(folders: &Folders) -> Result<Self, Failure> {
        let path = folders.file.display();
        let invalid = |what: String| Failure::new(Reason::ManifestInvalid, what);
        let text = std::fs::read_to_string(&folders.file)
            .map_err(|error| invalid(format!("cannot read the manifest {path}: {error}")))?;
        let manifest = manifest::parse(&text).map_err(|error| invalid(format!("{path}: {error}")))?;
        let name = manifest.metadata.name.clone().unwrap_or_default();
        let namespace = manifest.metadata.namespace.clone().unwrap_or_else(|| "default".into());
        let uid = manifest.metadata.uid.clone().unwrap_or_else(|| local_uid(&namespace, &name));
        let revision = match &folders.revision {
            Some(revision) => revision.clone(),
            None => DataAffecting::from(&manifest.spec).name().map_err(|error| invalid(error.to_string()))?.0,
        };
        let begun_by = folders.lineage.as_ref().or_else(|| folders.canary.then_some(&revision));
        let lineage = match begun_by {
            Some(begun_by) => Lineage::of_canary(&uid, begun_by),
            None => Lineage::first(uid),
        };
        let endpoint =
            |end: End, folder: &str, connection: &penstock_crds::connection::PostgresConnection| Endpoint {
                end,
                connection: connection.clone(),
                files: EndpointFiles {
                    credentials: folders.credentials_dir.join(folder),
                    tls: folders.tls_dir.join(folder),
                    environment: credentials_from_environment(end),
                },
            };
        let source = endpoint(End::Source, "source", &manifest.spec.source.postgres.connection);
        let sink = endpoint(End::Sink, "sink", &manifest.spec.sink.postgres.connection);
        let schemas = &manifest.spec.sink.postgres.schema_map;
        let transforms = Entries::new(&manifest.spec.transforms, schemas)
            .map_err(|error| invalid(format!("{path}: spec.transforms: {error}")))?;
        let mask_keys = MaskKeyFiles::new(&folders.mask_keys_dir);
        let transforms = Arc::new(transforms);
        Ok(Self { manifest, lineage, revision, namespace, name, source, sink, transforms, mask_keys })
    }

    /// The keys of the manifest's masks, as they are now.
    ///
    /// # Errors
    /// `CredentialsMissing`.
    pub async fn mask_keys(&self) -> Result<MaskKeys, Failure> {
        self.mask_keys.read(&self.manifest.spec.transforms).await
    }
}

impl Settings {
    /// Reads the manifest and settles what the flags leave open.
    ///
    /// # Errors
    /// `ManifestInvalid`: the manifest is not valid, or the shard does not exist in it.
    pub fn read(arguments: &RunArguments) -> Result<Self, Failure> {
        let pipeline = Pipeline::read(&arguments.folders)?;
        let shards = pipeline.manifest.spec.worker.shards;
        if arguments.shard >= shards {
            let message = format!(
                "shard {} does not exist: the manifest has worker.shards = {shards}, so the last one is {}",
                arguments.shard,
                shards.saturating_sub(1)
            );
            return Err(Failure::new(Reason::ManifestInvalid, message));
        }
        let state_dir =
            arguments.state_dir.clone().unwrap_or_else(|| default_state_dir(&pipeline, arguments.shard));
        Ok(Self {
            pipeline,
            revision_number: arguments.revision_number,
            shard: arguments.shard,
            state_dir,
            recheck: Duration::from_secs(arguments.recheck_seconds),
            idle_advance: Duration::from_secs(arguments.idle_advance_seconds),
        })
    }
}

/// User name and password from the environment, if both are there.
fn credentials_from_environment(end: End) -> Option<Credentials> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Some(Credentials {
        username: variable(end.username_variable())?,
        password: variable(end.password_variable())?,
    })
}

/// A UID for a manifest that never was in a cluster: the same file means the same pipeline.
fn local_uid(namespace: &str, name: &str) -> String {
    let digest = hex::encode(Sha256::digest(format!("{namespace}/{name}")));
    format!("local-{}", &digest[..32])
}

fn default_state_dir(pipeline: &Pipeline, shard: u16) -> PathBuf {
    let Pipeline { namespace, name, lineage, .. } = pipeline;
    let begun_by = lineage.begun_by().map(|revision| format!("-{revision}")).unwrap_or_default();
    let base = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("."));
    base.join("penstock").join(format!("{namespace}-{name}{begun_by}-{shard}"))
}
