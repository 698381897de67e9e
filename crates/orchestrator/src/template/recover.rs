//! Builds that nobody is at: those of a process that died are run again, and those that nobody starts are given up.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::{Build, BuildStatus};
use ports::ManagerError;
use tokio_util::sync::CancellationToken;

use super::change::failed;
use crate::failure;
use crate::orchestrator::Orchestrator;

/// A client starts what it registered when its uploads are done: each has an hour (contract 4.1).
const WAITING_MAX: Duration = Duration::from_secs(24 * 3600);

/// How often is looked for builds that another process has stored: that is how long they wait for their start.
const LOOK: Duration = Duration::from_secs(1);

/// What is to be done about a build that is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    None,
    Run,
    GiveUp,
}

fn care(build: &Build, is_under_way: bool, now: SystemTime) -> Care {
    let age = now.duration_since(build.created_at).unwrap_or_default();
    match build.status {
        BuildStatus::Building if !is_under_way => Care::Run,
        BuildStatus::Waiting if age > WAITING_MAX => Care::GiveUp,
        _ => Care::None,
    }
}

impl Orchestrator {
    /// Looks for builds that other processes have stored, until `shutdown`. Where there are none, it need not.
    pub(crate) async fn look_for_builds(self: Arc<Self>, shutdown: CancellationToken) {
        while shutdown
            .run_until_cancelled(tokio::time::sleep(LOOK))
            .await
            .is_some()
        {
            if let Err(error) = self.care_for_builds().await {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "it was not looked for builds; it is tried again");
            }
        }
    }

    /// Runs what is stored as building and has no task, and gives up what was not started in time.
    pub(crate) async fn care_for_builds(&self) -> Result<(), ManagerError> {
        let unfinished = self.parts.builds.unfinished_builds().await;
        let unfinished = unfinished.map_err(failure::store("reading the builds"))?;
        self.heard.keep(&unfinished);
        let mut building = 0_u32;
        for build in unfinished {
            building += u32::from(build.status == BuildStatus::Building);
            let is_under_way = self.building.has(build.id) || self.is_anothers(&build);
            match care(&build, is_under_way, self.now()) {
                Care::None => {}
                Care::Run => self.run_again(build).await?,
                Care::GiveUp => {
                    let why = failed(None, "the build was not started within a day of its registration");
                    self.give_up_build(build.id, why).await?;
                }
            }
        }
        metrics::gauge!("atoll_template_builds").set(building);
        Ok(())
    }

    /// Runs a build that has no task, unless its template is gone: then nothing is kept of it.
    async fn run_again(&self, build: Build) -> Result<(), ManagerError> {
        let template = self.parts.templates.get(build.template).await;
        if template
            .map_err(failure::store("reading the template"))?
            .is_none()
        {
            let removed = self.parts.builds.remove_builds_of(build.template).await;
            return removed.map_err(failure::store("removing the builds"));
        }
        // A start of this moment has stored it, and is about to begin its task.
        let Some(_locked) = self.template_locks.try_lock(build.template) else {
            return Ok(());
        };
        tracing::info!(build = %build.id, template = %build.template, "a build is run again");
        self.run_build(&build);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use model::TemplateId;
    use ports::store::contract;

    use super::*;

    #[test]
    fn what_nobody_is_at_is_run_and_what_nobody_starts_is_given_up() {
        let at = SystemTime::UNIX_EPOCH;
        let build = |status| Build {
            status,
            created_at: at,
            updated_at: at,
            ..contract::build(TemplateId::random())
        };
        let (waiting, building) = (build(BuildStatus::Waiting), build(BuildStatus::Building));
        let late = at + WAITING_MAX + Duration::from_secs(1);
        assert_eq!(care(&waiting, false, at + WAITING_MAX), Care::None);
        assert_eq!(care(&waiting, false, late), Care::GiveUp);
        assert_eq!(care(&building, true, late), Care::None);
        assert_eq!(care(&building, false, at), Care::Run);
        assert_eq!(care(&build(BuildStatus::Ready), false, late), Care::None);
    }
}
