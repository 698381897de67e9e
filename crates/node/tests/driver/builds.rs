//! Builds of templates, and what is left of those that fail.
mod ends;
mod failures;
mod finalize;
mod steps;

use std::io;

use bytes::Bytes;
use model::recipe::{Action, Base, Context, Recipe};
use model::{BuildId, StartCommand};
use ports::builds::BuildBase;

use crate::world::{Act, Bench, Content, SOON, run, step};

const HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn ends(code: i32) -> Act {
    Act {
        exit: Some(code),
        ..Act::default()
    }
}

/// A tar that holds nothing.
const A_TAR: &[u8] = &[0; 1024];

/// One step of each kind.
fn one_of_each() -> Vec<model::recipe::Step> {
    vec![
        step(Action::Env(vec![("HERE".to_owned(), "$HOME/x".to_owned())])),
        step(Action::Workdir("app".to_owned())),
        step(Action::Copy {
            source: "src/*".to_owned(),
            destination: "to".to_owned(),
            owner: None,
            mode: Some(0o755),
            files: HASH.to_owned(),
        }),
        step(Action::User {
            name: "other".to_owned(),
            sudo: false,
        }),
        run("make"),
    ]
}

impl Bench {
    fn with_upload() -> Self {
        let bench = Bench::new();
        bench.upload(Ok(Bytes::from_static(A_TAR)));
        bench
    }

    fn upload(&self, upload: io::Result<Bytes>) {
        self.shelf.uploads.lock().unwrap().insert(HASH.to_owned(), upload);
    }

    fn disk(&self, build: BuildId) -> Vec<String> {
        self.world.runtime.content(build).expect("it is there").disk
    }

    /// Nothing of a build is left but results of steps that are kept.
    async fn assert_nothing_of(&self, build: BuildId) {
        tokio::time::sleep(SOON).await;
        assert_eq!(self.world.runtime.machine_count(), 0);
        assert_eq!(self.world.runtime.content(build), None);
        assert_eq!(self.loose(), []);
    }
}

fn serving(bench: &Bench, ready: Option<&str>) -> Recipe {
    Recipe {
        start: Some("serve".to_owned()),
        ready: ready.map(str::to_owned),
        ..bench.recipe(vec![step(Action::Workdir("/srv".to_owned())), run("install")])
    }
}

fn serve() -> StartCommand {
    StartCommand {
        command: "serve".to_owned(),
        user: "user".to_owned(),
        cwd: Some("/srv".to_owned()),
    }
}

fn on_template(bench: &Bench, steps: Vec<model::recipe::Step>) -> (ports::builds::BuildOrder, BuildId) {
    let base = bench.world.runtime.add_build(Content {
        disk: vec!["made before".to_owned()],
        memory: Some(vec!["serve".to_owned()]),
        ..Content::default()
    });
    let recipe = Recipe {
        from: Base::Template("base".parse().unwrap()),
        ..bench.recipe(steps)
    };
    let order = ports::builds::BuildOrder {
        base: Some(BuildBase {
            build: base,
            context: Context {
                user: "me".to_owned(),
                ..Context::default()
            },
            start: None,
        }),
        ..bench.order(recipe)
    };
    (order, base)
}
