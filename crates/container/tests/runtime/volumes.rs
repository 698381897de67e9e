//! Volumes: in machines, and by the content API.
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use model::{MiB, VolumeId, VolumeMount};
use ports::blobs::ByteStream;
use ports::runtime::{Disk, DiskOrigin};
use ports::volumes::{FileError, FileKind, Ownership};
use ports::{Machine, MachineSpec, RuntimeError};

use crate::client::{attempt, run};
use crate::copies::{begin, copy};
use crate::house::{House, eventually, with_house, with_two_daemons};

async fn volume(house: &House, size: u32) -> VolumeId {
    let id = VolumeId::random();
    house
        .runtime
        .volume_files()
        .make(id, MiB(size))
        .await
        .expect("a volume");
    id
}

fn at(volume: VolumeId, path: &str) -> VolumeMount {
    VolumeMount {
        volume,
        name: "data".to_owned(),
        path: path.to_owned(),
    }
}

async fn with(house: &House, volumes: Vec<VolumeMount>) -> Result<Arc<dyn Machine>, RuntimeError> {
    let spec = MachineSpec {
        volumes,
        ..house.spec()
    };
    house.start_from(spec).await
}

fn bytes(text: &str) -> ByteStream {
    let text = text.to_owned();
    futures_util::stream::once(async move { Ok(text.into()) }).boxed()
}

async fn read(house: &House, id: VolumeId, path: &str) -> Result<String, FileError> {
    let (size, stream) = house.runtime.volume_files().read(id, path).await?;
    let pieces: Vec<_> = stream.try_collect().await.expect("all of it");
    let whole = pieces.concat();
    assert_eq!(whole.len() as u64, size);
    Ok(String::from_utf8(whole).expect("text"))
}

const NOBODYS: Ownership = Ownership {
    uid: None,
    gid: None,
    mode: None,
};

#[test]
fn machines_and_the_content_api_share_a_volume() {
    with_house(async |house| {
        let id = volume(house, 64).await;
        let files = house.runtime.volume_files();
        files
            .write(id, "/from/api", bytes("api\n"), NOBODYS, true)
            .await
            .expect("written");
        let a = with(house, vec![at(id, "/mnt/data")]).await.expect("a machine");
        let b = with(house, vec![at(id, "/home/user/deep/er")])
            .await
            .expect("a machine");
        assert_eq!(
            run(&*a, "user", "cat /mnt/data/from/api; ls /mnt/data").await,
            "api\nfrom\n"
        );
        run(
            &*a,
            "user",
            "echo of-a > /mnt/data/a && sudo sh -c 'echo root > /mnt/data/root' && cp /usr/bin/id /mnt/data/ && \
             sudo chown root /mnt/data/id && sudo chmod 4755 /mnt/data/id",
        )
        .await;
        assert_eq!(
            run(
                &*b,
                "user",
                "cd ~/deep/er && cat a && stat -c '%U %u' a root && ./id -u && stat -c %U ~/deep && \
                 test ! -b x && df -m --output=size . | tail -1 | tr -d ' '"
            )
            .await
            .lines()
            .take(5)
            .collect::<Vec<_>>(),
            ["of-a", "user 1000", "root 0", "0", "user"],
        );
        assert_eq!(read(house, id, "a").await.expect("a file"), "of-a\n");
        let stat = files.stat(id, "/root").await.expect("a file");
        assert_eq!((stat.uid, stat.kind, stat.size), (0, FileKind::File, 5));
        // One mount for all of them, and no device node means anything on it.
        assert_eq!(house.mounts(), [format!("volumes/{id}")]);
        assert_ne!(attempt(&*a, "root", "mknod /mnt/data/null c 1 3").await.1, 0);
        // What lies on it is no part of a copy.
        let snapshot = begin(house, copy(&a).await).await;
        assert_eq!(run(&*snapshot, "user", "ls -A /mnt/data").await, "");
        assert!(matches!(files.discard(id).await, Err(FileError::InUse(_))));
        a.stop(Disk::Discard).await.expect("it stops");
        b.stop(Disk::Discard).await.expect("it stops");
        eventually("nobody has it", || house.mounts().is_empty()).await;
        assert_eq!(read(house, id, "a").await.expect("a file"), "of-a\n");
        assert!(files.held().await.expect("a list").contains(&id));
        files.discard(id).await.expect("it is removed");
        assert!(!files.held().await.expect("a list").contains(&id));
        files.discard(id).await.expect("it is not there");
        assert!(matches!(files.stat(id, "/").await, Err(FileError::NoVolume)));
        assert!(matches!(
            with(house, vec![at(id, "/x")]).await.map(drop),
            Err(RuntimeError::NoVolume(_))
        ));
    });
}

