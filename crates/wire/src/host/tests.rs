use proptest::prelude::*;

use super::*;

const ID: &str = "i0123456789abcdefghij";

fn host(text: &str) -> Result<Target, HostRefused> {
    Target::of(Asked {
        host: Some(text.as_bytes()),
        ..Asked::default()
    })
}

fn headers(host: &str, id: Option<&str>, port: Option<&str>) -> Result<Target, HostRefused> {
    Target::of(Asked {
        host: Some(host.as_bytes()),
        id: id.map(str::as_bytes),
        port: port.map(str::as_bytes),
    })
}

fn at(port: u16) -> Result<Target, HostRefused> {
    Ok(Target {
        sandbox: ID.parse().unwrap(),
        port,
    })
}

#[test]
fn a_host_names_its_port_and_sandbox() {
    assert_eq!(host(&format!("8000-{ID}.atoll.localhost")), at(8000));
    assert_eq!(host(&format!("8000-{ID}.atoll.localhost:3002")), at(8000));
    assert_eq!(host(&format!("49983-{ID}-6532622b.e2b.app")), at(49983));
    assert_eq!(host(&format!("08000-{ID}.x")), at(8000));
}

#[test]
fn a_host_that_names_none_is_refused_by_name() {
    for text in [
        "",
        "localhost",
        "localhost:3002",
        "127.0.0.1:3002",
        "[::1]:3002",
        "example.com",
    ] {
        assert_eq!(host(text), Err(HostRefused::Host), "{text}");
    }
    assert_eq!(host(&format!("8000-{ID}")), Err(HostRefused::Host));
    assert_eq!(
        host(&format!("8000-{ID}.{}", "x".repeat(300))),
        Err(HostRefused::Host)
    );
    for text in [
        format!("8000-{}.x", ID.to_uppercase()),
        "8000-.x".into(),
        "8000-a_b.x".into(),
    ] {
        assert_eq!(host(&text), Err(HostRefused::Id), "{text}");
    }
    for port in ["", "0", "65536", "+80", "8o", "999999999999"] {
        assert_eq!(host(&format!("{port}-{ID}.x")), Err(HostRefused::Port), "{port}");
    }
    assert_eq!(host("8000-abc.x"), Err(HostRefused::Foreign("abc".into())));
}

#[test]
fn headers_speak_where_the_host_does_not() {
    for name in [
        "localhost:3002",
        "127.0.0.1",
        "sandbox.e2b.app",
        "my-proxy.example.com",
        "127-0.nip.io",
        "",
    ] {
        assert_eq!(headers(name, Some(ID), Some("49983")), at(49983), "{name}");
    }
    assert_eq!(headers("x", Some(&format!("{ID}-6532622b")), Some("80")), at(80));
}

#[test]
fn a_host_that_speaks_beats_the_headers() {
    let other = SandboxId::random().to_string();
    assert_eq!(
        headers(&format!("8000-{ID}.x"), Some(&other), Some("1")),
        at(8000)
    );
    assert_eq!(headers(&format!("8000-{ID}.x"), Some(&other), None), at(8000));
}

#[test]
fn half_of_the_headers_names_the_other_half() {
    assert_eq!(
        headers("x", Some(ID), None),
        Err(HostRefused::MissingHeader(SANDBOX_PORT_HEADER))
    );
    assert_eq!(
        headers("x", None, Some("80")),
        Err(HostRefused::MissingHeader(SANDBOX_ID_HEADER))
    );
    assert_eq!(headers("x", Some("A"), Some("80")), Err(HostRefused::Id));
    assert_eq!(headers("x", Some(ID), Some("http")), Err(HostRefused::Port));
}

#[test]
fn bad_hosts_are_the_callers_fault_and_unknown_sandboxes_are_away() {
    assert!(
        HostRefused::MissingHeader(SANDBOX_ID_HEADER)
            .to_string()
            .starts_with("missing header")
    );
    assert_eq!(HostRefused::Host.status(), 400);
    assert_eq!(HostRefused::Foreign(String::new()).status(), 502);
}

proptest! {
    #[test]
    fn any_target_is_read_back_from_its_host(id in "i[a-z0-9]{20}", port in 1u16.., domain in "[a-z0-9.-]{1,60}") {
        let target = Target { sandbox: id.parse().unwrap(), port };
        prop_assert_eq!(host(&format!("{target}.{domain}")), Ok(target));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(
        host in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..400)),
        id in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..400)),
        port in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..400)),
    ) {
        let asked = Asked { host: host.as_deref(), id: id.as_deref(), port: port.as_deref() };
        match Target::of(asked) {
            Ok(target) => prop_assert!(target.port != 0),
            Err(refused) => prop_assert!(refused.to_string().len() < 100 && refused.status() >= 400),
        }
    }

    #[test]
    fn what_almost_parses_is_refused_without_panic(text in "[0-9]{0,7}-?[a-z0-9-]{0,30}\\.?[a-z.:]{0,20}") {
        let _ = host(&text);
    }
}
