//! A volume on a real image, asked as a kernel asks. Takes root.
use std::ffi::CStr;
use std::sync::Arc;

use model::MiB;
use ports::VolumeFiles as _;
use proptest::prelude::*;
use rustix::io::Errno;
use tempfile::TempDir;

use super::*;
use crate::Files;
use crate::fuse::PIECE_BYTES_MAX;
use crate::fuse::tests::ask;

const USER: (u32, u32) = (1000, 1000);
const OTHER: (u32, u32) = (1001, 1002);
const O_EXCL: u32 = 0o200;
const O_APPEND: u32 = 0o2000;

/// A data directory with one volume.
struct World {
    dir: TempDir,
    volumes: Arc<Volumes>,
    id: VolumeId,
}

impl Drop for World {
    fn drop(&mut self) {
        self.volumes.take_back("machine");
        self.volumes.take_back("other");
    }
}

fn with_volume(test: impl FnOnce(&World, &Machine)) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let volumes = Arc::new(Volumes::open(dir.path(), dir.path().join("images")).unwrap());
    let id = VolumeId::random();
    volumes.make(id, MiB(16)).unwrap();
    let world = World { dir, volumes, id };
    let machine = world.machine("machine");
    test(&world, &machine);
    drop(machine);
}

impl World {
    fn machine(&self, holder: &str) -> Machine {
        Machine(self.volumes.export(self.id, holder).unwrap())
    }
}

/// A kernel that has it.
struct Machine(Arc<Export>);

/// A body of numbers and bytes.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn text(self, text: &CStr) -> Self {
        self.bytes(text.to_bytes_with_nul())
    }
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Machine {
    fn say(&self, kind: u32, node: u64, user: (u32, u32), body: &Body, again: bool) -> Done<Vec<u8>> {
        let reply = self
            .0
            .answer_now(&ask(kind, node, user, &body.0), again)
            .unwrap()
            .unwrap();
        assert_eq!((word(&reply, 0) as usize, long(&reply, 8)), (reply.len(), 7));
        match i32::from_ne_bytes(reply[4..8].try_into().unwrap()) {
            0 => Ok(reply[16..].to_vec()),
            errno => Err(Errno::from_raw_os_error(-errno)),
        }
    }
    fn ask(&self, kind: u32, node: u64, body: Body) -> Done<Vec<u8>> {
        self.say(kind, node, USER, &body, false)
    }
    fn lookup(&self, node: u64, name: &CStr) -> Done<u64> {
        Ok(long(&self.ask(1, node, Body::default().text(name))?, 0))
    }
    /// Mode, user and group.
    fn about(&self, node: u64) -> Done<(u32, u32, u32)> {
        let told = self.ask(3, node, Body::default().u32(0).u32(0).u64(0))?;
        Ok((word(&told, 16 + 60), word(&told, 16 + 68), word(&told, 16 + 72)))
    }
    fn create_as(&self, user: (u32, u32), name: &CStr, flags: u32, again: bool) -> Done<(u64, u64)> {
        let body = Body::default()
            .u32(flags | 2)
            .u32(0o100_640)
            .u32(0)
            .u32(0)
            .text(name);
        let told = self.say(35, ROOT, user, &body, again)?;
        Ok((long(&told, 0), long(&told, 128)))
    }
    fn create(&self, name: &CStr) -> Done<(u64, u64)> {
        self.create_as(USER, name, O_EXCL, false)
    }
    fn mkdir(&self, node: u64, name: &CStr, mode: u32) -> Done<u64> {
        Ok(long(
            &self.ask(9, node, Body::default().u32(mode).u32(0).text(name))?,
            0,
        ))
    }
    fn write_at(
        &self,
        (node, file): (u64, u64),
        offset: u64,
        data: &[u8],
        flags: u32,
        again: bool,
    ) -> Done<u32> {
        let size = u32::try_from(data.len()).unwrap();
        let body = Body::default()
            .u64(file)
            .u64(offset)
            .u32(size)
            .u32(0)
            .u64(0)
            .u32(flags)
            .u32(0)
            .bytes(data);
        Ok(word(&self.say(16, node, USER, &body, again)?, 0))
    }
    fn read(&self, (node, file): (u64, u64)) -> Done<Vec<u8>> {
        let body = Body::default()
            .u64(file)
            .u64(0)
            .u32(PIECE_BYTES_MAX)
            .u32(0)
            .u64(0)
            .u64(0);
        self.ask(15, node, body)
    }
    fn unlink(&self, name: &CStr, again: bool) -> Done<()> {
        self.say(10, ROOT, USER, &Body::default().text(name), again)
            .map(drop)
    }
    fn rename(&self, from: &CStr, to: &CStr, flags: u32, again: bool) -> Done<()> {
        let body = Body::default().u64(ROOT).u32(flags).u32(0).text(from).text(to);
        self.say(45, ROOT, USER, &body, again).map(drop)
    }
    fn symlink(&self, name: &CStr, target: &CStr) -> Done<u64> {
        Ok(long(
            &self.ask(6, ROOT, Body::default().text(name).text(target))?,
            0,
        ))
    }
    fn names(&self, node: u64, size: u32) -> Vec<Vec<u8>> {
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let body = Body::default().u64(0).u64(offset).u32(size).u32(0).u64(0).u64(0);
            let told = self.ask(28, node, body).unwrap();
            if told.is_empty() {
                return names;
            }
            assert!(told.len() <= size as usize);
            let mut rest = told.as_slice();
            while !rest.is_empty() {
                offset = long(rest, 8);
                let length = word(rest, 16) as usize;
                names.push(rest[24..24 + length].to_vec());
                rest = &rest[24 + length.next_multiple_of(8)..];
            }
        }
    }
}

