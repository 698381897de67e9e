use super::*;

fn fits() -> Fits {
    Fits {
        firecracker: "1.16.2".parse().unwrap(),
        format: "11.0.0".into(),
        processor: "EPYC".into(),
        memory: MiB(1),
        cpus: 2,
        bundle: "abc".into(),
        disk_bytes: 1 << 30,
        network: true,
        metadata: false,
    }
}

#[test]
fn what_does_not_fit_is_told_by_name() {
    let check = |change: fn(&mut Fits), why: Option<&str>| {
        let mut here = fits();
        change(&mut here);
        assert_eq!(fits().differs_from(&here).as_deref(), why);
    };
    check(|_| {}, None);
    check(
        |here| here.format = "12.0.0".into(),
        Some("the format of Firecracker's snapshots was 11.0.0 and is 12.0.0"),
    );
    check(|here| here.firecracker = "1.16.3".parse().unwrap(), None);
    check(
        |here| here.firecracker = "1.16.1".parse().unwrap(),
        Some("Firecracker, which must not become older, was 1.16.2 and is 1.16.1"),
    );
    check(
        |here| here.processor = "Xeon".into(),
        Some("the processor was EPYC and is Xeon"),
    );
    check(
        |here| here.bundle = "abd".into(),
        Some("the guest's kernel was abc and is abd"),
    );
    check(
        |here| here.memory = MiB(2),
        Some("its size was 1 MiB and is 2 MiB"),
    );
    check(
        |here| here.cpus = 4,
        Some("the number of its processors was 2 and is 4"),
    );
    check(
        |here| here.disk_bytes = 1,
        Some("the size of its disk, in bytes, was 1073741824 and is 1"),
    );
    check(
        |here| here.network = false,
        Some("its network was given and is none"),
    );
    check(
        |here| here.metadata = true,
        Some("its metadata was none and is given"),
    );
}

struct World {
    _dir: tempfile::TempDir,
    states: Files,
    known: Known,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            states: Files::open(dir.path().to_owned()).unwrap(),
            _dir: dir,
            known: Known::default(),
        }
    }

    fn place(&self, id: Uuid) -> Place {
        Place::of(&self.states, id)
    }

    /// A state whose pages are written as told: which, and with what.
    fn write(&self, pages: &[(u64, u8)]) -> Uuid {
        let id = Uuid::new_v4();
        let place = self.place(id);
        place.make().unwrap();
        fs::write(place.state(), "devices").unwrap();
        let memory = fs::File::options().write(true).open(place.memory()).unwrap();
        memory.set_len(1 << 20).unwrap();
        for (page, byte) in pages {
            memory
                .write_all_at(&[*byte; PAGE_BYTES], page * PAGE_BYTES as u64)
                .unwrap();
        }
        id
    }

    fn seal(&self, id: Uuid, written: Written) -> Memory {
        seal(&self.known, &self.states, id, written, fits()).unwrap()
    }

    fn why(&self, memory: &Memory) -> Option<String> {
        is_damaged(&self.known, &self.states, memory).unwrap()
    }

    /// As a daemon that has just come up.
    fn forget(&mut self) {
        self.known = Known::default();
    }
}

