//! PostgreSQL in a pod, reached by port-forward.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::core::DynamicObject;
use kube::discovery;
use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

use super::{Cluster, eventually};

/// Image of the databases, loaded into the cluster by the test runner.
const IMAGE: &str = "localhost/penstock-postgres:15";
/// User of every test database.
const USER: &str = "postgres";
/// Password of every test database. The word is looked for in all logs.
pub const PASSWORD: &str = "hunter2-never-log-me";

/// What a server proves with who it is, PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// A PostgreSQL server in a pod of its own.
#[derive(Clone)]
pub struct Database {
    cluster: Cluster,
    namespace: String,
    /// Name of StatefulSet, Service and credentials Secret.
    pub name: String,
}

impl Database {
    /// Starts a server and waits until it answers. `arguments` are given to `postgres`.
    ///
    /// # Errors
    /// It does not answer in time.
    pub async fn start(cluster: &Cluster, namespace: &str, name: &str, arguments: &[&str]) -> Result<Self> {
        let database = Self { cluster: cluster.clone(), namespace: namespace.into(), name: name.into() };
        database.apply(server(namespace, name, arguments)).await
    }

    /// Starts a server that offers TLS with this certificate.
    ///
    /// # Errors
    /// It does not answer in time.
    pub async fn start_with_tls(
        cluster: &Cluster,
        namespace: &str,
        name: &str,
        arguments: &[&str],
        certificate: &Certificate,
    ) -> Result<Self> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("{name}-tls"), "namespace": namespace},
            "stringData": {"tls.crt": certificate.certificate, "tls.key": certificate.key},
        });
        apply(cluster, secret).await?;
        let tls = ["-c", "ssl=on", "-c", "ssl_cert_file=/tls/tls.crt", "-c", "ssl_key_file=/tls/tls.key"];
        let mut server = server(namespace, name, &[arguments, &tls].concat());
        let pod = &mut server["spec"]["template"]["spec"];
        // PostgreSQL wants a key that only its group can read, if it is not its own.
        pod["securityContext"] = json!({"fsGroup": 999});
        pod["volumes"] =
            json!([{"name": "tls", "secret": {"secretName": format!("{name}-tls"), "defaultMode": 0o440}}]);
        let mounts = pod["containers"][0]["volumeMounts"].as_array_mut().context("volumeMounts")?;
        mounts.push(json!({"name": "tls", "mountPath": "/tls"}));
        let database = Self { cluster: cluster.clone(), namespace: namespace.into(), name: name.into() };
        database.apply(server).await
    }

    async fn apply(self, server: Value) -> Result<Self> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {"selector": {"app": self.name}, "ports": [{"port": 5432}]},
        });
        for object in [self.credentials(&self.namespace), service, server] {
            apply(&self.cluster, object).await?;
        }
        self.wait_until_it_answers().await?;
        Ok(self)
    }

    /// The Secret with user name and password, for a pipeline in any namespace.
    pub fn credentials(&self, namespace: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": self.name, "namespace": namespace},
            "stringData": {"username": USER, "password": PASSWORD},
        })
    }

    /// Waits until the server takes connections.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn wait_until_it_answers(&self) -> Result<()> {
        eventually(&format!("{} answers", self.name), Duration::from_mins(2), || async {
            Ok(Some(self.connect().await?.simple_query("SELECT 1").await.map(drop)?))
        })
        .await
    }

    /// A connection to database `shop`, through the API server.
    ///
    /// # Errors
    /// The pod or the server does not answer.
    pub async fn connect(&self) -> Result<Client> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &self.namespace);
        let mut forwarder = pods.portforward(&self.pod(), &[5432]).await.context("port-forward")?;
        let stream = forwarder.take_stream(5432).ok_or_else(|| anyhow!("no stream for port 5432"))?;
        let mut config = tokio_postgres::Config::new();
        config.user(USER).password(PASSWORD).dbname("shop").connect_timeout(Duration::from_secs(10));
        let (client, connection) =
            tokio::time::timeout(Duration::from_secs(10), config.connect_raw(stream, NoTls)).await??;
        tokio::spawn(async move {
            let _ = connection.await;
            drop(forwarder);
        });
        Ok(client)
    }

    /// Name of the server's pod.
    pub fn pod(&self) -> String {
        format!("{}-0", self.name)
    }

    /// Runs SQL statements.
    ///
    /// # Errors
    /// The server refuses one of them.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.connect().await?.batch_execute(sql).await.with_context(|| format!("on {}: {sql}", self.name))
    }

    /// The one value of a query, as text.
    ///
    /// # Errors
    /// The server refuses, or there is no row.
    pub async fn text(&self, sql: &str) -> Result<String> {
        let messages = self
            .connect()
            .await?
            .simple_query(sql)
            .await
            .with_context(|| format!("on {}: {sql}", self.name))?;
        messages
            .iter()
            .find_map(|message| {
                let tokio_postgres::SimpleQueryMessage::Row(row) = message else { return None };
                Some(row.get(0).unwrap_or_default().to_owned())
            })
            .ok_or_else(|| anyhow!("no row: {sql}"))
    }
}

/// Server-side apply of any object.
///
/// # Errors
/// The API server refuses: its sentence is in the error.
pub async fn apply(cluster: &Cluster, object: Value) -> Result<DynamicObject> {
    let object: DynamicObject = serde_json::from_value(object)?;
    let types = object.types.clone().context("apiVersion and kind")?;
    let gvk = kube::core::GroupVersionKind::try_from(&types)?;
    let (resource, _) = discovery::pinned_kind(&cluster.client, &gvk).await?;
    let name = object.metadata.name.clone().context("metadata.name")?;
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
        None => Api::all_with(cluster.client.clone(), &resource),
    };
    let mut parameters = PatchParams::apply("penstock-e2e").force();
    parameters.field_validation = Some(kube::api::ValidationDirective::Strict);
    Ok(api.patch(&name, &parameters, &Patch::Apply(&object)).await?)
}

fn server(namespace: &str, name: &str, arguments: &[&str]) -> Value {
    let labels = json!({"app": name});
    let mut command = vec!["postgres"];
    command.extend(arguments);
    let environment = json!([
        {"name": "POSTGRES_USER", "value": USER},
        {"name": "POSTGRES_PASSWORD", "valueFrom": {"secretKeyRef": {"name": name, "key": "password"}}},
        {"name": "POSTGRES_DB", "value": "shop"},
        {"name": "PGDATA", "value": "/var/lib/postgresql/data/pgdata"},
    ]);
    let container = json!({
        "name": "postgres", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "args": command, "env": environment,
        "ports": [{"containerPort": 5432}],
        "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}],
        "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1},
    });
    let claim = json!({
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "serviceName": name, "replicas": 1, "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 5, "containers": [container]},
            },
            "volumeClaimTemplates": [claim],
        },
    })
}
