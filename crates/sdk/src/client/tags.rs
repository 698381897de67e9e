use http::Method;
use wire::rest::{AssignTags, AssignedTags, DeleteTags, TemplateTag};

use super::{Client, segment};
use crate::error::CallError;
use crate::transport::ANSWER_WITHIN;

impl Client {
    /// Tags of a template, with the builds that they name.
    ///
    /// # Errors
    /// As of every call.
    pub async fn tags(&self, template: &str) -> Result<Vec<TemplateTag>, CallError> {
        self.get(&format!("/templates/{}/tags", segment(template)))
            .await?
            .json()
    }

    /// Lets more tags name a build; `target` is `[namespace/]name[:tag]`.
    ///
    /// # Errors
    /// As of every call.
    pub async fn assign_tags(&self, target: &str, tags: &[String]) -> Result<AssignedTags, CallError> {
        let body = AssignTags {
            target: target.to_owned(),
            tags: tags.to_vec(),
        };
        self.post("/templates/tags", &body).await?.json()
    }

    /// Takes tags from a template; its `default` stays.
    ///
    /// # Errors
    /// As of every call.
    pub async fn delete_tags(&self, template: &str, tags: &[String]) -> Result<(), CallError> {
        let body = DeleteTags {
            name: template.to_owned(),
            tags: tags.to_vec(),
        };
        self.send(Method::DELETE, "/templates/tags", &body, ANSWER_WITHIN)
            .await
            .map(drop)
    }
}