fn now<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

#[test]
fn what_a_machine_writes_is_seen_from_outside_at_once_and_belongs_to_its_user() {
    with_volume(|world, machine| {
        let files = Files::new(Arc::clone(&world.volumes), || true);
        let file = machine.create_as(OTHER, c"a", O_EXCL, false).unwrap();
        assert_eq!(machine.write_at(file, 0, b"hello", 0, false), Ok(5));
        let told = now(files.stat(world.id, "/a")).unwrap();
        assert_eq!(
            (told.size, told.uid, told.gid, told.mode & 0o7777),
            (5, 1001, 1002, 0o640)
        );
        assert_eq!(machine.about(file.0).unwrap(), (0o100_640, 1001, 1002));
        let shared = machine.mkdir(ROOT, c"shared", 0o775).unwrap();
        let given = Body::default()
            .u32(1 | 4)
            .u32(0)
            .u64(0)
            .u64(0)
            .bytes(&[0; 44])
            .u32(0o2775)
            .u32(0)
            .u32(0)
            .u32(77)
            .u32(0);
        machine.ask(4, shared, given).unwrap();
        let below = machine.mkdir(shared, c"below", 0o755).unwrap();
        assert_eq!(
            machine.about(below).unwrap(),
            (0o42_755, 1000, 77),
            "a directory hands its group down"
        );
        now(files.remove(world.id, "/a")).unwrap();
        assert_eq!(machine.lookup(ROOT, c"a"), Err(Errno::NOENT));
        assert_eq!(machine.about(1 << 40), Err(Errno::STALE));
    });
}

#[test]
fn an_open_file_outlives_its_name_and_its_number_outlives_the_daemon() {
    with_volume(|world, machine| {
        let file = machine.create(c"a").unwrap();
        machine.write_at(file, 0, b"x", 0, false).unwrap();
        let other = world.machine("other");
        assert_eq!(
            other.read(file),
            Ok(b"x".to_vec()),
            "whoever held it open is gone"
        );
        other.unlink(c"a", false).unwrap();
        assert_eq!(machine.read(file), Ok(b"x".to_vec()));
        machine
            .ask(18, file.0, Body::default().u64(file.1).u64(0).u64(0))
            .unwrap();
        assert_eq!(machine.read(file), Err(Errno::STALE));
    });
}

#[test]
fn what_is_asked_again_is_done_once() {
    with_volume(|_, machine| {
        let (again, once) = (true, false);
        let file = machine.create(c"a").unwrap();
        assert_eq!(machine.create(c"a"), Err(Errno::EXIST));
        assert_eq!(
            machine.create_as(USER, c"a", 0, once),
            Err(Errno::STALE),
            "the kernel looks again"
        );
        assert_eq!(machine.create_as(USER, c"a", O_EXCL, again).unwrap().0, file.0);
        assert_eq!(machine.write_at(file, 0, b"one\n", O_APPEND, once), Ok(4));
        assert_eq!(machine.write_at(file, 0, b"one\n", O_APPEND, again), Ok(4));
        assert_eq!(
            machine.write_at(file, 4, b"two\n", O_APPEND, again),
            Ok(4),
            "that was not done before"
        );
        assert_eq!(machine.read(file).unwrap(), b"one\ntwo\n");
        assert_eq!(machine.rename(c"a", c"b", 0, once), Ok(()));
        assert_eq!(machine.rename(c"a", c"b", 0, again), Ok(()));
        assert_eq!(machine.rename(c"a", c"c", 0, again), Err(Errno::NOENT));
        assert_eq!(machine.unlink(c"b", once), Ok(()));
        assert_eq!(machine.unlink(c"b", again), Ok(()));
        assert_eq!(machine.unlink(c"b", once), Err(Errno::NOENT));
        machine.mkdir(ROOT, c"dir", 0o700).unwrap();
        let body = Body::default().u32(0o700).u32(0).text(c"dir");
        assert!(machine.say(9, ROOT, USER, &body, again).is_ok());
        let body = Body::default().u32(0o100_600).u32(0).u64(0).text(c"dir");
        assert_eq!(
            machine.say(8, ROOT, USER, &body, again),
            Err(Errno::EXIST),
            "that is another thing"
        );
    });
}

