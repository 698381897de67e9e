use super::*;

#[derive(Debug, serde::Deserialize)]
#[expect(dead_code, reason = "it is only ever refused")]
struct Known {
    names: std::collections::BTreeMap<String, u8>,
}

#[test]
fn a_refusal_repeats_no_more_than_a_little_of_what_was_sent() {
    let long = "x".repeat(100_000);
    for body in [
        format!("{{\"names\": {{\"{long}\": \"{long}\"}}}}"),
        format!("{{\"names\": \"{long}\"}}"),
        format!("\"{long}\""),
        format!("{{\"names\": {{}}}} {long}"),
    ] {
        let refused = format!("{:?}", parse::<Known>(body.as_bytes()).unwrap_err());
        assert!(refused.len() < 1000, "{} characters", refused.len());
    }
    let refused = format!("{:?}", parse::<Known>(b"{\"names\": {\"a\": 300}}").unwrap_err());
    assert!(refused.contains("'names.a' is not what is expected"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_awaited_for_ever() {
    let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let request = Request::new(axum::body::Body::from_stream(never));
    let refused = format!("{:?}", read(request).await.unwrap_err());
    assert!(refused.contains("408"), "{refused}");
}

#[test]
fn ids_that_could_be_somebodys_are_told_from_nonsense() {
    let id = SandboxId::random();
    assert_eq!(known_sandbox_id(&format!("{id}-client")).unwrap(), Some(id));
    assert_eq!(known_sandbox_id("abc").unwrap(), None);
    for nonsense in ["", "-x", "ABC", "a_b", "i0123456789abcdefghi\u{e9}"] {
        assert!(known_sandbox_id(nonsense).is_err(), "{nonsense}");
    }
}
