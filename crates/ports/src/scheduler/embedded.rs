use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use model::MiB;
use tokio::sync::watch;

use super::{
    Ask, Block, BlockId, BlockState, Blocks, Filter, Page, Place, ResourceScheduler, ScheduleError, Size,
};
use crate::discovery::Known;

/// Blocks that are over and still told of.
const OVER_MAX: usize = 1_000;

/// The machine itself as a scheduler: a block runs at once, or there is no room for it.
pub struct Embedded {
    total: Size,
    machine: String,
    zone: Option<String>,
    state: Mutex<State>,
    view: watch::Sender<Arc<Blocks>>,
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<BlockId, Block>,
    next: u64,
}

impl State {
    fn free(&self, total: Size) -> Size {
        let used = self.blocks.values().filter(|block| !block.state.is_over());
        used.fold(total, |free, block| Size {
            cpu: free.cpu.saturating_sub(block.size.cpu),
            memory: MiB(free.memory.0.saturating_sub(block.size.memory.0)),
        })
    }

    fn forget(&mut self) {
        let over = self.blocks.iter().filter(|(_, block)| block.state.is_over());
        let over: Vec<BlockId> = over.map(|(id, _)| id.clone()).collect();
        // Ids grow: the first are the oldest.
        for id in over.iter().take(over.len().saturating_sub(OVER_MAX)) {
            self.blocks.remove(id);
        }
    }
}

impl Embedded {
    /// A machine of this name, in this zone, with so much for blocks in sum.
    #[must_use]
    pub fn new(machine: impl Into<String>, zone: Option<String>, total: Size) -> Self {
        let view = Blocks {
            known: Known::Current,
            ..Blocks::default()
        };
        Self {
            total,
            machine: machine.into(),
            zone,
            state: Mutex::default(),
            view: watch::channel(Arc::new(view)).0,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds the state")
    }

    fn tell(&self, state: &State) {
        self.view.send_replace(Arc::new(Blocks {
            all: state.blocks.clone(),
            known: Known::Current,
        }));
    }
}

#[async_trait]
impl ResourceScheduler for Embedded {
    async fn schedule(&self, ask: Ask) -> Result<Block, ScheduleError> {
        ask.check()?;
        let mut state = self.state();
        if let Some(block) = state.blocks.values().find(|block| block.token == ask.token) {
            return Ok(block.clone());
        }
        let free = state.free(self.total);
        let is_here = ask.zone.is_none() || ask.zone == self.zone;
        if !is_here || ask.size.cpu > free.cpu || ask.size.memory > free.memory {
            return Err(ScheduleError::NoRoom {
                asked: ask.size,
                free: if is_here { free } else { Size::default() },
                total: if is_here { self.total } else { Size::default() },
            });
        }
        let id = BlockId(format!("block-{:012}", state.next));
        state.next += 1;
        let place = Place {
            allocation: id.0.clone(),
            machine: self.machine.clone(),
        };
        let block = Block {
            id: id.clone(),
            token: ask.token,
            size: ask.size,
            zone: ask.zone,
            purpose: ask.purpose,
            state: BlockState::Running,
            place: Some(place),
            reason: String::new(),
        };
        state.blocks.insert(id, block.clone());
        self.tell(&state);
        Ok(block)
    }

    async fn get(&self, id: &BlockId) -> Result<Option<Block>, ScheduleError> {
        Ok(self.state().blocks.get(id).cloned())
    }

    async fn stop(&self, id: &BlockId) -> Result<(), ScheduleError> {
        let mut state = self.state();
        if let Some(block) = state.blocks.get_mut(id)
            && !block.state.is_over()
        {
            block.state = BlockState::Stopped;
            "given back".clone_into(&mut block.reason);
            state.forget();
            self.tell(&state);
        }
        Ok(())
    }

    async fn list(
        &self,
        filter: &Filter,
        after: Option<&BlockId>,
        limit: usize,
    ) -> Result<Page, ScheduleError> {
        Ok(Page::cut(&self.state().blocks, filter, after, limit))
    }

    fn watch(&self) -> watch::Receiver<Arc<Blocks>> {
        self.view.subscribe()
    }
}
