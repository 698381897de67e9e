//! In which encoding content travels (RFC 9110, 12.5.3).
use http::{HeaderMap, header};

/// How content travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
}

/// The encoding of an answer; `None`: the client takes neither.
///
/// Ordinary clients list every encoding that they know without meaning it, and content inside a machine travels faster
/// as it is; contract 5.1 lets them have either. So gzip is for those who ask for gzip alone, or refuse what is not
/// encoded.
pub(super) fn choose(headers: &HeaderMap) -> Option<Encoding> {
    let mut gzip = None;
    let mut identity = None;
    let mut any = None;
    let mut others = false;
    let values = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok());
    for item in values.flat_map(|value| value.split(',')) {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let quality = quality.map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
        match name.as_str() {
            "" => {}
            "gzip" | "x-gzip" => gzip = Some(quality),
            "identity" => identity = Some(quality),
            "*" => any = Some(quality),
            _ => others |= quality > 0.0,
        }
    }
    let takes_gzip = gzip.or(any).unwrap_or(0.0) > 0.0;
    let takes_identity = identity.or(any.filter(|q| *q == 0.0)).unwrap_or(1.0) > 0.0;
    let means_gzip =
        gzip.is_some_and(|q| q > 0.0 && q >= identity.unwrap_or(0.0)) && !others && any.is_none();
    match (takes_gzip, takes_identity) {
        (true, false) => Some(Encoding::Gzip),
        (true, true) if means_gzip => Some(Encoding::Gzip),
        (_, true) => Some(Encoding::Identity),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, chosen: Option<Encoding>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, accept.parse().unwrap());
        assert_eq!(choose(&headers), chosen, "{accept}");
    }

    #[test]
    fn gzip_is_for_those_who_ask_for_it_alone() {
        check("gzip", Some(Encoding::Gzip));
        check("gzip;q=0.5", Some(Encoding::Gzip));
        check("gzip;q=1.0, identity;q=0.5", Some(Encoding::Gzip));
        check("gzip, deflate, br", Some(Encoding::Identity));
        check("gzip;q=0.5, identity", Some(Encoding::Identity));
        check("gzip;q=0", Some(Encoding::Identity));
        check("*", Some(Encoding::Identity));
        check("br", Some(Encoding::Identity));
        check("", Some(Encoding::Identity));
        assert_eq!(choose(&HeaderMap::new()), Some(Encoding::Identity));
    }

    #[test]
    fn who_refuses_identity_gets_gzip_or_nothing() {
        check("gzip, deflate, identity;q=0", Some(Encoding::Gzip));
        check("gzip, *;q=0", Some(Encoding::Gzip));
        check("br, identity;q=0", None);
        check("*;q=0", None);
    }
}
