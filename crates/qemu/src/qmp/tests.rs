use std::process::{Child, Command, Stdio};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::*;

const SOON: Duration = Duration::from_secs(5);
const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

/// A QEMU that says, to each line it is told, what the script says; `$id` stands for the command's number.
fn scripted(script: Vec<&'static str>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let (reader, mut writer) = theirs.into_split();
        let mut lines = BufReader::new(reader).lines();
        writer.write_all(GREETING.as_bytes()).await.unwrap();
        for says in ["{\"return\": {}, \"id\": $id}\n"].into_iter().chain(script) {
            let Ok(Some(line)) = lines.next_line().await else {
                return;
            };
            let asked: Value = serde_json::from_str(&line).unwrap();
            if writer
                .write_all(says.replace("$id", &asked["id"].to_string()).as_bytes())
                .await
                .is_err()
            {
                return;
            }
        }
        // What comes next is heard, and not answered.
        while let Ok(Some(_)) = lines.next_line().await {}
    });
    ours
}

#[tokio::test]
async fn an_answer_comes_back_and_events_are_told() {
    let qmp = Qmp::over(
        scripted(vec![
            "{\"event\": \"STOP\", \"timestamp\": {}}\r\n{\"return\": {\"status\": \"paused\"}, \"id\": $id}\r\n",
        ]),
        SOON,
    )
    .await
    .unwrap();
    let mut events = qmp.events();
    let answer = qmp.run("query-status", json!({})).await.unwrap();
    assert_eq!(answer["status"], "paused");
    assert_eq!(events.recv().await.unwrap().name, "STOP");
}

#[tokio::test]
async fn a_refusal_has_its_class_and_words() {
    let qmp = Qmp::over(
        scripted(vec![
            "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no such\"}, \"id\": $id}\n",
        ]),
        SOON,
    )
    .await
    .unwrap();
    let refused = qmp.run("nonsense", json!({})).await.unwrap_err();
    let QmpError::Refused { command, class, desc } = refused else {
        panic!("{refused}");
    };
    assert_eq!(
        (command, &*class, &*desc),
        ("nonsense", "CommandNotFound", "no such")
    );
}

#[tokio::test]
async fn a_late_answer_is_nobody_elses() {
    let qmp = Qmp::over(
        scripted(vec![
            "",
            "{\"return\": \"late\", \"id\": 2}\n{\"return\": \"right\", \"id\": $id}\n",
        ]),
        SOON,
    )
    .await
    .unwrap();
    let late = qmp.run_within("stop", json!({}), Duration::from_millis(50)).await;
    assert!(
        matches!(late, Err(QmpError::Late { command: "stop", .. })),
        "{late:?}"
    );
    assert_eq!(qmp.run("cont", json!({})).await.unwrap(), "right");
}

async fn is_broken(says: &'static str, why: &str) {
    let qmp = Qmp::over(scripted(vec![says]), SOON).await.unwrap();
    for _ in 0..2 {
        let gone = qmp.run("query-status", json!({})).await.unwrap_err();
        let QmpError::Gone(told) = &gone else {
            panic!("{gone}")
        };
        assert!(told.contains(why), "{told}");
    }
}

#[tokio::test]
async fn what_lies_is_not_listened_to_any_more() {
    is_broken("nonsense\n", "no JSON").await;
    is_broken("[1]\n", "no JSON").await;
    is_broken("{\"id\": $id}\n", "neither").await;
    is_broken("{\"return\": {}, \"error\": {}, \"id\": $id}\n", "neither").await;
    is_broken("{\"return\": {}, \"id\": 77}\n", "not asked").await;
    is_broken("{\"return\": {}}\n", "not asked").await;
}

#[tokio::test]
async fn an_answer_without_an_end_is_cut_off() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let flood = tokio::spawn(async move {
        theirs.write_all(GREETING.as_bytes()).await.unwrap();
        let mut sent = 0;
        while theirs.write_all(&[b'x'; 4096]).await.is_ok() {
            sent += 4096;
        }
        sent
    });
    let gone = Qmp::over(ours, SOON).await.map(drop).unwrap_err();
    assert!(gone.to_string().contains("more than"), "{gone}");
    let sent = flood.await.unwrap();
    assert!((LINE_MAX_BYTES..4 * LINE_MAX_BYTES).contains(&sent), "{sent}");
}

#[tokio::test]
async fn whoever_does_not_greet_or_goes_away_is_an_error() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let silent = Qmp::over(ours, Duration::from_millis(50))
        .await
        .map(drop)
        .unwrap_err();
    assert!(silent.to_string().contains("greet"), "{silent}");
    drop(theirs);
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let gone = Qmp::over(ours, SOON).await.map(drop).unwrap_err();
    assert!(matches!(gone, QmpError::Gone(_)), "{gone}");
    let missing = Qmp::connect(Path::new("/nowhere/qmp"), SOON)
        .await
        .map(drop)
        .unwrap_err();
    assert!(missing.to_string().contains("/nowhere/qmp"), "{missing}");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_real_qemu_takes_commands_and_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-S",
            "-M",
            "q35",
            "-accel",
            "tcg",
            "-nodefaults",
            "-display",
            "none",
            "-qmp",
        ])
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .stdin(Stdio::null());
    let Ok(child) = command.spawn() else {
        crate::tests::not_run("qemu-system-x86_64 is not on PATH");
        return;
    };
    let mut qemu = Killed(child);
    let deadline = Instant::now() + Duration::from_secs(30);
    let qmp = loop {
        match Qmp::connect(&socket, SOON).await {
            Ok(qmp) => break qmp,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(
        qmp.run("query-status", json!({})).await.unwrap()["status"],
        "prelaunch"
    );
    let refused = qmp.run("no-such-thing", json!({})).await.unwrap_err();
    assert!(matches!(refused, QmpError::Refused { .. }), "{refused}");
    let file = std::fs::File::open("/dev/null").unwrap();
    qmp.hand_over("state", file.as_fd()).await.unwrap();
    qmp.run("closefd", json!({ "fdname": "state" })).await.unwrap();
    let mut events = qmp.events();
    qmp.run("quit", json!({})).await.unwrap();
    assert_eq!(events.recv().await.unwrap().name, "SHUTDOWN");
    assert!(qemu.0.wait().unwrap().success());
    let gone = qmp.run("query-status", json!({})).await.unwrap_err();
    assert!(matches!(gone, QmpError::Gone(_)), "{gone}");
}
