use super::*;

fn tree(files: &[(&str, u32)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, mode) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "text").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
    }
    dir
}

#[test]
fn overrides_for_users_that_a_sandbox_lacks_are_dropped() {
    let text = "root ssl-cert 710 /etc/ssl/private\nroot messagebus 4754 /usr/lib/x\nroot mail 2755 /usr/bin/y\n#0 #107 755 /z\n";
    assert_eq!(
        overrides_of(text, PASSWD, GROUP),
        "root mail 2755 /usr/bin/y\n#0 #107 755 /z\n"
    );
}

#[test]
fn credentials_of_archives_and_proxies_stay_on_the_host() {
    for (text, expected) in [
        (
            "deb [signed-by=/k.gpg] https://me:secret@example.com/debian stable main\n",
            "deb [signed-by=/k.gpg] https://example.com/debian stable main\n",
        ),
        (
            "Acquire::http::Proxy \"http://a:p@ss@proxy:3128\";\n",
            "Acquire::http::Proxy \"http://proxy:3128\";\n",
        ),
        (
            "URIs: http://deb.debian.org/debian\n# me@example.com\n",
            "URIs: http://deb.debian.org/debian\n# me@example.com\n",
        ),
        ("URIs: https://token@host", "URIs: https://host"),
        ("https://host/a@b", "https://host/a@b"),
    ] {
        assert_eq!(without_credentials(text), expected);
    }
}

#[test]
fn what_others_may_not_read_is_not_copied_nor_what_lies_below_it() {
    let from = tree(&[
        ("certs/ca.pem", 0o644),
        ("private/open.key", 0o644),
        ("secret", 0o640),
    ]);
    fs::set_permissions(from.path().join("private"), fs::Permissions::from_mode(0o710)).unwrap();
    fs::set_permissions(from.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let to = tempfile::tempdir().unwrap();
    let copied = to.path().join("ssl");
    copy(from.path(), &copied).unwrap();
    assert!(copied.join("certs/ca.pem").exists());
    assert!(!copied.join("private").exists());
    assert!(!copied.join("secret").exists());
}

#[test]
fn python_is_added_only_where_there_is_none() {
    let sudo = tree(&[("sudo", 0o755)]);
    for (files, expected) in [
        (&["bin/python3"][..], Some("/usr/bin/python3")),
        (&["local/bin/python3"], Some("/usr/local/bin/python3")),
        (&["bin/python3", "bin/python"], None),
        (&["bin/python3", "local/bin/python"], None),
        (&["bin/perl"], None),
    ] {
        let usr = tree(&files.iter().map(|name| (*name, 0o755)).collect::<Vec<_>>());
        let layer = tempfile::tempdir().unwrap();
        own_programs(usr.path(), layer.path(), &sudo.path().join("sudo")).unwrap();
        let link = fs::read_link(layer.path().join("local/bin/python")).ok();
        assert_eq!(link.as_deref(), expected.map(Path::new), "{files:?}");
    }
}
