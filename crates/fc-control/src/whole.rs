//! Memory that is a difference, made whole when there is time, or when somebody wants it back.
use std::io;
use std::sync::Arc;

use microvm::work::blocking;
use model::SandboxId;
use ports::RuntimeError;
use ports::step::At;
use uuid::Uuid;

use crate::house::House;
use crate::memory::{self, Pages};
use crate::record::Kept;

/// Makes the memory of a kept sandbox whole, if it is a difference; says whether it was.
pub(crate) async fn kept(house: &Arc<House>, sandbox: SandboxId) -> Result<bool, RuntimeError> {
    let _one = house.vmm.whole_turn.lock().await;
    let house = Arc::clone(house);
    blocking(move || {
        let known = &house.vmm.known;
        let (memory, _pins) = {
            let _turn = house.turn();
            let kept = house.book.kept.read(&sandbox)?;
            let Some(memory) = kept.and_then(|kept| kept.memory) else {
                return Ok(false);
            };
            let Pages::Diff { base, .. } = memory.pages else {
                return Ok(false);
            };
            let pins = [memory.id, base].map(|id| house.states.pin(id));
            (memory, pins)
        };
        if let Some(why) = memory::is_damaged(known, &house.states, &memory)? {
            // Whoever wants it back is told so.
            return Err(io::Error::other(why)).at(format!("looking at the memory of sandbox {sandbox}"));
        }
        let into = Uuid::new_v4();
        let _pin = house.states.pin(into);
        let Some(whole) = memory::rebase(known, &house.states, &memory, into)? else {
            return Ok(false);
        };
        failpoint::reach("fc-control/memory-made-whole");
        let _turn = house.turn();
        match house.book.kept.read(&sandbox)? {
            Some(kept) if kept.memory.as_ref() == Some(&memory) => {
                let memory = Some(whole);
                house.book.kept.write(&sandbox, &Kept { memory, ..kept })?;
                failpoint::reach("fc-control/whole-memory-kept");
            }
            // It was started, discarded or written down again meanwhile.
            _ => {}
        }
        Ok(true)
    })
    .await
}

/// The same, when there is time.
pub(crate) fn kept_soon(house: &Arc<House>, sandbox: SandboxId) {
    let own = Arc::clone(house);
    house.work.spawn(async move {
        match kept(&own, sandbox).await {
            Ok(true) => own.sweep_soon(),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "memory that is a difference could not be made whole");
                own.sweep_soon();
            }
        }
    });
}
