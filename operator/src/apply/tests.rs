use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use kube::{Client, Config};
use penstock_crds::names::ANNOTATION_COMPARE_SOURCE;
use penstock_crds::spec::DeletionPolicy;
use serde_json::json;

use super::*;
use crate::plan::plan;
use crate::plan::scene_for_tests::{at_rest, stopped};

/// What the API server was asked, as `POST /apis/…`.
type Asked = Arc<Mutex<Vec<String>>>;

/// An API server that refuses every Event and every Job, and takes everything else.
async fn server_that_refuses() -> (Client, Asked) {
    let asked = Asked::default();
    let router = Router::new().fallback(answer).with_state(Arc::clone(&asked));
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config = Config::new(format!("http://{address}").parse().unwrap());
    (Client::try_from(config).unwrap(), asked)
}

async fn answer(State(asked): State<Asked>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    asked.lock().unwrap().push(format!("{method} {path}"));
    let status = |code: StatusCode, word: &str| {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": word,
            "message": "exceeded quota", "reason": "Forbidden", "code": code.as_u16(),
        });
        (code, axum::Json(body)).into_response()
    };
    if method == Method::POST || path.contains("/jobs/") {
        return status(StatusCode::FORBIDDEN, "Failure");
    }
    let object = json!({"apiVersion": "penstock.dev/v1alpha1", "kind": "CdcPipeline", "metadata": {"name": "inventory"}});
    axum::Json(object).into_response()
}

#[tokio::test]
async fn a_pipeline_stays_until_people_were_told_what_is_kept() {
    let (client, asked) = server_that_refuses().await;
    let applier = Applier::new(client.clone(), Publisher::new(client, "operator-0".into()));
    let world = stopped(DeletionPolicy::Retain);
    let plan = plan(&world).unwrap();
    let observed = Observed { world, versions: HashMap::new(), control: None, lines: HashMap::new() };
    for pass in 1..=2 {
        let error = applier.carry_out(&observed, &plan).await.unwrap_err();
        assert!(error.refusal().is_some_and(|refusal| refusal.contains("exceeded quota")), "{error}");
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), pass, "the Event is tried again, and nothing follows: {asked:?}");
        assert!(asked.iter().all(|call| call.starts_with("POST") && call.ends_with("/events")), "{asked:?}");
    }
}

#[tokio::test]
async fn a_comparison_that_is_refused_failed_and_the_pipeline_is_not_refused() {
    let (client, asked) = server_that_refuses().await;
    let applier = Applier::new(client.clone(), Publisher::new(client, "operator-0".into()));
    let mut world = at_rest();
    let annotations = [(ANNOTATION_COMPARE_SOURCE.to_owned(), "t-1".to_owned())];
    world.pipeline.metadata.annotations = Some(annotations.into());
    let mut its_job = plan(&world).unwrap();
    its_job.steps.retain(|step| matches!(step, Step::Apply(Manifest::Comparison(_))));
    its_job.status = None;
    let observed =
        Observed { world: world.clone(), versions: HashMap::new(), control: None, lines: HashMap::new() };
    let error = applier.carry_out(&observed, &its_job).await.unwrap_err();
    assert!(asked.lock().unwrap()[0].contains("/jobs/inventory-compare-"), "{asked:?}");
    assert_eq!(error.refusal(), None, "it would stall the pipeline");
    world.comparison_refused = error.refusal_of_comparison();
    let conditions = plan(&world).unwrap().status.unwrap().conditions;
    let condition = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    assert_eq!(condition("SourceMatches").reason, "ComparisonFailed");
    assert!(condition("SourceMatches").message.contains("exceeded quota"), "{conditions:?}");
    assert_eq!(condition("Stalled").status, "False");
}