#[test]
fn two_machines_that_append_write_over_nothing() {
    with_volume(|world, one| {
        let other = world.machine("other");
        let file = one.create(c"log").unwrap();
        one.write_at(file, 0, b"1", O_APPEND, false).unwrap();
        other.write_at(file, 0, b"2", O_APPEND, false).unwrap();
        one.write_at(file, 1, b"3", O_APPEND, false).unwrap();
        assert_eq!(one.read(file).unwrap(), b"123");
    });
}

#[test]
fn a_guest_that_lies_gets_nowhere() {
    with_volume(|world, machine| {
        let outside = world.dir.path().join("secret");
        std::fs::write(&outside, "secret").unwrap();
        let target = std::ffi::CString::new(outside.to_str().unwrap()).unwrap();
        let link = machine.symlink(c"link", &target).unwrap();
        assert_eq!(machine.ask(5, link, Body::default()).unwrap(), target.to_bytes());
        for attempt in [
            machine.ask(14, link, Body::default().u64(0)),
            machine.read((link, 0)),
        ] {
            assert_eq!(attempt, Err(Errno::LOOP));
        }
        assert_eq!(machine.lookup(link, c"x"), Err(Errno::NOTDIR));
        let device = |mode: u32| Body::default().u32(mode).u32(0x0103).u64(0).text(c"device");
        for mode in [0o020_666, 0o060_666, 0o040_755] {
            assert_eq!(machine.ask(8, ROOT, device(mode)).map(drop), Err(Errno::PERM));
        }
        let fifo = machine.ask(8, ROOT, device(0o010_666)).unwrap();
        assert_eq!(
            machine.read((long(&fifo, 0), 0)),
            Err(Errno::INVAL),
            "and nobody waits for it"
        );
        assert_eq!(
            machine.create_as((65_536, 0), c"x", 0, false),
            Err(Errno::OVERFLOW)
        );
        assert_eq!(machine.rename(c"link", c"x", 4, false), Err(Errno::INVAL));
        // The journal, what ext4 keeps to itself, and what never was.
        for number in [0, 3, 7, 8, 10, 1 << 33, u64::MAX] {
            assert_eq!(machine.about(number), Err(Errno::STALE), "{number}");
        }
        assert_eq!(std::fs::read(&outside).unwrap(), b"secret");
    });
}

#[test]
fn a_directory_is_read_whole_however_small_the_pieces() {
    with_volume(|_, machine| {
        let dir = machine.mkdir(ROOT, c"many", 0o755).unwrap();
        let mut expected: Vec<Vec<u8>> = vec![b".".to_vec(), b"..".to_vec()];
        for i in 0..500 {
            let name = std::ffi::CString::new(format!("a rather long name {i}")).unwrap();
            machine.mkdir(dir, &name, 0o755).unwrap();
            expected.push(name.into_bytes());
        }
        expected.sort();
        for size in [64, 200, 4096, 65_536] {
            let mut names = machine.names(dir, size);
            names.sort();
            assert_eq!(names, expected, "{size}");
        }
    });
}

#[test]
fn a_full_volume_says_so() {
    with_volume(|_, machine| {
        let file = machine.create(c"much").unwrap();
        let piece = vec![7; PIECE_BYTES_MAX as usize];
        let refused = (0..200_u64)
            .map(|i| machine.write_at(file, i * piece.len() as u64, &piece, 0, false))
            .find(|written| *written != Ok(PIECE_BYTES_MAX));
        assert!(matches!(refused, Some(Err(Errno::NOSPC) | Ok(_))), "{refused:?}");
    });
}

#[test]
fn whatever_is_said_is_answered_within_bounds() {
    with_volume(|_, machine| {
        let mut runner = proptest::test_runner::TestRunner::default();
        let piece = prop_oneof![
            Just(vec![0_u8; 4]),
            Just(b"a\0".to_vec()),
            Just(b"b\0".to_vec()),
            prop::collection::vec(any::<u8>(), 1..9)
        ];
        let said = (
            0_u32..60,
            0_u64..40,
            prop::collection::vec(piece, 0..20),
            any::<bool>(),
        );
        runner
            .run(&said, |(kind, node, body, again)| {
                let request = ask(kind, node, USER, &body.concat());
                if let Ok(Some(reply)) = machine.0.answer_now(&request, again) {
                    assert!(reply.len() <= crate::REPLY_BYTES_MAX);
                    assert_eq!(word(&reply, 0) as usize, reply.len());
                }
                Ok(())
            })
            .unwrap();
    });
}
