//! What is free on all nodes, laid out so that a processor compares several at a time. A fleet that is full is seen through
//! without looking at its nodes one by one.
use std::ops::Range;

use super::refusals::{Filtered, Reason};
use super::view::Amounts;

/// Nodes that are compared together. One of them with room has all of them looked at.
pub(super) const TOGETHER: usize = 64;

/// Stands for a node that is not to be asked, whatever is free on it.
const CLOSED: i32 = i32::MIN;
/// What is promised beyond what is there is not told apart below this.
const LEAST: i32 = i32::MIN + 1;

/// For each slot: vCPUs, MiB of memory, MiB of disk.
#[derive(Debug, Default)]
pub(super) struct Lanes([Vec<i32>; 3]);

impl Lanes {
    /// Sets what is free; `None` for a slot that is to be looked at to know why it is none.
    pub(super) fn set(&mut self, slot: usize, free: Option<Amounts>) {
        for (at, lane) in self.0.iter_mut().enumerate() {
            if lane.len() <= slot {
                lane.resize(slot + 1, CLOSED);
            }
            lane[slot] = free.map_or(CLOSED, |free| free[at].max(LEAST));
        }
    }

    /// Whether none of these has room for `need`, and nothing else is the reason: then they are counted.
    pub(super) fn are_full(&self, slots: Range<usize>, need: Amounts, filtered: &mut Filtered) -> bool {
        let [cpu, memory, disk] = &self.0;
        let (cpu, memory, disk) = (&cpu[slots.clone()], &memory[slots.clone()], &disk[slots]);
        // By the order in which the filters tell their reasons.
        let (mut of_memory, mut of_cpu, mut of_disk, mut others) = (0_u32, 0_u32, 0_u32, 0_u32);
        for ((cpu, memory), disk) in cpu.iter().zip(memory).zip(disk) {
            let (short, scarce, small) = (*memory < need[1], *cpu < need[0], *disk < need[2]);
            of_memory += u32::from(short);
            of_cpu += u32::from(!short & scarce);
            of_disk += u32::from(!short & !scarce & small);
            others += u32::from((*memory == CLOSED) | (!short & !scarce & !small));
        }
        if others > 0 {
            return false;
        }
        filtered.add(Reason::Memory, of_memory);
        filtered.add(Reason::Cpu, of_cpu);
        filtered.add(Reason::Disk, of_disk);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_are_counted_by_reason_and_others_are_to_be_looked_at() {
        let mut lanes = Lanes::default();
        let free = [
            [0, 9, 9],
            [9, -5, 9],
            [9, 9, 0],
            [0, 0, 0],
            [i32::MIN, i32::MIN, 9],
        ];
        for (slot, free) in free.into_iter().enumerate() {
            lanes.set(slot, Some(free));
        }
        let check = |lanes: &Lanes, need, expected: Option<[u32; 3]>| {
            let mut filtered = Filtered::default();
            let full = lanes.are_full(0..5, need, &mut filtered);
            let counts = [Reason::Cpu, Reason::Memory, Reason::Disk].map(|reason| filtered.of(reason));
            assert_eq!(full.then_some(counts), expected);
        };
        check(&lanes, [1, 1, 1], Some([1, 3, 1]));
        check(&lanes, [1, 1, 0], None);
        lanes.set(3, None);
        check(&lanes, [1, 1, 1], None);
    }
}
