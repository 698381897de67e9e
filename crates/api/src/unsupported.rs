//! What is in the protocol and not supported yet: 501, with the feature's name.
use std::sync::Arc;

use axum::Router;
use axum::routing::{any, delete, get, post};
use model::Kind;

use crate::Api;
use crate::auth::Caller;
use crate::error::ApiError;

/// Builds as clients asked for them before version 3 of the API.
pub(crate) const OLD_BUILDS: &str = "template builds of older clients";

/// Every route of the contract that has no handler of its own.
pub(crate) fn routes() -> Router<Arc<Api>> {
    const SECRETS: &str = "secrets";
    const TOKENS: &str = "access tokens of persons";
    const ADMIN: &str = "admin operations";
    Router::new()
        .route(
            "/templates/{templateID}/builds/{buildID}",
            post(missing(OLD_BUILDS)),
        )
        .route("/default-templates", get(missing("default templates")))
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