#[test]
fn volumes_go_where_the_machine_leaves_room_for_them() {
    with_house(async |house| {
        let id = volume(house, 64).await;
        for path in [
            "/",
            "/proc/x",
            "/sys",
            "/dev/x",
            "/run/atoll/x",
            "relative",
            "/a/../b",
            "/bin/x",
            "/etc/passwd",
        ] {
            let refused = with(house, vec![at(id, path)]).await.map(drop);
            assert!(
                matches!(refused, Err(RuntimeError::Unsupported { .. })),
                "{path}: {refused:?}"
            );
        }
        let twice = with(house, vec![at(id, "/a"), at(id, "/a")]).await.map(drop);
        assert!(
            matches!(twice, Err(RuntimeError::Unsupported { .. })),
            "{twice:?}"
        );
        let nested = with(house, vec![at(id, "/a/b"), at(volume(house, 64).await, "/a")])
            .await
            .expect("a machine");
        run(&*nested, "user", "touch /a/b/inner /a/outer && ls /a/b").await;
        nested.stop(Disk::Keep).await.expect("it stops");
        eventually("nobody has it", || house.mounts().is_empty()).await;
        let spec = MachineSpec {
            sandbox: nested.sandbox(),
            disk: DiskOrigin::Kept,
            volumes: vec![at(id, "/again")],
            ..house.spec()
        };
        let again = house.start_from(spec).await.expect("it starts again");
        assert_eq!(run(&*again, "user", "ls /again").await, "inner\n");
    });
}

#[test]
fn a_volume_holds_no_more_than_its_size() {
    with_house(async |house| {
        let id = volume(house, 32).await;
        let machine = with(house, vec![at(id, "/data")]).await.expect("a machine");
        let (said, status) = attempt(&*machine, "user", "head -c 100M /dev/zero > /data/large").await;
        assert!(status != 0 && said.contains("No space left"), "{said}");
        let much = futures_util::stream::iter((0..64).map(|_| Ok(vec![1; 1 << 20].into()))).boxed();
        let full = house
            .runtime
            .volume_files()
            .write(id, "/much", much, NOBODYS, false)
            .await;
        assert!(matches!(full, Err(FileError::Full)), "{full:?}");
        assert!(matches!(
            house.runtime.volume_files().stat(id, "/much").await,
            Err(FileError::NotFound(_))
        ));
        run(&*machine, "user", "rm /data/large; echo x > /data/small").await;
        let names = house
            .runtime
            .volume_files()
            .list(id, "/", 1)
            .await
            .expect("a list");
        assert_eq!(names.len(), 1, "{names:?}");
    });
}

