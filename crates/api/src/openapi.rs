//! The description of the API: served, checked in, and what strangers' tools test us by.
use utoipa::openapi::path::Parameter;
use utoipa::openapi::schema::{Schema, SchemaFormat};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use crate::{create, keys, lifecycle, logs, metrics, network, nodes, sandboxes, serve, templates};

/// What every operation may answer, beside what it says itself.
const ERRORS: [(&str, &str); 14] = [
    (
        "400",
        "The request cannot be carried out as written; the message names the field.",
    ),
    ("401", "The key is missing or wrong."),
    ("403", "The caller may not."),
    ("404", "There is no such object, or it is another team's."),
    ("405", "The route has no such method."),
    ("408", "The body did not come in time."),
    ("409", "The object is in a state that does not allow this."),
    ("413", "The body is too long."),
    ("415", "The body is not told to be JSON."),
    (
        "429",
        "A rate limit or quota is used up; Retry-After or Should-Retry says whether waiting helps.",
    ),
    ("500", "A fault of the server."),
    ("501", "The feature is not supported yet."),
    ("503", "The server cannot do this now."),
    ("504", "It took too long."),
];

#[derive(OpenApi)]
#[openapi(
    info(title = "Atoll", description = "Sandboxes for code that nobody trusts yet. The protocol is E2B's.", license(name = "Apache-2.0")),
    paths(
        serve::health, serve::description,
        create::create_v1, create::create_v2, sandboxes::list_v1, sandboxes::list_v2, sandboxes::get,
        lifecycle::connect_v1, lifecycle::connect_v2, lifecycle::resume, lifecycle::pause, lifecycle::restart, lifecycle::kill,
        lifecycle::set_timeout, lifecycle::refresh, network::update,
        metrics::of_one, metrics::of_several, logs::v1, logs::v2,
        keys::teams, keys::list, keys::create, keys::rename, keys::delete,
        nodes::list, nodes::get,
        templates::list, templates::list_v2, templates::get, templates::alias, templates::tags,
    ),
    components(schemas(wire::rest::Error)),
    modifiers(&Common),
)]
struct Description;

struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut Document) {
        let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        if let Some(components) = &mut document.components {
            components.add_security_scheme("ApiKey", key);
        }
        document.security = Some(vec![SecurityRequirement::new("ApiKey", Vec::<String>::new())]);
        for item in document.paths.paths.values_mut() {
            let operations = [
                &mut item.get,
                &mut item.post,
                &mut item.put,
                &mut item.patch,
                &mut item.delete,
            ];
            for operation in operations.into_iter().flatten() {
                for parameter in operation.parameters.iter_mut().flatten() {
                    describe(parameter);
                }
                for (status, meaning) in ERRORS {
                    let content = ContentBuilder::new()
                        .schema(Some(Ref::from_schema_name("Error")))
                        .build();
                    let response = ResponseBuilder::new()
                        .description(meaning)
                        .content("application/json", content)
                        .build();
                    operation
                        .responses
                        .responses
                        .entry(status.to_owned())
                        .or_insert(RefOr::T(response));
                }
            }
        }
    }
}

/// What the ids of a path look like.
fn describe(parameter: &mut Parameter) {
    let Some(RefOr::T(Schema::Object(text))) = &mut parameter.schema else {
        return;
    };
    match parameter.name.as_str() {
        "sandboxID" => text.pattern = Some("^[a-z0-9]+(-[a-z0-9]*)?$".to_owned()),
        "apiKeyID" | "nodeID" => text.format = Some(SchemaFormat::Custom("uuid".to_owned())),
        "templateID" | "alias" => text.max_length = Some(model::TemplateRef::BYTES_MAX),
        _ => {}
    }
}

/// The description.
#[must_use]
pub fn document() -> Document {
    Description::openapi()
}
