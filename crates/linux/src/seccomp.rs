//! System call filters ([seccomp(2)](https://man7.org/linux/man-pages/man2/seccomp.2.html)).
//!
//! A filter is a table from system call number to [`Verdict`], compiled to a binary tree: the kernel runs a filter once
//! for every number when it is loaded, so a linear one of 400 instructions costs a millisecond and a tree 0.03.
use std::collections::BTreeMap;
use std::io;

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried out.
    Allow,
    /// It fails with this error number.
    Errno(u16),
    /// It is carried out if the argument's low 32 bits share no bit with the mask, else it fails with `EPERM`.
    AllowUnlessBits(usize, u32),
    /// It is carried out if the argument's low 32 bits are one of these, else it fails with `EPERM`.
    AllowIfOneOf(usize, &'static [u32]),
    /// It is carried out unless the argument's low 32 bits are one of these: then it fails with `EPERM`.
    AllowUnlessOneOf(usize, &'static [u32]),
    /// It is carried out if one argument is among the choices, else it fails with `EPERM`, and another one among those
    /// of that choice, else it fails with `otherwise`. The low 32 bits of each are looked at.
    AllowIfChosen {
        /// Which argument chooses.
        argument: usize,
        /// Which one must be among what the choice allows.
        and: usize,
        /// What may be chosen, and what it allows.
        choices: &'static [(u32, &'static [u32])],
        /// The error number where the second is not allowed.
        otherwise: u16,
    },
}

/// A compiled filter.
#[derive(Debug, Clone)]
pub struct Filter(Vec<libc::sock_filter>);

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xC000_00B7;
/// Numbers from here on are the x32 ABI's (x86 only; no other architecture has so many).
const X32: u32 = 0x4000_0000;

const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

const LD_ABS: u16 = 0x20;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const JA: u16 = 0x05;
const RET: u16 = 0x06;

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;

impl Filter {
    /// Compiles a table. What is not in it gets `otherwise`; calls of a foreign architecture kill the process.
    #[must_use]
    pub fn compile(table: &BTreeMap<u32, Verdict>, otherwise: Verdict) -> Self {
        // Stretches of numbers with one verdict: (first number, verdict).
        let mut stretches = vec![(0, otherwise)];
        let mut push = |first: u32, verdict: Verdict| {
            let last = stretches.last_mut().expect("there is a first stretch");
            if last.0 == first {
                last.1 = verdict;
            } else if last.1 != verdict {
                stretches.push((first, verdict));
            }
        };
        for (&number, &verdict) in table {
            push(number, verdict);
            if !table.contains_key(&(number + 1)) {
                push(number + 1, otherwise);
            }
        }
        push(
            X32,
            Verdict::Errno(libc::ENOSYS.unsigned_abs().try_into().unwrap_or(u16::MAX)),
        );
        let mut code = vec![
            load(OFFSET_ARCH),
            jump(JEQ, AUDIT_ARCH, 1, 0),
            ret(RET_KILL_PROCESS),
            load(OFFSET_NR),
        ];
        code.extend(tree(&stretches));
        Self(code)
    }

