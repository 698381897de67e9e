use super::*;

fn token(text: &str) -> Secret<String> {
    Secret::new(text.to_owned())
}

/// As the clients sign: the text's SHA-256 in the standard alphabet, escaped for a query.
fn sign(text: &str) -> String {
    let mut signature = String::from("v1_");
    for byte in BASE64_STANDARD_NO_PAD.encode(Sha256::digest(text)).bytes() {
        match byte {
            b'+' => signature += "%2B",
            b'/' => signature += "%2F",
            byte => signature.push(char::from(byte)),
        }
    }
    signature
}

fn url(method: &Method, query: &str) -> Result<SignedUrl, Unsigned> {
    SignedUrl::of(method, "/files", query).expect("it could be signed")
}

#[test]
fn the_hash_is_the_published_one() {
    // SHA-256("abc"), FIPS 180-2, appendix B.1.
    assert_eq!(sign("abc"), "v1_ungWv48Bz%2BpBQUDeXa4iI7ADYaOWF3qctBD%2FYfIAFa0");
}

#[test]
fn a_url_is_found_by_the_token_that_signed_it() {
    let cases = [
        (
            Method::GET,
            "path=/home/user/a%20b.txt&username=user",
            "/home/user/a b.txt:read:user:tok",
        ),
        (Method::GET, "path=%2Fa+b&username=user", "/a b:read:user:tok"),
        (Method::POST, "path=/x&username=root", "/x:write:root:tok"),
        (Method::POST, "", ":write::tok"),
        (
            Method::GET,
            "path=/x&signature_expiration=1700000000",
            "/x:read::tok:1700000000",
        ),
        (Method::GET, "signature_expiration=-5&path=/x", "/x:read::tok:-5"),
    ];
    for (method, query, signs) in cases {
        let url = url(&method, &format!("{query}&signature={}", sign(signs))).expect("a signature");
        assert!(url.check().is_signed_with(&token("tok")), "{query}");
        assert!(!url.check().is_signed_with(&token("tik")), "{query}");
    }
}

#[test]
fn a_signature_for_one_thing_opens_no_other() {
    let signature = sign("/x:read:user:tok");
    for (method, query) in [
        (Method::POST, "path=/x&username=user"),
        (Method::GET, "path=/y&username=user"),
        (Method::GET, "path=/x&username=root"),
        (
            Method::GET,
            "path=/x&username=user&signature_expiration=9999999999",
        ),
    ] {
        let url = url(&method, &format!("{query}&signature={signature}")).expect("a signature");
        assert!(!url.check().is_signed_with(&token("tok")), "{method} {query}");
    }
}

#[test]
fn what_is_no_signature_is_said_in_envds_words() {
    assert_eq!(url(&Method::GET, "path=/x"), Err(Unsigned::Missing));
    for bad in [
        "",
        "v1_",
        "v1_abc",
        "v2_ungWv48Bz%2BpBQUDeXa4iI7ADYaOWF3qctBD%2FYfIAFa0",
        "v1_%00%ff",
    ] {
        assert_eq!(
            url(&Method::GET, &format!("signature={bad}")),
            Err(Unsigned::Invalid),
            "{bad}"
        );
    }
    assert_eq!(SignedUrl::of(&Method::GET, "/health", ""), None);
    assert_eq!(SignedUrl::of(&Method::DELETE, "/files", ""), None);
}

proptest::proptest! {
    #[test]
    fn any_query_is_read_or_refused(query in ".{0,300}") {
        let _ = SignedUrl::of(&Method::GET, "/files", &query);
    }
}
