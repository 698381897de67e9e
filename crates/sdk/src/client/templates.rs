use form_urlencoded::Serializer;
use wire::rest::{Alias, ChangeTemplate, ChangedTemplate, Template, TemplateDetail};

use super::{Client, Page, next, segment, with_query};
use crate::error::CallError;
use crate::transport::ANSWER_WITHIN;

impl Client {
    /// Templates of the team.
    ///
    /// # Errors
    /// As of every call.
    pub async fn templates(&self) -> Result<Vec<Template>, CallError> {
        self.get("/templates").await?.json()
    }

    /// A template, by id or name, with a page of its builds, newest first. [`Page::items`] holds the one template.
    ///
    /// # Errors
    /// As of every call.
    pub async fn template(&self, name: &str, page: Option<&str>) -> Result<Page<TemplateDetail>, CallError> {
        let mut pairs = Serializer::new(String::new());
        if let Some(page) = page {
            pairs.append_pair("nextToken", page);
        }
        let path = with_query(&format!("/templates/{}", segment(name)), &pairs.finish());
        let answer = self.get(&path).await?;
        Ok(Page {
            items: vec![answer.json()?],
            next: next(&answer),
        })
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// As of every call.
    pub async fn alias(&self, name: &str) -> Result<Alias, CallError> {
        self.get(&format!("/templates/aliases/{}", segment(name)))
            .await?
            .json()
    }

    /// Lets other teams use a template, or no longer.
    ///
    /// # Errors
    /// As of every call.
    pub async fn publish_template(&self, name: &str, public: bool) -> Result<ChangedTemplate, CallError> {
        let change = ChangeTemplate { public: Some(public) };
        let path = format!("/v2/templates/{}", segment(name));
        self.send(http::Method::PATCH, &path, &change, ANSWER_WITHIN)
            .await?
            .json()
    }

    /// Removes a template that no sandbox uses, or a snapshot.
    ///
    /// # Errors
    /// As of every call.
    pub async fn delete_template(&self, name: &str) -> Result<(), CallError> {
        self.delete(&format!("/templates/{}", segment(name))).await
    }
}