#[test]
fn files_are_changed_as_they_are_asked_to_be() {
    with_house(async |house| {
        let files = house.runtime.volume_files();
        let id = volume(house, 64).await;
        assert!(files.list(id, "", 1).await.expect("a list").is_empty());
        let given = Ownership {
            uid: Some(5),
            gid: Some(6),
            mode: Some(0o600),
        };
        let stat = files
            .write(id, "f", bytes("1"), given, false)
            .await
            .expect("written");
        assert_eq!(
            (stat.uid, stat.gid, stat.mode & 0o7777, stat.size),
            (5, 6, 0o600, 1)
        );
        assert_eq!((&*stat.name, &*stat.path), ("f", "/f"));
        let again = files.write(id, "f", bytes("2"), NOBODYS, false).await;
        assert!(matches!(again, Err(FileError::Exists(_))), "{again:?}");
        let stat = files
            .write(id, "f", bytes("22"), NOBODYS, true)
            .await
            .expect("written");
        assert_eq!((stat.uid, stat.mode & 0o7777), (1000, 0o644));
        assert_eq!(read(house, id, "/f").await.expect("a file"), "22");
        let nowhere = files.write(id, "a/b/c", bytes("3"), NOBODYS, false).await;
        assert!(matches!(nowhere, Err(FileError::NotFound(_))), "{nowhere:?}");
        let broken: ByteStream =
            futures_util::stream::iter([Ok("half".into()), Err(std::io::Error::other("gone"))]).boxed();
        let broken = files.write(id, "f", broken, NOBODYS, true).await;
        assert!(matches!(broken, Err(FileError::Source(_))), "{broken:?}");
        assert_eq!(read(house, id, "/f").await.expect("a file"), "22");
        let nowhere = files.make_dir(id, "/d/e", given, false).await;
        assert!(
            matches!(&nowhere, Err(FileError::NotFound(path)) if path == "/d"),
            "{nowhere:?}"
        );
        assert!(matches!(files.stat(id, "/d").await, Err(FileError::NotFound(_))));
        files
            .make_dir(id, "//d/./", NOBODYS, false)
            .await
            .expect("the root is there");
        let dir = files.make_dir(id, "/d/e", given, false).await.expect("made");
        assert_eq!(
            (dir.kind, dir.uid, dir.mode & 0o7777),
            (FileKind::Directory, 5, 0o600)
        );
        assert!(matches!(
            files.make_dir(id, "/d/e", NOBODYS, false).await,
            Err(FileError::Exists(_))
        ));
        files
            .make_dir(id, "/d/e", NOBODYS, true)
            .await
            .expect("it is there");
        files
            .make_dir(id, "/p/q/r", NOBODYS, true)
            .await
            .expect("made with those above it");
        files.remove(id, "/p").await.expect("removed");
        let root = files.make_dir(id, "/", NOBODYS, false).await;
        assert!(matches!(root, Err(FileError::Exists(_))), "{root:?}");
        assert!(matches!(
            files.make_dir(id, "/f/x", NOBODYS, true).await,
            Err(FileError::WrongKind { .. })
        ));
        assert!(matches!(
            read(house, id, "/d").await,
            Err(FileError::WrongKind { .. })
        ));
        let stat = files
            .change(
                id,
                "/d",
                Ownership {
                    mode: Some(0o1770),
                    ..given
                },
            )
            .await
            .expect("changed");
        assert_eq!((stat.gid, stat.mode & 0o7777), (6, 0o1770));
        for wrong in [
            Ownership {
                uid: Some(65_536),
                ..NOBODYS
            },
            Ownership {
                mode: Some(0o10000),
                ..NOBODYS
            },
        ] {
            assert!(matches!(
                files.change(id, "/d", wrong).await,
                Err(FileError::Invalid(_))
            ));
        }
        files
            .write(id, "/d/e/g", bytes("4"), NOBODYS, true)
            .await
            .expect("written");
        let paths = |depth| async move {
            let list = house
                .runtime
                .volume_files()
                .list(id, "/", depth)
                .await
                .expect("a list");
            list.into_iter().map(|stat| stat.path).collect::<Vec<_>>()
        };
        assert_eq!(paths(1).await, ["/d", "/f"]);
        assert_eq!(paths(3).await, ["/d", "/d/e", "/d/e/g", "/f"]);
        assert!(matches!(
            files.list(id, "/f", 1).await,
            Err(FileError::WrongKind { .. })
        ));
        assert!(matches!(files.list(id, "/", 0).await, Err(FileError::Invalid(_))));
        files.remove(id, "/d").await.expect("removed");
        assert!(matches!(
            files.remove(id, "/d").await,
            Err(FileError::NotFound(_))
        ));
        assert!(matches!(files.remove(id, "/").await, Err(FileError::Invalid(_))));
        assert_eq!(paths(9).await, ["/f"]);
        files.discard(id).await.expect("removed");
    });
}