    /// Puts the filter in force for this thread, its children, and whatever they execute. It needs `CAP_SYS_ADMIN` in
    /// the thread's user namespace, as setuid programs are to keep their meaning.
    ///
    /// # Errors
    /// What seccomp(2) answered.
    pub fn load(&self) -> io::Result<()> {
        let len = u16::try_from(self.0.len()).map_err(io::Error::other)?;
        let program = libc::sock_fprog {
            len,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: `program` points to `len` instructions that outlive the call; the kernel copies and checks them.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        };
        if rc < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// How many instructions it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn tree(stretches: &[(u32, Verdict)]) -> Vec<libc::sock_filter> {
    if let [(_, verdict)] = stretches {
        return leaf(*verdict);
    }
    let (low, high) = stretches.split_at(stretches.len() / 2);
    let low_code = tree(low);
    let mut code = match u8::try_from(low_code.len()) {
        Ok(skip) => vec![jump(JGE, high[0].0, skip, 0)],
        Err(_) => {
            let skip = u32::try_from(low_code.len()).unwrap_or(u32::MAX);
            vec![
                jump(JGE, high[0].0, 0, 1),
                libc::sock_filter {
                    code: JA,
                    jt: 0,
                    jf: 0,
                    k: skip,
                },
            ]
        }
    };
    code.extend(low_code);
    code.extend(tree(high));
    code
}

fn leaf(verdict: Verdict) -> Vec<libc::sock_filter> {
    let eperm = ret(RET_ERRNO | libc::EPERM.unsigned_abs());
    match verdict {
        Verdict::Allow => vec![ret(RET_ALLOW)],
        Verdict::Errno(errno) => vec![ret(RET_ERRNO | u32::from(errno))],
        Verdict::AllowUnlessBits(argument, mask) => {
            vec![
                load_argument(argument),
                jump(JSET, mask, 0, 1),
                eperm,
                ret(RET_ALLOW),
            ]
        }
        Verdict::AllowIfOneOf(argument, values) => one_of(argument, values, ret(RET_ALLOW), eperm),
        Verdict::AllowUnlessOneOf(argument, values) => one_of(argument, values, eperm, ret(RET_ALLOW)),
        Verdict::AllowIfChosen {
            argument,
            and,
            choices,
            otherwise,
        } => {
            let mut code = vec![load_argument(argument)];
            for &(choice, values) in choices {
                let otherwise = ret(RET_ERRNO | u32::from(otherwise));
                let chosen = one_of(and, values, ret(RET_ALLOW), otherwise);
                let skip = u8::try_from(chosen.len()).expect("a choice allows a handful of values");
                code.push(jump(JEQ, choice, 0, skip));
                code.extend(chosen);
            }
            code.push(eperm);
            code
        }
    }
}

fn one_of(
    argument: usize,
    values: &[u32],
    then: libc::sock_filter,
    otherwise: libc::sock_filter,
) -> Vec<libc::sock_filter> {
    let mut code = vec![load_argument(argument)];
    for (i, &value) in values.iter().enumerate() {
        // Over the comparisons that are left, and over `otherwise`.
        let skip = u8::try_from(values.len() - i).unwrap_or(u8::MAX);
        code.push(jump(JEQ, value, skip, 0));
    }
    code.extend([otherwise, then]);
    code
}

fn load_argument(argument: usize) -> libc::sock_filter {
    // Arguments are 64 bits each; this machine's are little-endian, as all that the filter knows are.
    load(OFFSET_ARGS + 8 * u32::try_from(argument).unwrap_or(0))
}

const fn load(offset: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: LD_ABS,
        jt: 0,
        jf: 0,
        k: offset,
    }
}
const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}
const fn ret(k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: RET,
        jt: 0,
        jf: 0,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer: a small interpreter of the instructions used here.
    fn run(filter: &Filter, nr: u32, args: [u32; 6]) -> u32 {
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let i = filter.0[at];
            at += 1;
            let jump = |taken: bool| usize::from(if taken { i.jt } else { i.jf });
            match i.code {
                LD_ABS if i.k == OFFSET_NR => a = nr,
                LD_ABS if i.k == OFFSET_ARCH => a = AUDIT_ARCH,
                LD_ABS => a = args[(i.k - OFFSET_ARGS) as usize / 8],
                JEQ => at += jump(a == i.k),
                JGE => at += jump(a >= i.k),
                JSET => at += jump(a & i.k != 0),
                JA => at += i.k as usize,
                RET => return i.k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    const EPERM: u32 = RET_ERRNO | 1;

    #[test]
    fn every_number_gets_its_verdict() {
        let mut table = BTreeMap::new();
        for number in (0..450).filter(|n| n % 3 != 1) {
            table.insert(
                number,
                if number % 5 == 0 {
                    Verdict::Errno(1)
                } else {
                    Verdict::Allow
                },
            );
        }
        let filter = Filter::compile(&table, Verdict::Errno(38));
        for number in 0..1000 {
            let expected = match table.get(&number) {
                Some(Verdict::Allow) => RET_ALLOW,
                Some(_) => EPERM,
                None => RET_ERRNO | 38,
            };
            assert_eq!(run(&filter, number, [0; 6]), expected, "{number}");
        }
        assert_eq!(run(&filter, X32 + 2, [0; 6]), RET_ERRNO | 38);
    }

    #[test]
    fn arguments_are_looked_at() {
        let table = BTreeMap::from([
            (10, Verdict::AllowUnlessBits(0, 0xF0)),
            (11, Verdict::AllowIfOneOf(1, &[1, 2, 16])),
            (12, Verdict::AllowUnlessOneOf(2, &[7, 9])),
            (
                13,
                Verdict::AllowIfChosen {
                    argument: 0,
                    and: 2,
                    choices: &[(1, &[0]), (2, &[0, 6, 17])],
                    otherwise: 93,
                },
            ),
        ]);
        let filter = Filter::compile(&table, Verdict::Errno(38));
        assert_eq!(run(&filter, 10, [0x0F, 0, 0, 0, 0, 0]), RET_ALLOW);
        assert_eq!(run(&filter, 10, [0x1F, 0, 0, 0, 0, 0]), EPERM);
        for (value, expected) in [(1, RET_ALLOW), (2, RET_ALLOW), (16, RET_ALLOW), (3, EPERM)] {
            assert_eq!(run(&filter, 11, [0, value, 0, 0, 0, 0]), expected);
        }
        let unsupported = RET_ERRNO | 93;
        for (choice, value, expected) in [
            (1, 0, RET_ALLOW),
            (1, 6, unsupported),
            (2, 0, RET_ALLOW),
            (2, 17, RET_ALLOW),
            (2, 132, unsupported),
            (3, 0, EPERM),
        ] {
            assert_eq!(
                run(&filter, 13, [choice, 1, value, 0, 0, 0]),
                expected,
                "{choice} {value}"
            );
        }
        for (value, expected) in [(7, EPERM), (9, EPERM), (8, RET_ALLOW)] {
            assert_eq!(run(&filter, 12, [0, 0, value, 0, 0, 0]), expected);
        }
    }
}
