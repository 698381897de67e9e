//! What is in the protocol and not supported yet: 501, with the feature's name.
use std::sync::Arc;

use axum::Router;
use axum::routing::{any, delete, get, patch, post};
use model::Kind;

use crate::Api;
use crate::auth::Caller;
use crate::error::ApiError;

/// Every route of the contract that has no handler of its own.
pub(crate) fn routes() -> Router<Arc<Api>> {
    const BUILDS: &str = "template builds";
    const SNAPSHOTS: &str = "snapshots";
    const VOLUMES: &str = "volumes";
    const SECRETS: &str = "secrets";
    const TAGS: &str = "changes of template tags";
    const LOOKS: &str = "counts, groups and histories of template tags";
    const TOKENS: &str = "access tokens of persons";
    const ADMIN: &str = "admin operations";
    Router::new()
        .route("/sandboxes/{sandboxID}/fork", post(missing("forks")))
        .route("/sandboxes/{sandboxID}/snapshots", post(missing(SNAPSHOTS)))
        .route("/snapshots", get(missing(SNAPSHOTS)))
        .route("/v3/templates", post(missing(BUILDS)))
        .route("/templates/{templateID}/files/{hash}", get(missing(BUILDS)))
        .route(
            "/v2/templates/{templateID}/builds/{buildID}",
            post(missing(BUILDS)),
        )
        .route("/templates/{templateID}/builds/{buildID}", post(missing(BUILDS)))
        .route(
            "/templates/{templateID}/builds/{buildID}/status",
            get(missing(BUILDS)),
        )
        .route(
            "/templates/{templateID}/builds/{buildID}/logs",
            get(missing(BUILDS)),
        )
        .route(
            "/v2/templates/{templateID}",
            patch(missing("changes of templates")),
        )
        .route("/templates/tags", post(missing(TAGS)).delete(missing(TAGS)))
        .route("/templates/{templateID}/tags/{what}", get(missing(LOOKS)))
        .route(
            "/templates/{templateID}/tags/{tag}/assignments",
            get(missing(LOOKS)),
        )
        .route("/default-templates", get(missing("default templates")))
        .route("/volumes", get(missing(VOLUMES)).post(missing(VOLUMES)))
        .route(
            "/volumes/{volumeID}",
            get(missing(VOLUMES)).delete(missing(VOLUMES)),
        )
        // Asked for with a token of the volume's own, which nobody here has given out.
        .route("/volumecontent/{*rest}", any(async || refusal(VOLUMES)))
        .route("/secrets", get(missing(SECRETS)).post(missing(SECRETS)))
        .route(
            "/secrets/{secretID}",
            get(missing(SECRETS))
                .post(missing(SECRETS))
                .delete(missing(SECRETS)),
        )
        .route("/access-tokens", get(missing(TOKENS)).post(missing(TOKENS)))
        .route("/access-tokens/{accessTokenID}", delete(missing(TOKENS)))
        .route("/teams/{teamID}/metrics", get(missing("metrics of teams")))
        .route("/teams/{teamID}/metrics/max", get(missing("metrics of teams")))
        .route("/admin/{*rest}", any(missing(ADMIN)))
}

/// A handler that says which feature is missing, to callers who are known.
pub(crate) fn missing(
    feature: &'static str,
) -> impl Fn(Caller) -> std::future::Ready<ApiError> + Clone + Send + Sync + 'static {
    move |_: Caller| std::future::ready(refusal(feature))
}

fn refusal(feature: &str) -> ApiError {
    ApiError::new(
        Kind::Unsupported,
        format!("{feature} are not supported by this server yet"),
    )
}
