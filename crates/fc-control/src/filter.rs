//! Whether a Firecracker's filter of system calls filters anything.
//!
//! Firecracker has one built into it, made from a list that there is for its musl targets alone. Built for a GNU target, or without
//! optimisation, it gets an empty one instead, which lets everything pass; `/proc/<pid>/status` says `Seccomp: 2` all the same, and a
//! GNU build that is linked statically looks like any other. So the filter that is in force is read out of the kernel, from the
//! thread that serves the API, which has it from its beginning, and it is tried: what would be asked for in a break-out must not
//! pass. All threads' filters are of the same list.
use std::fmt;
use std::io;

use linux::ptrace::Instruction;

/// What no thread of Firecracker's needs, and whoever has taken one over wants first.
const FORBIDDEN: [(&str, libc::c_long); 12] = [
    ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat),
    ("ptrace", libc::SYS_ptrace),
    ("mount", libc::SYS_mount),
    ("setns", libc::SYS_setns),
    ("unshare", libc::SYS_unshare),
    ("bpf", libc::SYS_bpf),
    ("init_module", libc::SYS_init_module),
    ("kexec_load", libc::SYS_kexec_load),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("keyctl", libc::SYS_keyctl),
];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_USER_NOTIFY: u32 = 0x7fc0_0000;
/// The high half of what a filter answers is what is done, the low one is data.
const RET_ACTION: u32 = 0xffff_0000;

