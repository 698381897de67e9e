//! The description of the API: served, checked in, and what strangers' tools test us by.
use std::collections::BTreeMap;

use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::schema::{Schema, SchemaFormat};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use crate::{
    builds, content, create, fork, keys, lifecycle, logs, metrics, network, nodes, root, sandboxes, serve,
    snapshots, tags, templates, uploads, volumes,
};

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
        nodes::list, nodes::get, nodes::set_status,
        templates::list, templates::list_v2, templates::get, templates::alias, templates::change_v1, templates::change_v2,
        templates::delete, builds::register, builds::start, builds::status, builds::lines, uploads::link, uploads::put,
        tags::assign, tags::delete, tags::list, tags::count, tags::exists, tags::assignments, tags::groups,
        root::changes, root::export, fork::fork, snapshots::create, snapshots::list,
        volumes::create, volumes::list, volumes::get, volumes::delete,
        content::stat, content::change, content::remove, content::list, content::make_dir, content::read, content::write,
    ),
    components(schemas(wire::rest::Error, wire::rest::VolumeContentError)),
    modifiers(&Common),
)]
struct Description;

struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut Document) {
        let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        if let Some(components) = &mut document.components {
            components.add_security_scheme("ApiKey", key);
            components.add_security_scheme(
                "VolumeToken",
                SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
            );
        }
        tell_apart(document);
        document.security = Some(vec![SecurityRequirement::new("ApiKey", Vec::<String>::new())]);
        for (path, item) in &mut document.paths.paths {
            let error = if content::is_content(path) {
                "VolumeContentError"
            } else {
                "Error"
            };
            for operation in operations(item) {
                for parameter in operation.parameters.iter_mut().flatten() {
                    describe(parameter);
                }
                for (status, meaning) in ERRORS {
                    let content = ContentBuilder::new()
                        .schema(Some(Ref::from_schema_name(error)))
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

/// Operations are named after their functions; of one name there may be but one, so others carry their tag's before it.
fn tell_apart(document: &mut Document) {
    let mut seen = BTreeMap::<String, usize>::new();
    let mut operations: Vec<&mut Operation> =
        document.paths.paths.values_mut().flat_map(operations).collect();
    for operation in &operations {
        *seen
            .entry(operation.operation_id.clone().unwrap_or_default())
            .or_default() += 1;
    }
    for operation in &mut operations {
        let id = operation.operation_id.take().unwrap_or_default();
        let tag = operation
            .tags
            .iter()
            .flatten()
            .next()
            .map(|tag| tag.replace(' ', "_"));
        operation.operation_id = Some(match tag {
            Some(tag) if seen[&id] > 1 => format!("{tag}_{id}"),
            _ => id,
        });
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let all = [
        &mut item.get,
        &mut item.post,
        &mut item.put,
        &mut item.patch,
        &mut item.delete,
    ];
    all.into_iter().flatten()
}

/// What the ids of a path look like.
fn describe(parameter: &mut Parameter) {
    let Some(RefOr::T(Schema::Object(text))) = &mut parameter.schema else {
        return;
    };
    match parameter.name.as_str() {
        "sandboxID" => text.pattern = Some("^[a-z0-9]+(-[a-z0-9]*)?$".to_owned()),
        "hash" => text.pattern = Some("^[0-9a-f]{64}$".to_owned()),
        "apiKeyID" | "nodeID" | "buildID" | "volumeID" => {
            text.format = Some(SchemaFormat::Custom("uuid".to_owned()))
        }
        "teamID" if parameter.parameter_in == ParameterIn::Path => {
            text.format = Some(SchemaFormat::Custom("uuid".to_owned()));
        }
        "templateID" | "alias" => text.max_length = Some(model::TemplateRef::BYTES_MAX),
        _ => {}
    }
}

/// The description.
#[must_use]
pub fn document() -> Document {
    Description::openapi()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_operations_have_one_name() {
        let mut document = document();
        let mut ids: Vec<String> = document
            .paths
            .paths
            .values_mut()
            .flat_map(operations)
            .map(|operation| operation.operation_id.clone().unwrap())
            .collect();
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }
}
