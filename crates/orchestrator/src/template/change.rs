//! Writing templates and builds: by compare-and-set, each change beginning with what is stored.
use model::recipe::Base;
use model::{Build, BuildFailure, BuildId, BuildStatus, BuildStep, Template, TemplateId};
use ports::{ManagerError, StoreError};

use crate::failure;
use crate::orchestrator::Orchestrator;
use crate::timeout::whole_micros;

/// Writers of one template or build are few. Losing this often means that something writes in a loop.
const ATTEMPTS_MAX: usize = 16;

/// A failure that is told by its message.
pub(crate) fn failed(step: Option<BuildStep>, message: impl Into<String>) -> BuildFailure {
    BuildFailure {
        message: message.into(),
        step,
    }
}

/// A build that has ended. Of its recipe stays what it was made from: builds that are over are kept for as long as their
/// template, and read together, so that texts of a mebibyte each, and credentials, must not be among what is kept.
fn end(build: &mut Build, status: BuildStatus, now: std::time::SystemTime) {
    build.status = status;
    build.finished_at = Some(now);
    if let Some(recipe) = &mut build.recipe {
        if let Base::Image { credentials, .. } = &mut recipe.from {
            *credentials = None;
        }
        recipe.steps = Vec::new();
        (recipe.start, recipe.ready) = (None, None);
    }
}

impl Orchestrator {
    /// Edits a template; `None` where it is not there (any more). `edit` says whether there is anything to be written.
    pub(super) async fn edit_template<E>(
        &self,
        id: TemplateId,
        mut edit: impl FnMut(&mut Template) -> Result<bool, E> + Send,
    ) -> Result<Option<Template>, E>
    where
        E: From<ManagerError>,
    {
        let step = "storing the template";
        for _ in 0..ATTEMPTS_MAX {
            let stored = self.parts.templates.get(id).await;
            let Some(mut template) = stored.map_err(failure::store("reading the template"))? else {
                return Ok(None);
            };
            if !edit(&mut template)? {
                return Ok(Some(template));
            }
            template.updated_at = whole_micros(self.now());
            match self.parts.templates.update(&template).await {
                Ok(version) => return Ok(Some(Template { version, ..template })),
                Err(StoreError::Conflict) => {}
                Err(StoreError::Missing) => return Ok(None),
                Err(error) => return Err(failure::store(step)(error).into()),
            }
        }
        Err(failure::store(step)(StoreError::Conflict).into())
    }

    /// Edits a build; `None` where it is not there any more. Where `edit` changes nothing, nothing is written.
    pub(super) async fn edit_build<E>(
        &self,
        id: BuildId,
        mut edit: impl FnMut(&mut Build) -> Result<(), E> + Send,
    ) -> Result<Option<Build>, E>
    where
        E: From<ManagerError>,
    {
        let step = "storing the build";
        for _ in 0..ATTEMPTS_MAX {
            let stored = self.parts.builds.build(id).await;
            let Some(before) = stored.map_err(failure::store("reading the build"))? else {
                return Ok(None);
            };
            let mut build = before.clone();
            edit(&mut build)?;
            if build == before {
                return Ok(Some(build));
            }
            build.updated_at = whole_micros(self.now());
            match self.parts.builds.update_build(&build).await {
                Ok(version) => return Ok(Some(Build { version, ..build })),
                Err(StoreError::Conflict) => {}
                Err(StoreError::Missing) => return Ok(None),
                Err(error) => return Err(failure::store(step)(error).into()),
            }
        }
        Err(failure::store(step)(StoreError::Conflict).into())
    }

    /// Stores that a build has ended, unless it had ended before: how, the answer tells.
    pub(super) async fn end_build(
        &self,
        id: BuildId,
        status: BuildStatus,
    ) -> Result<Option<Build>, ManagerError> {
        let now = whole_micros(self.now());
        let edit = |build: &mut Build| {
            if !build.status.is_over() {
                end(build, status.clone(), now);
            }
            Ok(())
        };
        self.edit_build(id, edit).await
    }

    /// Stores that a build has failed, unless it had ended before, and ends its task.
    pub(super) async fn give_up_build(&self, id: BuildId, why: BuildFailure) -> Result<(), ManagerError> {
        self.end_build(id, BuildStatus::Failed(why)).await?;
        self.building.cancel(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use model::recipe::{Action, Recipe, RegistryCredentials, Step};
    use model::{Secret, TemplateId};
    use ports::store::contract;

    use super::*;

    #[test]
    fn a_build_that_is_over_holds_neither_credentials_nor_its_steps() {
        let (username, password) = ("me".to_owned(), Secret::new("hunter2".to_owned()));
        let at = SystemTime::UNIX_EPOCH;
        let mut build = Build {
            status: BuildStatus::Building,
            recipe: Some(Recipe {
                from: Base::Image {
                    reference: "private/image".to_owned(),
                    credentials: Some(RegistryCredentials::Basic { username, password }),
                },
                steps: vec![Step {
                    action: Action::Workdir("/x".repeat(60_000)),
                    force: false,
                }],
                start: Some("x".repeat(100_000)),
                ready: Some("x".repeat(100_000)),
                force: false,
            }),
            ..contract::build(TemplateId::random())
        };
        end(&mut build, BuildStatus::Ready, at);
        let kept = build.recipe.unwrap();
        assert_eq!(
            kept.from,
            Base::Image {
                reference: "private/image".to_owned(),
                credentials: None
            }
        );
        assert_eq!((kept.steps, kept.start, kept.ready), (Vec::new(), None, None));
        assert_eq!(build.finished_at, Some(at));
    }
}
