//! A build from its order to its result.
//!
//! ```text
//!   base ──▶ the longest prefix of steps whose results are kept ──▶ each step after it ──▶ finalize
//!                                                                     │ its result is kept
//! ```
use std::sync::Arc;

use model::recipe::{Action, Base, Context, Key, Planned, RegistryCredentials, plan};
use model::{BuildFailure, BuildId, BuildStep, StartCommand};
use ports::builds::{BuildError, BuildOrder, BuildShelf, BuildTalk, Built, CachedStep};
use ports::{Level, Runtime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::images::{self, Image, ImageError, Resolved};
use super::in_use::Claim;
use super::lab::Lab;
use super::leash::{Leash, failure, fault, refused};
use super::program::{Program, ProgramError, SHELL};
use super::step::{self, Bench};
use super::talk::{Printer, Talk, cut};
use crate::node::LocalNode;

/// Sentences of a pull that wait to be told.
const SAYINGS_MAX: usize = 64;

/// What is done to every image before the first step (contract 4.2).
fn implicit_user() -> Action {
    Action::User {
        name: Context::default().user,
        sudo: true,
    }
}

/// A build under way.
pub(super) struct Work<'a> {
    node: &'a Arc<LocalNode>,
    pub(super) order: &'a BuildOrder,
    pub(super) talk: &'a Talk,
    pub(super) leash: &'a Leash,
    shelf: &'a dyn BuildShelf,
    claim: Claim,
    /// Where steps are carried out: a machine of `at`, and what was done since. Opened for the first one that has to be.
    pub(super) lab: Option<Lab>,
    /// What the last step has left on the disk.
    pub(super) at: BuildId,
    /// With what the next one runs.
    pub(super) context: Context,
    /// Copies that the shelf was not told of: of no use to anybody, should the build fail.
    loose: Vec<BuildId>,
}

/// What a build starts from.
enum Source {
    /// The image that the recipe names.
    Image(Resolved),
    /// The build of a template that the order names.
    Template,
}

/// Carries out an order. What is not a result is given back, whatever happens.
pub(super) async fn carry_out(
    node: &Arc<LocalNode>,
    order: &BuildOrder,
    talk: BuildTalk,
    stop: CancellationToken,
) -> Result<Built, BuildError> {
    let lines = Talk::new(talk.lines, stop.clone());
    let leash = Leash::new(stop);
    let mut claim = node.in_use.claim();
    // Asked again about one that is ready: it is not made anew below those who use it.
    if !claim.add_alone(order.build) || node.has_sandbox_of(order.build) {
        return Err(fault("beginning a build")(std::io::Error::other(
            "a build of this name is under way, or sandboxes were started from it",
        )));
    }
    let mut work = Work {
        node,
        order,
        talk: &lines,
        leash: &leash,
        shelf: &*talk.shelf,
        claim,
        lab: None,
        at: order.build,
        context: Context::default(),
        loose: Vec::new(),
    };
    let built = work.build().await;
    work.close_lab().await;
    if built.is_err() {
        work.loose.push(order.build);
    }
    work.clear_away().await;
    built
}

