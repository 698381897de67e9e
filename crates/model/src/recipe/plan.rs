use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Action, Recipe};
use crate::BuildId;

/// The most steps of a recipe: each is run, kept and shown by itself.
const STEPS_MAX: usize = 1000;
/// The longest text in a step, in bytes: the kernel passes no longer argument to a program (`MAX_ARG_STRLEN`).
const TEXT_BYTES_MAX: usize = 128 << 10;

/// With what commands run after a step: what the steps before it have set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Who.
    pub user: String,
    /// Where; the user's home where it is not set.
    pub workdir: Option<String>,
    /// Variables, in the order in which they were set, each once.
    pub env: Vec<(String, String)>,
}

impl Context {
    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: String) {
        match self.env.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.env.push((name.to_owned(), value)),
        }
    }
}

impl Default for Context {
    /// As before the first step: the implicit `USER user true` has been carried out (contract 4.2).
    fn default() -> Self {
        Self {
            user: "user".to_owned(),
            workdir: None,
            env: Vec::new(),
        }
    }
}

/// Under what the result of a step is kept: what it starts from, and everything that was done since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// Of a base that is known by a text: the digest of an image, or a build.
    #[must_use]
    pub fn of_image(digest: &str) -> Self {
        Self::begin(b"image", digest.as_bytes())
    }

    /// Of a base that is another template's build.
    #[must_use]
    pub fn of_build(build: BuildId) -> Self {
        Self::begin(b"build", build.0.as_bytes())
    }

    fn begin(what: &[u8], name: &[u8]) -> Self {
        Self(
            Sha256::new()
                .chain_update(what)
                .chain_update([0])
                .chain_update(name)
                .finalize()
                .into(),
        )
    }

    /// After one more step.
    #[must_use]
    pub fn then(self, action: &Action) -> Self {
        let text = serde_json::to_vec(action).expect("an action is texts and numbers");
        Self(
            Sha256::new()
                .chain_update(self.0)
                .chain_update(text)
                .finalize()
                .into(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for Key {
    type Err = crate::id::IdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = crate::id::IdError("key of a step");
        let digits = text.as_bytes();
        let is_plain = digits
            .iter()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        if digits.len() != 64 || !is_plain {
            return Err(bad);
        }
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad)?;
        }
        Ok(Self(key))
    }
}

/// A step, as a node carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned<'a> {
    /// Counted from 1.
    pub number: u32,
    /// What is done.
    pub action: &'a Action,
    /// Where its result is kept.
    pub key: Key,
    /// Whether a result that is kept already will do.
    pub may_be_cached: bool,
}

/// The recipe cannot be carried out as it is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// More steps than a build may have.
    #[error("a template has at most {STEPS_MAX} steps, this one {0}; join commands with &&")]
    TooManySteps(usize),
    /// A text that no program could be given.
    #[error("step {0} holds a text of more than {TEXT_BYTES_MAX} bytes, or a NUL byte")]
    Text(u32),
}

/// The steps of a recipe over a base, each with its key.
///
/// # Errors
/// See [`RecipeError`].
pub fn plan(base: Key, recipe: &Recipe) -> Result<Vec<Planned<'_>>, RecipeError> {
    if recipe.steps.len() > STEPS_MAX {
        return Err(RecipeError::TooManySteps(recipe.steps.len()));
    }
    let (mut key, mut may_be_cached) = (base, !recipe.force);
    let mut steps = Vec::with_capacity(recipe.steps.len());
    for (number, step) in (1..).zip(&recipe.steps) {
        if texts(&step.action).any(|text| text.len() > TEXT_BYTES_MAX || text.contains('\0')) {
            return Err(RecipeError::Text(number));
        }
        key = key.then(&step.action);
        // What is done anew may come out differently, and so may everything that follows it.
        may_be_cached &= !step.force;
        steps.push(Planned {
            number,
            action: &step.action,
            key,
            may_be_cached,
        });
    }
    Ok(steps)
}

fn texts(action: &Action) -> Box<dyn Iterator<Item = &str> + '_> {
    match action {
        Action::Copy {
            source,
            destination,
            owner,
            files,
            ..
        } => Box::new(
            [source, destination, files]
                .into_iter()
                .chain(owner)
                .map(String::as_str),
        ),
        Action::Run { command, user } => Box::new([command].into_iter().chain(user).map(String::as_str)),
        Action::Env(pairs) => Box::new(
            pairs
                .iter()
                .flat_map(|(name, value)| [name.as_str(), value.as_str()]),
        ),
        Action::Workdir(text) | Action::User { name: text, .. } => Box::new(std::iter::once(text.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Base, Step};
    use super::*;

    fn run(command: &str, force: bool) -> Step {
        Step {
            action: Action::Run {
                command: command.to_owned(),
                user: None,
            },
            force,
        }
    }

    fn recipe(steps: Vec<Step>) -> Recipe {
        Recipe {
            from: Base::Template("base".parse().unwrap()),
            steps,
            start: None,
            ready: None,
            force: false,
        }
    }

    #[test]
    fn a_key_tells_everything_that_was_done_and_in_which_order() {
        let base = Key::of_image("sha256:00");
        let keys = |steps| -> Vec<Key> {
            plan(base, &recipe(steps))
                .unwrap()
                .iter()
                .map(|step| step.key)
                .collect()
        };
        let (ab, ba) = (
            keys(vec![run("a", false), run("b", false)]),
            keys(vec![run("b", false), run("a", false)]),
        );
        assert_ne!(ab[1], ba[1]);
        assert_ne!(ab[0], ba[0]);
        assert_eq!(
            ab[0],
            keys(vec![run("a", true)])[0],
            "forcing is no part of what is done"
        );
        assert_ne!(
            ab[0],
            plan(Key::of_image("sha256:01"), &recipe(vec![run("a", false)])).unwrap()[0].key
        );
        assert_ne!(Key::of_image("x"), Key::of_build(BuildId::random()));
    }

    #[test]
    fn what_is_forced_forces_all_that_follows() {
        let steps = recipe(vec![run("a", false), run("b", true), run("c", false)]);
        let cached: Vec<bool> = plan(Key::of_image("x"), &steps)
            .unwrap()
            .iter()
            .map(|step| step.may_be_cached)
            .collect();
        assert_eq!(cached, [true, false, false]);
        let all = Recipe { force: true, ..steps };
        assert!(
            plan(Key::of_image("x"), &all)
                .unwrap()
                .iter()
                .all(|step| !step.may_be_cached)
        );
    }

    #[test]
    fn a_recipe_has_bounds() {
        let many = recipe(vec![run("a", false); STEPS_MAX + 1]);
        assert_eq!(
            plan(Key::of_image("x"), &many),
            Err(RecipeError::TooManySteps(STEPS_MAX + 1))
        );
        let long = recipe(vec![run("a", false), run(&"a".repeat(TEXT_BYTES_MAX + 1), false)]);
        assert_eq!(plan(Key::of_image("x"), &long), Err(RecipeError::Text(2)));
        assert_eq!(
            plan(Key::of_image("x"), &recipe(vec![run("a\0", false)])),
            Err(RecipeError::Text(1))
        );
    }

    #[test]
    fn a_variable_is_set_once() {
        let mut context = Context::default();
        context.set("A", "1".to_owned());
        context.set("B", "2".to_owned());
        context.set("A", "3".to_owned());
        assert_eq!(
            context.env,
            [("A".to_owned(), "3".to_owned()), ("B".to_owned(), "2".to_owned())]
        );
    }
}