#[test]
fn no_link_leads_out_of_a_volume() {
    with_house(async |house| {
        let files = house.runtime.volume_files();
        let id = volume(house, 64).await;
        let machine = with(house, vec![at(id, "/v")]).await.expect("a machine");
        run(
            &*machine,
            "root",
            "cd /v && ln -s /etc/passwd abs && ln -s ../../../../../../../etc/passwd up && ln -s / root && \
             ln -s /dev/zero zero && mkfifo pipe && mkdir etc && echo ours > etc/passwd && ln -s loop loop && ln -s pipe p",
        )
        .await;
        for path in ["/abs", "/up", "/root/etc/passwd"] {
            assert_eq!(
                read(house, id, path).await.expect("a file of the volume"),
                "ours\n",
                "{path}"
            );
        }
        assert!(matches!(
            read(house, id, "/zero").await,
            Err(FileError::NotFound(_))
        ));
        assert!(matches!(
            read(house, id, "/pipe").await,
            Err(FileError::WrongKind { .. })
        ));
        assert!(matches!(
            read(house, id, "/p").await,
            Err(FileError::WrongKind { .. })
        ));
        assert!(matches!(
            read(house, id, "/loop").await,
            Err(FileError::Invalid(_))
        ));
        assert!(matches!(
            read(house, id, "/../etc/passwd").await,
            Err(FileError::Invalid(_))
        ));
        let stat = files.stat(id, "/abs").await.expect("a link");
        assert_eq!(
            (stat.kind, stat.target.as_deref()),
            (FileKind::Symlink, Some("/etc/passwd"))
        );
        // A link at the end of what is written is replaced, and what it leads to stays.
        files
            .write(id, "/abs", bytes("new"), NOBODYS, true)
            .await
            .expect("written");
        assert_eq!(
            run(&*machine, "user", "cat /v/abs /v/etc/passwd; test ! -L /v/abs").await,
            "newours\n"
        );
        files.remove(id, "/root").await.expect("the link is removed");
        assert_eq!(
            run(&*machine, "user", "cat /v/etc/passwd; ls /etc/passwd").await,
            "ours\n/etc/passwd\n"
        );
    });
}

#[test]
fn the_next_daemon_knows_who_has_a_volume() {
    with_two_daemons(
        async |house| {
            let id = volume(house, 64).await;
            let machine = with(house, vec![at(id, "/v")]).await.expect("a machine");
            run(&*machine, "user", "echo before > /v/file").await;
            id
        },
        async |house, id| {
            let files = house.runtime.volume_files();
            let machines = house.machines();
            let [machine] = machines.as_slice() else {
                panic!("one machine lives");
            };
            assert!(house.mounts().is_empty());
            assert!(matches!(files.discard(id).await, Err(FileError::InUse(_))));
            assert_eq!(read(house, id, "file").await.expect("a file"), "before\n");
            files
                .write(id, "more", bytes("x"), NOBODYS, false)
                .await
                .expect("written");
            assert_eq!(run(&**machine, "user", "cat /v/more").await, "x");
            let second = with(house, vec![at(id, "/w")]).await.expect("a machine");
            run(&*second, "user", "echo after > /w/file").await;
            assert_eq!(
                run(&**machine, "user", "cat /v/file").await,
                "after\n",
                "both have one file system"
            );
            house.stop_all().await;
            eventually("all slots are given back", || house.records() == 0).await;
            files.discard(id).await.expect("nobody has it");
        },
    );
}