impl Work<'_> {
    pub(super) fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.node.runtime
    }

    async fn build(&mut self) -> Result<Built, BuildError> {
        // What an earlier daemon has made of it, nobody was told of.
        self.node
            .runtime
            .remove_builds(&[self.order.build])
            .await
            .map_err(fault("removing what an earlier try has left"))?;
        let order = self.order;
        let (key, source) = self.source().await?;
        let steps = plan(key, &order.recipe).map_err(|error| {
            let step = match error {
                model::recipe::RecipeError::Text(number) => BuildStep::Step(number),
                model::recipe::RecipeError::TooManySteps(_) => BuildStep::Base,
            };
            failure(step, error.to_string())
        })?;
        let done = self.take_cached(key, &steps).await;
        if done.is_none() {
            self.begin(key, &source).await?;
        }
        for planned in &steps[done.unwrap_or(0)..] {
            self.carry_out(planned, steps.len()).await?;
        }
        let last = steps.last().map_or(key, |step| step.key);
        let said = format!("[finalize] Finalizing template build [{last}]");
        self.talk.say(BuildStep::Finalize, Level::Info, said).await;
        let start = self.start();
        let memory = self.finalize(start.as_ref()).await?;
        Ok(Built {
            context: self.context.clone(),
            start,
            memory,
        })
    }

    /// What it starts from, and the key that everything is kept under which is made of that.
    async fn source(&self) -> Result<(Key, Source), BuildError> {
        if let Some(base) = &self.order.base {
            return Ok((Key::of_build(base.build), Source::Template));
        }
        let (reference, credentials) = self.image()?;
        let images = self.node.images.get().ok_or_else(|| {
            failure(
                BuildStep::Base,
                "this server pulls no images: build from one of its templates",
            )
        })?;
        let resolved = self
            .leash
            .hold(BuildStep::Base, async {
                images.resolve(reference, credentials).await.map_err(no_image)
            })
            .await?;
        Ok((Key::of_image(&resolved.digest), Source::Image(resolved)))
    }

    /// The image that the recipe names, and who asks for it.
    fn image(&self) -> Result<(&str, Option<&RegistryCredentials>), BuildError> {
        match &self.order.recipe.from {
            Base::Image {
                reference,
                credentials,
            } => Ok((reference, credentials.as_ref())),
            Base::Template(_) => Err(fault("beginning a build")(std::io::Error::other(
                "the order names a template, and none of its builds",
            ))),
        }
    }

    /// Takes the longest prefix of steps whose result is kept. Returns how many they are.
    async fn take_cached(&mut self, key: Key, steps: &[Planned<'_>]) -> Option<usize> {
        let usable = steps.iter().take_while(|step| step.may_be_cached).count();
        for number in (1..=usable).rev() {
            let Some(kept) = self.kept(steps[number - 1].key).await else {
                continue;
            };
            self.say_base(key, true).await;
            for planned in &steps[..number] {
                self.say_step(planned, steps.len(), true).await;
            }
            (self.at, self.context) = (kept.build, kept.context);
            return Some(number);
        }
        None
    }

    /// What is kept under a key, if sandboxes can be started from it here.
    async fn kept(&mut self, key: Key) -> Option<CachedStep> {
        let kept = self.shelf.cached(key).await?;
        // From before the look at it, so that it is not removed in between.
        self.claim.add(kept.build);
        self.runtime().has_build(kept.build).await.then_some(kept)
    }

    /// Gets what it starts from.
    async fn begin(&mut self, key: Key, source: &Source) -> Result<(), BuildError> {
        if let Source::Image(resolved) = source {
            return self.begin_with_image(key, resolved).await;
        }
        let order = self.order;
        let base = order.base.as_ref().expect("the source is one of its builds");
        self.claim.add(base.build);
        if !self.runtime().has_build(base.build).await {
            return Err(fault("beginning a build")(ports::RuntimeError::NoBuild(
                base.build,
            )));
        }
        self.say_base(key, false).await;
        (self.at, self.context) = (base.build, base.context.clone());
        Ok(())
    }

    async fn begin_with_image(&mut self, key: Key, resolved: &Resolved) -> Result<(), BuildError> {
        let user = implicit_user();
        let key_of_user = key.then(&user);
        if !self.order.recipe.force
            && let Some(kept) = self.kept(key_of_user).await
        {
            self.say_base(key, true).await;
            (self.at, self.context) = (kept.build, kept.context);
            return Ok(());
        }
        self.say_base(key, false).await;
        let image = self.pull(resolved).await?;
        self.import(&image).await?;
        self.check_shell().await?;
        self.perform(BuildStep::Base, "base", &user, key_of_user).await
    }

    /// Has the image here that its name meant when it was resolved.
    async fn pull(&self, resolved: &Resolved) -> Result<Image, BuildError> {
        let images = self.node.images.get().expect("the image was resolved by it");
        let (reference, credentials) = self.image()?;
        let (says, mut said) = mpsc::channel(SAYINGS_MAX);
        let pulled = async {
            let pull = images.pull(reference, credentials, says);
            tokio::pin!(pull);
            loop {
                tokio::select! {
                    image = &mut pull => break image.map_err(no_image),
                    Some(text) = said.recv() => {
                        let line = format!("[base] {text}");
                        self.talk.say(BuildStep::Base, Level::Info, line).await;
                    }
                }
            }
        };
        let image = self.leash.hold(BuildStep::Base, pulled).await?;
        if image.digest == resolved.digest {
            return Ok(image);
        }
        // What is kept is kept under what the name meant before.
        Err(fault("getting an image")(std::io::Error::other(format!(
            "{reference} became another image while it was pulled"
        ))))
    }

    /// Makes an image a build, if it is none yet, and goes on from there.
    async fn import(&mut self, image: &Image) -> Result<(), BuildError> {
        let build = images::build_of(&image.digest);
        self.claim.add(build);
        let alone = self.node.importing.lock().await;
        if !self.runtime().has_build(build).await {
            self.runtime()
                .import(build, image.layers.clone())
                .await
                .map_err(refused(BuildStep::Base, "importing an image"))?;
            failpoint::reach("node/build-image-imported");
        }
        drop(alone);
        self.at = build;
        for (name, value) in images::variables(&image.env) {
            self.context.set(name, value.to_owned());
        }
        Ok(())
    }

    /// Refuses an image in which no command can be run: nobody would be told before a sandbox's first one.
    async fn check_shell(&mut self) -> Result<(), BuildError> {
        const STEP: BuildStep = BuildStep::Base;
        self.open_lab(STEP).await?;
        let (leash, talk) = (self.leash, self.talk);
        let lab = self.lab.as_mut().expect("it was opened a moment ago");
        let nothing = Program {
            command: ":",
            user: "root",
            cwd: Some("/"),
            env: &[],
        };
        let printer = Printer::new(talk, STEP, Level::Debug, "base");
        let heard = leash
            .hold(STEP, async {
                Ok(step::hear(lab.machine(), &nothing, printer).await)
            })
            .await?;
        match heard {
            // What a shell says that is there is for the steps to judge.
            Ok(_) => Ok(()),
            Err(ProgramError::Refused(why)) => Err(failure(
                STEP,
                format!(
                    "no command can be run in this image: every command of a sandbox is run by {SHELL}, and the image's cannot be started ({why}); build from an image that has it"
                ),
            )),
            Err(ProgramError::Connection(error)) => {
                let what = step::gone(&error);
                let trouble = lab.trouble().await;
                Err(failure(
                    STEP,
                    trouble.map_or_else(|| what.clone(), |trouble| format!("{what} ({trouble})")),
                ))
            }
        }
    }

    async fn carry_out(&mut self, planned: &Planned<'_>, of: usize) -> Result<(), BuildError> {
        self.say_step(planned, of, false).await;
        let step = BuildStep::Step(planned.number);
        let prefix = prefix(planned.number, of);
        self.perform(step, &prefix, planned.action, planned.key).await
    }

    /// Carries out a step, and keeps its result.
    async fn perform(
        &mut self,
        step: BuildStep,
        prefix: &str,
        action: &Action,
        key: Key,
    ) -> Result<(), BuildError> {
        self.open_lab(step).await?;
        let (leash, talk, shelf) = (self.leash, self.talk, self.shelf);
        let mut bench = Bench {
            lab: self.lab.as_mut().expect("it was opened a moment ago"),
            talk,
            shelf,
            step,
            prefix,
        };
        let done = leash.hold(step, bench.carry_out(action, &self.context)).await?;
        if done.wrote {
            self.at = self.copy_lab(step).await?;
        }
        self.context = done.context;
        let kept = CachedStep {
            build: self.at,
            context: self.context.clone(),
        };
        self.shelf.cache(key, kept).await;
        self.loose.clear();
        failpoint::reach("node/build-step-kept");
        Ok(())
    }

    /// Copies the lab's disk.
    async fn copy_lab(&mut self, step: BuildStep) -> Result<BuildId, BuildError> {
        self.leash.check(step)?;
        let into = BuildId::random();
        self.claim.add(into);
        self.loose.push(into);
        let lab = self.lab.as_mut().expect("a step was carried out in it");
        let copied = lab.machine().checkpoint(into, false).await;
        failpoint::reach("node/build-step-copied");
        let Err(error) = copied else { return Ok(into) };
        Err(match lab.trouble().await {
            Some(trouble) if lab.has_ended() => failure(step, trouble),
            _ => refused(step, "copying the disk of the build's sandbox")(error),
        })
    }

    /// Has a machine of what the last step has left.
    pub(super) async fn open_lab(&mut self, step: BuildStep) -> Result<(), BuildError> {
        if self.lab.is_none() {
            self.leash.check(step)?;
            let of = (Some(self.order.template), self.order.resources);
            self.lab = Some(Lab::open(self.runtime(), of, self.at, step).await?);
        }
        Ok(())
    }

    pub(super) async fn close_lab(&mut self) {
        if let Some(lab) = self.lab.take() {
            lab.close().await;
        }
    }

    /// Removes what is of no use to anybody.
    async fn clear_away(&mut self) {
        if self.loose.is_empty() {
            return;
        }
        if let Err(error) = self.node.runtime.remove_builds(&self.loose).await {
            // The collector finds that nobody names them.
            tracing::error!(build = %self.order.build, error = &error as &dyn std::error::Error, "what a build that failed has left could not be removed");
        }
    }

    /// What runs in its sandboxes: what the recipe says, or else what runs in those of its base.
    fn start(&self) -> Option<StartCommand> {
        let own = self.order.recipe.start.as_ref().map(|command| StartCommand {
            command: command.clone(),
            user: self.context.user.clone(),
            cwd: self.context.workdir.clone(),
        });
        own.or_else(|| self.order.base.as_ref()?.start.clone())
    }

    async fn say_base(&self, key: Key, is_cached: bool) {
        let from = match &self.order.recipe.from {
            Base::Image { reference, .. } => format!("FROM {reference}"),
            Base::Template(named) => format!("FROM TEMPLATE {}", named.name),
        };
        let said = format!("{}[base] {from} [{key}]", cached(is_cached));
        self.talk.say(BuildStep::Base, Level::Info, said).await;
    }

    async fn say_step(&self, planned: &Planned<'_>, of: usize, is_cached: bool) {
        let (prefix, what) = (prefix(planned.number, of), step::describe(planned.action));
        let said = format!("{}[{prefix}] {what} [{}]", cached(is_cached), planned.key);
        self.talk
            .say(BuildStep::Step(planned.number), Level::Info, said)
            .await;
    }
}

/// As the reference shows them (contract 4.2).
fn prefix(number: u32, of: usize) -> String {
    format!("builder {number}/{of}")
}

fn cached(is_cached: bool) -> &'static str {
    if is_cached { "CACHED " } else { "" }
}

fn no_image(error: ImageError) -> BuildError {
    match error {
        ImageError::Refused(why) => failure(BuildStep::Base, why),
        error @ ImageError::Away { .. } => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "an image cannot be had now"
            );
            BuildError::Away(BuildFailure {
                message: with_causes(&error),
                step: Some(BuildStep::Base),
            })
        }
        error @ ImageError::Failed { .. } => fault("getting an image")(error),
    }
}

/// What a cause of a cause says, cut to this, is enough for whoever is told.
const CAUSES_BYTES_MAX: usize = 1000;

/// An error with its causes, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let says = error.to_string();
        if !text.contains(&says) {
            text = format!("{text}: {says}");
        }
        cause = error.source();
    }
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    cut(&text, CAUSES_BYTES_MAX)
}
