//! The launcher may die.
use ports::runtime::Disk;

use crate::client::run;
use crate::house::with_house_in;

/// The launcher of the house at `dir`: a child of this process of which several tests have one each.
fn launchers() -> Vec<i32> {
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat
                .rsplit_once(") ")
                .and_then(|(_, rest)| rest.split(' ').nth(1));
            stat.contains("(atoll-launcher)") && parent == Some(&own)
        })
        .collect()
}

#[test]
fn a_dead_launcher_is_replaced_and_machines_do_not_notice() {
    let dir = tempfile::tempdir().expect("a directory");
    with_house_in(dir.path(), 0, async |house| {
        let before = house.start().await;
        run(&*before, "user", "echo kept > ~/file").await;
        // Those of other tests, which run beside this one, are replaced just so.
        let killed = launchers();
        assert!(!killed.is_empty());
        for pid in &killed {
            let pid = rustix::process::Pid::from_raw(*pid).expect("a number");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is killed");
        }
        let after = house.start().await;
        assert_eq!(
            run(&*after, "user", "hostname").await.trim(),
            after.sandbox().to_string()
        );
        assert_eq!(run(&*before, "user", "cat ~/file").await, "kept\n");
        before.freeze().await.expect("it freezes");
        before.thaw().await.expect("it thaws");
        before.stop(Disk::Keep).await.expect("it stops");
        after.stop(Disk::Discard).await.expect("it stops");
    });
}
