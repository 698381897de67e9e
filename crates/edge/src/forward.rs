//! What changes about a message on its way through: as little as HTTP demands (RFC 9110, section 7.6).
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, request, response};
use wire::host::HostRefused;

/// Headers that speak of one connection, beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Whom the request names: the authority of its target, or its one `Host` (RFC 9112, section 3.2).
pub(crate) fn host(uri: &Uri, headers: &HeaderMap) -> Result<Option<HeaderValue>, HostRefused> {
    if let Some(authority) = uri.authority() {
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        return HeaderValue::from_str(host)
            .map(Some)
            .map_err(|_| HostRefused::Host);
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (host, None) => Ok(host.cloned()),
        (_, Some(_)) => Err(HostRefused::Host),
    }
}

/// The protocol that an HTTP/1.1 request wants to go on with. HTTP/2 in clear text is none: through it, requests
/// would pass that nobody looks at.
pub(crate) fn upgrade(version: Version, method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
    if version != Version::HTTP_11 || method != Method::GET {
        return None;
    }
    let protocol = headers.get(UPGRADE)?;
    let asked = tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let h2c = protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2");
    (asked && !h2c).then(|| protocol.clone())
}

/// Makes a client's request one of the connection into the sandbox.
pub(crate) fn request(parts: &mut request::Parts, upgrade: Option<HeaderValue>) {
    strip(&mut parts.headers);
    parts.headers.remove("http2-settings");
    if let Some(protocol) = upgrade {
        parts.headers.insert(UPGRADE, protocol);
        parts
            .headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if parts.uri.authority().is_some() {
        parts.uri = origin_form(&parts.uri);
    }
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    parts.version = Version::HTTP_11;
}

/// Says where the body of a request ends, where its length is not known: hyper's client takes a GET or HEAD that does not
/// say so to have none. A length that came beside such a body is not its length (RFC 9112, section 6.3).
pub(crate) fn frame(headers: &mut HeaderMap, length: Option<u64>) {
    if length.is_none() {
        headers.remove(CONTENT_LENGTH);
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Names the host that the service sees, and the one that the client asked for where the two differ.
pub(crate) fn name_host(headers: &mut HeaderMap, asked: Option<&HeaderValue>, seen: Option<HeaderValue>) {
    let empty = || HeaderValue::from_static("");
    let asked = asked.cloned().unwrap_or_else(empty);
    match seen {
        Some(seen) => {
            headers.insert(HOST, seen);
            headers.insert(FORWARDED_HOST, asked);
        }
        None => {
            headers.insert(HOST, asked);
        }
    }
}

/// Makes a service's response one of the client's connection.
pub(crate) fn response(parts: &mut response::Parts) {
    strip(&mut parts.headers);
    // The client's connection decides for itself which version it speaks.
    parts.version = Version::HTTP_11;
}

fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers).filter_map(|token| token.parse().ok()).collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The options that `Connection` lists.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query()
        .filter(|path| !path.as_str().is_empty())
        .map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()))
}

/// HTTP/2 may split cookies into several fields; HTTP/1.1 may not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(b"; ".as_slice())) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(request: request::Builder) -> request::Parts {
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn what_speaks_of_one_connection_stays_on_it() {
        let mut parts = parts(
            Request::get("/")
                .header("connection", "close, x-mine")
                .header("x-mine", "1")
                .header("keep-alive", "timeout=5")
                .header("te", "trailers")
                .header("upgrade", "websocket")
                .header("transfer-encoding", "chunked")
                .header("x-other", "2"),
        );
        request(&mut parts, None);
        assert_eq!(parts.headers.len(), 1);
        assert_eq!(parts.headers["x-other"], "2");
    }

    #[test]
    fn a_target_in_absolute_form_becomes_a_path_and_names_the_host() {
        let mut parts = parts(Request::get("http://user@a.example:80/x?y=z").header("host", "b.example"));
        let named = host(&parts.uri, &parts.headers)
            .expect("one host")
            .expect("a host");
        request(&mut parts, None);
        name_host(&mut parts.headers, Some(&named), None);
        assert_eq!(parts.uri, "/x?y=z");
        assert_eq!(parts.headers["host"], "a.example:80");
    }

    #[test]
    fn two_hosts_are_none() {
        let parts = parts(Request::get("/").header("host", "a").header("host", "b"));
        assert_eq!(host(&parts.uri, &parts.headers), Err(HostRefused::Host));
    }

    #[test]
    fn a_masked_host_leaves_the_asked_one_in_another_header() {
        let mut headers = HeaderMap::new();
        let asked = HeaderValue::from_static("8000-i.x");
        name_host(
            &mut headers,
            Some(&asked),
            Some(HeaderValue::from_static("localhost")),
        );
        assert_eq!(headers["host"], "localhost");
        assert_eq!(headers["x-forwarded-host"], "8000-i.x");
    }

    #[test]
    fn only_a_request_that_asks_for_it_changes_the_protocol() {
        let ask = |connection: &str, protocol: &str| {
            let parts = parts(
                Request::get("/")
                    .header("connection", connection)
                    .header("upgrade", protocol),
            );
            upgrade(parts.version, &parts.method, &parts.headers).is_some()
        };
        assert!(ask("keep-alive, Upgrade", "websocket"));
        assert!(!ask("keep-alive", "websocket"));
        assert!(!ask("upgrade, http2-settings", "h2c"));
    }

    #[test]
    fn cookies_of_http_2_become_one() {
        let mut parts = parts(
            Request::get("https://a.example/")
                .version(Version::HTTP_2)
                .header("cookie", "a=1")
                .header("cookie", "b=2"),
        );
        request(&mut parts, None);
        let cookies: Vec<_> = parts.headers.get_all("cookie").iter().collect();
        assert_eq!(cookies, ["a=1; b=2"]);
    }
}