#[test]
fn what_was_changed_cut_off_or_lost_is_damaged() {
    let mut world = World::new();
    let memory = world.seal(world.write(&[(3, 1), (200, 2)]), Written::Whole);
    assert_eq!(world.why(&memory), None);
    world.forget();
    assert_eq!(world.why(&memory), None);
    let place = world.place(memory.id);
    // One bit, whether or not it was read before.
    for known in [true, false] {
        let mut bytes = fs::read(place.memory()).unwrap();
        bytes[4 * PAGE_BYTES - 1] ^= 0x10;
        fs::write(place.memory(), bytes).unwrap();
        if !known {
            world.forget();
        }
        let why = world.why(&memory);
        if known {
            assert_eq!(why.as_deref(), Some("its memory: its content has changed"));
        } else {
            assert_eq!(why, None, "it is as it was");
        }
    }
    fs::write(place.state(), "Devices").unwrap();
    assert!(world.why(&memory).unwrap().contains("state of its devices"));
    fs::write(place.state(), "devices").unwrap();
    let file = fs::File::options().write(true).open(place.memory()).unwrap();
    file.set_len((1 << 20) - 1).unwrap();
    assert_eq!(
        world.why(&memory).unwrap(),
        "its memory: it has 1048575 bytes, and had 1048576"
    );
    file.set_len(1 << 20).unwrap();
    // A page that is moved is another.
    file.write_all_at(&[0; PAGE_BYTES], 3 * PAGE_BYTES as u64)
        .unwrap();
    file.write_all_at(&[1; PAGE_BYTES], 5 * PAGE_BYTES as u64)
        .unwrap();
    assert!(world.why(&memory).unwrap().contains("changed"));
    fs::remove_file(place.memory()).unwrap();
    assert!(world.why(&memory).unwrap().contains("not there"));
}

#[test]
fn holes_and_zeroes_are_the_same_in_a_whole_and_not_in_a_difference() {
    let world = World::new();
    let (sparse, dense) = (world.write(&[(3, 1)]), world.write(&[(3, 1), (7, 0)]));
    let whole = |id| world.seal(id, Written::Whole).pages;
    assert_eq!(whole(sparse), whole(dense));
    let measured = |id| {
        let file = fs::File::open(world.place(id).memory()).unwrap();
        measure(&file, Cover::Written).unwrap()
    };
    assert_ne!(measured(sparse), measured(dense));
}

#[test]
fn a_difference_becomes_whole_over_what_it_differs_from() {
    let mut world = World::new();
    let base = world.seal(world.write(&[(1, 1), (2, 1), (3, 1)]), Written::Whole);
    let Pages::Whole(base_pages) = base.pages.clone() else {
        panic!("{base:?}")
    };
    let written = Written::Since {
        base: base.id,
        base_pages,
    };
    // The second page is zero now, which is not a hole.
    let diff = world.seal(world.write(&[(2, 0), (3, 9), (250, 4)]), written);
    assert_eq!(world.why(&diff), None);
    let into = Uuid::new_v4();
    let whole = rebase(&world.known, &world.states, &diff, into).unwrap().unwrap();
    assert_eq!(
        (whole.id, &whole.fits, &whole.state),
        (into, &diff.fits, &diff.state)
    );
    let expected = world.write(&[(1, 1), (3, 9), (250, 4)]);
    assert_eq!(
        fs::read(world.place(into).memory()).unwrap(),
        fs::read(world.place(expected).memory()).unwrap()
    );
    world.forget();
    assert_eq!(world.why(&whole), None);
    assert_eq!(
        rebase(&world.known, &world.states, &whole, Uuid::new_v4()).unwrap(),
        None
    );
    // It stands on what it differs from.
    fs::write(world.place(base.id).memory(), vec![0; 1 << 20]).unwrap();
    assert!(world.why(&diff).unwrap().contains("memory of before"));
    assert_eq!(world.why(&whole), None);
}

#[test]
fn what_is_no_memory_of_its_machine_is_not_sealed() {
    let world = World::new();
    let refused = |id| {
        seal(&world.known, &world.states, id, Written::Whole, fits())
            .unwrap_err()
            .source
            .to_string()
    };
    let short = world.write(&[]);
    let file = fs::File::options()
        .write(true)
        .open(world.place(short).memory())
        .unwrap();
    file.set_len(4096).unwrap();
    assert_eq!(refused(short), "it has 4096 bytes, and the machine 1048576");
    let empty = world.write(&[]);
    fs::write(world.place(empty).state(), "").unwrap();
    assert_eq!(refused(empty), "it has 0 bytes");
}
