//! Sandboxes that are allocations of their own.
use std::sync::Arc;
use std::time::Duration;

use model::{Kind, MiB, SandboxId};
use orchestrator::Capacity;
use orchestrator::placement::{Overcommit, Ratio};
use ports::node::Own;
use ports::scheduler::{Block, BlockState, Embedded, Purpose, Size};
use ports::{CreateSandbox, ManagerError, ResourceScheduler, SandboxManager};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::world::{World, eventually, request};

const LARGE: Size = Size {
    cpu: 100,
    memory: MiB(100_000),
};
/// Nothing is asked for ahead of need.
const NOTHING: Capacity = Capacity {
    size: Size {
        cpu: 1,
        memory: MiB(1),
    },
    spare: 0,
    most: 0,
    overcommit: Overcommit {
        cpu: Ratio::ONE,
        memory: Ratio::ONE,
        disk: Ratio::UNBOUNDED,
    },
};

struct Scene {
    world: World,
    scheduler: Arc<Embedded>,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
    server: JoinHandle<()>,
}

impl Scene {
    async fn set(total: Size) -> Self {
        let mut world = World::in_memory().await;
        world.configured(|config| config.shared = true);
        let scheduler = Arc::new(Embedded::new("machine", None, total));
        world.scheduled(scheduler.clone());
        world.orchestrator.settle_now().await.unwrap();
        let stop = CancellationToken::new();
        let keeper = Arc::clone(&world.orchestrator).keep_capacity(scheduler.clone(), NOTHING, stop.clone());
        let server = Arc::clone(&world.orchestrator).serve(stop.clone());
        Self {
            server: tokio::spawn(server),
            keeper: tokio::spawn(keeper),
            world,
            scheduler,
            stop,
        }
    }

    /// The one block that there is.
    fn block(&self) -> Option<Block> {
        let blocks = self.scheduler.watch().borrow().all.clone();
        assert!(blocks.len() <= 1, "{blocks:?}");
        blocks.into_values().next()
    }

    fn state(&self) -> Option<BlockState> {
        self.block().map(|block| block.state)
    }

    async fn asked(&self) -> (SandboxId, Size) {
        eventually(async || self.block().is_some()).await;
        let block = self.block().unwrap();
        let Purpose::Sandbox(id) = block.purpose else {
            panic!("{block:?}")
        };
        (id, block.size)
    }

    /// A sandbox that is alone in its block.
    async fn created(&self) -> SandboxId {
        let (orchestrator, team) = (self.world.orchestrator.clone(), self.world.team.id);
        let creating = tokio::spawn(async move { orchestrator.create(team, alone()).await });
        let (sandbox, size) = self.asked().await;
        assert!(
            !self.world.node.held().contains_key(&sandbox),
            "no node has said that its block is there"
        );
        self.world.node.gives(Own { sandbox, size });
        let made = creating.await.unwrap().unwrap().sandbox;
        assert_eq!(
            (made.id, made.resources.cpu, made.resources.memory),
            (sandbox, size.cpu, size.memory)
        );
        sandbox
    }

    async fn close(self) {
        self.stop.cancel();
        self.keeper.await.unwrap();
        self.server.await.unwrap();
    }
}

fn alone() -> CreateSandbox {
    CreateSandbox {
        own_allocation: true,
        ..request()
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_is_made_in_a_block_of_its_size_which_is_given_back_when_it_is_over() {
    let scene = Scene::set(LARGE).await;
    let id = scene.created().await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(
        scene.state(),
        Some(BlockState::Running),
        "it is there as long as the sandbox"
    );
    scene.world.pause(id).await.unwrap();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(
        scene.state(),
        Some(BlockState::Running),
        "also while that is paused"
    );
    scene.world.kill(id).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    assert!(scene.state().is_none_or(BlockState::is_over));
    scene.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_taken_back_takes_its_sandbox_along() {
    let scene = Scene::set(LARGE).await;
    let id = scene.created().await;
    // It was seen to run.
    sleep(Duration::from_secs(20)).await;
    scene.scheduler.stop(&scene.block().unwrap().id).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    assert!(!scene.world.node.held().contains_key(&id));
    scene.world.settle().await;
    scene.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_to_nothing_gives_its_block_back() {
    let scene = Scene::set(LARGE).await;
    let refused = scene.world.try_create(alone()).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
    assert!(refused.to_string().contains("no node has said"), "{refused}");
    assert!(scene.state().is_none_or(BlockState::is_over));
    // Whoever asked may be dead: nobody has stored the sandbox, and after a while nobody will.
    let ask = ports::scheduler::Ask {
        token: "alone-of-the-dead".to_owned(),
        size: NOTHING.size,
        zone: None,
        purpose: Purpose::Sandbox(SandboxId::random()),
    };
    let id = scene.scheduler.schedule(ask).await.unwrap().id;
    let state = async || scene.scheduler.get(&id).await.unwrap().map(|block| block.state);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(state().await, Some(BlockState::Running));
    sleep(Duration::from_secs(120)).await;
    assert!(state().await.is_none_or(BlockState::is_over));
    assert!(scene.world.store.live().await.unwrap().is_empty());
    scene.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_refused_by_name() {
    let world = World::in_memory().await;
    let refused = world.try_create(alone()).await.unwrap_err();
    assert!(
        matches!(&refused, ManagerError::Invalid(why) if why.contains("[cluster.nomad]")),
        "{refused}"
    );

    let scene = Scene::set(Size {
        cpu: 1,
        memory: MiB(1),
    })
    .await;
    let refused = scene.world.try_create(alone()).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
    assert!(scene.block().is_none());
    scene.close().await;
}
