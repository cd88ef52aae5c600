use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use kube::{Client, Config};
use penstock_crds::spec::DeletionPolicy;
use serde_json::json;

use super::*;
use crate::plan::plan;
use crate::plan::scene_for_tests::stopped;

/// What the API server was asked, as `POST /apis/…`.
type Asked = Arc<Mutex<Vec<String>>>;

/// An API server that refuses every Event and takes everything else.
async fn server_without_events() -> (Client, Asked) {
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
    if method == Method::POST {
        return status(StatusCode::FORBIDDEN, "Failure");
    }
    let object = json!({"apiVersion": "penstock.dev/v1alpha1", "kind": "CdcPipeline", "metadata": {"name": "inventory"}});
    axum::Json(object).into_response()
}

#[tokio::test]
async fn a_pipeline_stays_until_people_were_told_what_is_kept() {
    let (client, asked) = server_without_events().await;
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