/// Why a filter is no protection.
#[derive(Debug, thiserror::Error)]
pub enum Toothless {
    /// There is none.
    #[error("it has no filter of system calls in force: it was started, or built, without one")]
    None,
    /// It lets pass what it must not.
    #[error(
        "its filter of system calls lets {} pass, as the empty one does that GNU and debug builds have: use a build for musl, \
         as the releases are",
        calls.join(", ")
    )]
    LetsPass {
        /// What.
        calls: Vec<&'static str>,
    },
    /// It cannot be found out.
    #[error("whether its filter of system calls filters anything cannot be told: {why}")]
    Untold {
        /// Why not.
        why: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Looks at the filters that a thread has in force. Blocks.
pub(crate) fn look_at(thread: u32) -> Result<(), Toothless> {
    let filters = linux::ptrace::filters_of(thread).map_err(|source| Toothless::Untold {
        why: match source.raw_os_error() {
            Some(libc::EIO) => "this kernel is without CONFIG_CHECKPOINT_RESTORE",
            Some(libc::EPERM | libc::EACCES) => {
                "it takes CAP_SYS_ADMIN and CAP_SYS_PTRACE, and a daemon that has no filter itself"
            }
            _ => "the kernel does not show it",
        }
        .to_owned(),
        source,
    })?;
    judge(&filters)
}

fn judge(filters: &[Vec<Instruction>]) -> Result<(), Toothless> {
    if filters.is_empty() {
        return Err(Toothless::None);
    }
    let mut calls = Vec::new();
    for (name, number) in FORBIDDEN {
        let number = u32::try_from(number).expect("numbers of system calls are small");
        // What any of them refuses is refused.
        let mut passes = true;
        for filter in filters {
            passes &= answer(filter, number)
                .map(lets_pass)
                .map_err(|source| Toothless::Untold {
                    why: "it has an instruction that is not known here".to_owned(),
                    source,
                })?;
        }
        if passes {
            calls.push(name);
        }
    }
    if calls.is_empty() {
        Ok(())
    } else {
        Err(Toothless::LetsPass { calls })
    }
}

/// Whether a call is carried out, or somebody else may have it carried out.
fn lets_pass(answer: u32) -> bool {
    matches!(
        answer & RET_ACTION,
        RET_ALLOW | RET_LOG | RET_TRACE | RET_USER_NOTIFY
    )
}

/// What a filter answers to a call all of whose arguments are 0.
fn answer(filter: &[Instruction], number: u32) -> io::Result<u32> {
    let unknown =
        |instruction: &dyn fmt::Debug| io::Error::new(io::ErrorKind::InvalidData, format!("{instruction:?}"));
    let (mut at, mut accumulator) = (0, 0_u32);
    // Jumps lead onwards alone: this ends.
    while let Some(instruction) = filter.get(at) {
        let k = instruction.k;
        at += 1;
        let mut jump = |holds: bool| {
            at += usize::from(if holds { instruction.jt } else { instruction.jf });
        };
        match instruction.code {
            // ld [k]
            0x20 => {
                accumulator = match k {
                    0 => number,
                    4 => ARCHITECTURE,
                    _ => 0,
                }
            }
            // ja, jeq, jgt, jge, jset
            0x05 => at += usize::try_from(k).map_err(io::Error::other)?,
            0x15 => jump(accumulator == k),
            0x25 => jump(accumulator > k),
            0x35 => jump(accumulator >= k),
            0x45 => jump(accumulator & k != 0),
            // and
            0x54 => accumulator &= k,
            // ret k, ret a
            0x06 => return Ok(k),
            0x16 => return Ok(accumulator),
            _ => return Err(unknown(instruction)),
        }
    }
    Err(unknown(&"it has no end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RET_KILL: u32 = 0x8000_0000;
    const RET_TRAP: u32 = 0x0003_0000;
    const RET_ERRNO_1: u32 = 0x0005_0001;

    fn i(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    /// Answers `then` to the calls of these numbers, and `otherwise` to the rest.
    fn list(numbers: &[libc::c_long], then: u32, otherwise: u32) -> Vec<Instruction> {
        let mut filter = vec![
            i(0x20, 0, 0, 4),
            i(0x15, 1, 0, ARCHITECTURE),
            i(0x06, 0, 0, RET_KILL),
            i(0x20, 0, 0, 0),
        ];
        for number in numbers {
            filter.push(i(0x15, 0, 1, u32::try_from(*number).unwrap()));
            filter.push(i(0x06, 0, 0, then));
        }
        filter.push(i(0x06, 0, 0, otherwise));
        filter
    }

    fn told(filters: &[Vec<Instruction>]) -> Option<String> {
        judge(filters).err().map(|error| error.to_string())
    }

    #[test]
    fn a_list_of_what_may_be_asked_is_a_filter() {
        for otherwise in [RET_KILL, RET_TRAP, RET_ERRNO_1] {
            let list = list(&[libc::SYS_read, libc::SYS_write], RET_ALLOW, otherwise);
            assert_eq!(told(&[list]), None);
        }
    }

    #[test]
    fn one_that_lets_everything_pass_is_none() {
        for allow in [RET_ALLOW, RET_LOG, RET_TRACE | 7, RET_USER_NOTIFY] {
            let told = told(&[list(&[], RET_KILL, allow)]).unwrap();
            assert!(told.contains("execve, ") && told.contains("musl"), "{told}");
        }
        // In one instruction, as it is embedded.
        assert!(told(&[vec![i(0x06, 0, 0, RET_ALLOW)]]).is_some());
        assert!(told(&[]).unwrap().contains("no filter"));
    }

    #[test]
    fn what_one_lets_pass_another_may_refuse() {
        let open = list(&[], RET_KILL, RET_ALLOW);
        let shut = list(&[libc::SYS_read], RET_ALLOW, RET_KILL);
        assert_eq!(told(&[open.clone(), shut]), None);
        let leaky = list(&[libc::SYS_mount], RET_ALLOW, RET_KILL);
        assert!(told(&[open, leaky]).unwrap().contains("lets mount pass"));
    }

    #[test]
    fn every_jump_leads_where_the_kernel_goes() {
        let number = u32::try_from(libc::SYS_execve).unwrap();
        let yes_or_no = |code, k| {
            let filter = [
                i(0x20, 0, 0, 0),
                i(code, 0, 1, k),
                i(0x06, 0, 0, 1),
                i(0x06, 0, 0, 2),
            ];
            answer(&filter, number).unwrap() == 1
        };
        assert!(yes_or_no(0x15, number) && !yes_or_no(0x15, number + 1));
        assert!(yes_or_no(0x25, number - 1) && !yes_or_no(0x25, number));
        assert!(yes_or_no(0x35, number) && !yes_or_no(0x35, number + 1));
        assert!(yes_or_no(0x45, number) && !yes_or_no(0x45, 0));
        let masked = [i(0x20, 0, 0, 0), i(0x54, 0, 0, 1), i(0x16, 0, 0, 0)];
        assert_eq!(answer(&masked, number).unwrap(), number & 1);
        let far = [i(0x05, 0, 0, 1), i(0x06, 0, 0, 1), i(0x06, 0, 0, 2)];
        assert_eq!(answer(&far, number).unwrap(), 2);
    }

    #[test]
    fn what_is_not_understood_is_no_protection() {
        let odd = vec![i(0x87, 0, 0, 0), i(0x06, 0, 0, RET_KILL)];
        assert!(told(&[odd]).unwrap().contains("cannot be told"));
        assert!(
            told(&[vec![i(0x20, 0, 0, 0)]])
                .unwrap()
                .contains("cannot be told")
        );
        assert!(
            told(&[vec![i(0x05, 0, 0, u32::MAX)]])
                .unwrap()
                .contains("cannot be told")
        );
    }
}
