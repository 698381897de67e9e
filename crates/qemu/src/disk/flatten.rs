//! Making one image of those between the lowest and the uppermost: what they hold is streamed into a new one, by a QEMU
//! that has no machine. They stay as they are, since others may lie on them.
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Disk, Disks, Format, Layer, file_bytes_max};
use crate::command::{self, Lent, Sockets, node_name};
use crate::process::{Rights, listen, start};
use crate::qmp::{Qmp, QmpError};
use ports::step::{At, Step};

/// A disk that was written to and fro for weeks is read in minutes; what takes longer is given up, and tried another time.
const FLAT_WITHIN: Duration = Duration::from_secs(30 * 60);
/// How often it is looked whether it is done.
const LOOK: Duration = Duration::from_millis(50);

const JOB: &str = "flatten";

/// Writes what `disk` holds over its lowest image into `into`, which is not there yet. `dir` is where its QEMU listens, and what
/// that is called after. It reads what machines wrote: whom it runs as is nobody else. To
/// `rights` comes what it is given.
pub(crate) async fn flatten(
    program: &Path,
    disks: &Disks,
    disk: &Disk,
    into: Layer,
    dir: &Path,
    rights: Rights,
) -> Result<Disk, Step> {
    assert_eq!(into.format, Format::Qcow2, "what lies on another is no raw image");
    disks.make(into, disk.size_bytes)?;
    let whole = disk.under(into, 0);
    let opened = disks.open_all(&whole)?;
    let lent: Vec<Lent> = opened.iter().map(super::Opened::lent).collect();
    let top = lent.len().saturating_sub(1);
    let sockets = Sockets::within(dir);
    let (listening, listeners) = sockets.listen().at(format!("listening in {}", dir.display()))?;
    let id = dir.file_name().unwrap_or_default().to_string_lossy();
    let mut arguments: Vec<std::ffi::OsString> = Vec::new();
    for argument in [
        "-name",
        &*command::process_name(&id),
        "-M",
        "none",
        "-S",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-sandbox",
    ] {
        arguments.push(argument.into());
    }
    arguments.push(command::SANDBOX.into());
    for (id, listener) in [("qmp", listening.qmp), ("serial", listening.serial)] {
        arguments.push("-chardev".into());
        arguments.push(command::socket(id, listener).into());
    }
    arguments.extend(["-mon".into(), "chardev=qmp,mode=control".into()]);
    arguments.extend(command::images(&lent));
    let rights = Rights {
        given: opened
            .into_iter()
            .flat_map(super::Opened::into_descriptors)
            .chain(listeners)
            .collect(),
        file_bytes: file_bytes_max(disk.size_bytes),
        ..rights
    };
    let process = start(program, &arguments, rights)?;
    let streamed = match listen(&process, &sockets.qmp, &sockets.serial).await {
        Ok(qmp) => {
            let streamed = stream(&qmp, top).await;
            let _ = qmp.run("quit", json!({})).await;
            streamed.at(format!("making one of {} images", disk.layers.len()))
        }
        Err(error) => Err(error),
    };
    if streamed.is_err() {
        process.kill();
    }
    let ended = tokio::time::timeout(crate::qmp::ANSWERED_WITHIN, process.ended()).await;
    if ended.is_err() {
        process.kill();
        process.ended().await;
    }
    streamed?;
    let path = disks.files.path(into.id);
    std::fs::File::open(&path)
        .and_then(|file| file.sync_all())
        .at(format!("writing {} through", path.display()))?;
    Ok(Disk {
        layers: disk.layers.first().copied().into_iter().chain([into]).collect(),
        size_bytes: disk.size_bytes,
    })
}

async fn stream(qmp: &Qmp, top: usize) -> Result<(), QmpError> {
    let deadline = Instant::now() + FLAT_WITHIN;
    let mut events = qmp.events();
    let order = json!({
        "job-id": JOB, "device": node_name(top), "base-node": node_name(0), "auto-dismiss": false,
    });
    qmp.run("block-stream", order).await?;
    loop {
        // An event only says that it is worth a look.
        let _ = tokio::time::timeout(LOOK, events.recv()).await;
        let jobs = qmp.run("query-jobs", json!({})).await?;
        let job = jobs
            .as_array()
            .and_then(|jobs| jobs.iter().find(|job| job["id"] == JOB));
        match job.map(|job| (&job["status"], &job["error"])) {
            Some((Value::String(status), Value::Null)) if status == "concluded" => return Ok(()),
            Some((Value::String(status), why)) if status == "concluded" => {
                return Err(refused(why.as_str().unwrap_or("unsaid")));
            }
            Some(_) if Instant::now() < deadline => {}
            Some(_) => {
                return Err(QmpError::Late {
                    command: "block-stream",
                    within: FLAT_WITHIN,
                });
            }
            None => return Err(refused("the job is not there any more")),
        }
    }
}

fn refused(desc: &str) -> QmpError {
    QmpError::Refused {
        command: "block-stream",
        class: "job".to_owned(),
        desc: desc.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::command::{Accel, node};
    use crate::users::{Users, is_root};

    fn qemu_io(image: &Path, format: &str, command: &str) -> Option<String> {
        let mut io = Command::new("qemu-io");
        let done = io.args(["-f", format, "-c", command]).arg(image).output().ok()?;
        assert!(done.status.success(), "{done:?}");
        Some(String::from_utf8(done.stdout).unwrap())
    }

    #[tokio::test]
    async fn what_any_image_held_is_held_by_the_one() {
        let dir = tempfile::tempdir().unwrap();
        let disks = Disks {
            files: microvm::files::Files::open(dir.path().join("images")).unwrap(),
        };
        let (base, mut disk) = (Disks::draw(Format::Raw), Vec::new());
        let base_path = disks.files.path(base.id);
        std::fs::File::create(&base_path)
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
        if qemu_io(&base_path, "raw", "write -P 1 0 4M").is_none() {
            crate::tests::not_run("qemu-io is not on PATH");
            return;
        }
        disk.push(base);
        // The first images end before what comes later begins.
        for (n, write) in ["write -P 2 1M 1M", "write -P 3 2M 64k", "write -z 0 64k"]
            .into_iter()
            .enumerate()
        {
            let layer = Disks::draw(Format::Qcow2);
            disks.make(layer, (16 + n as u64) << 20).unwrap();
            qemu_io(&disks.files.path(layer.id), "qcow2", write).unwrap();
            disk.push(layer);
        }
        let disk = Disk {
            layers: disk,
            size_bytes: 18 << 20,
        };
        let into = Disks::draw(Format::Qcow2);
        let rights = Rights {
            user: is_root().then(|| Users::of(0, Accel::Tcg).without_machine()),
            given: Vec::new(),
            file_bytes: 0,
            cpus: 0,
            netns: None,
            groups: Vec::new(),
        };
        let program = Path::new("qemu-system-x86_64");
        let flat = flatten(program, &disks, &disk, into, dir.path(), rights)
            .await
            .unwrap();
        assert_eq!(flat.layers, [base, into]);
        assert!(
            disks.files.used_bytes(into.id) < 4 << 20,
            "the lowest image is not copied"
        );
        let whole = |disk: &Disk| {
            let nested = disks
                .images(disk)
                .iter()
                .enumerate()
                .fold(Value::Null, |below, (depth, image)| {
                    let mut node = node(image, depth, false);
                    node.as_object_mut().unwrap().remove("node-name");
                    if depth > 0 {
                        node["backing"] = below;
                    }
                    node
                });
            format!("json:{nested}")
        };
        let compared = Command::new("qemu-img")
            .args(["compare", &whole(&disk), &whole(&flat)])
            .output()
            .unwrap();
        assert!(compared.status.success(), "{compared:?}");
    }
}
