//! Pairs of a query, decoded and nothing mended.
use percent_encoding::percent_decode_str;

/// Why a text is not a form: the name of what is not UTF-8 when it is decoded, as far as it can be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotUtf8(pub(crate) String);

/// The pairs of `a=b&c=d`, where a plus is a space and `%` begins a byte.
pub(crate) fn pairs(text: &str) -> impl Iterator<Item = Result<(String, String), NotUtf8>> {
    text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match (decoded(name), decoded(value)) {
            (Some(name), Some(value)) => Ok((name, value)),
            (name, _) => Err(NotUtf8(name.unwrap_or_else(|| name_as_sent(pair)))),
        }
    })
}

fn name_as_sent(pair: &str) -> String {
    pair.split('=').next().unwrap_or_default().to_owned()
}

fn decoded(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced)
        .decode_utf8()
        .ok()
        .map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Result<Vec<(String, String)>, NotUtf8> {
        pairs(text).collect()
    }

    #[test]
    fn pairs_are_decoded() {
        let expected = [("a b", "c&d"), ("e", ""), ("", "f"), ("g", "h=i")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(all("a+b=c%26d&&e&=f&g=h=i").unwrap(), expected);
        assert_eq!(all("").unwrap(), []);
    }

    #[test]
    fn what_is_not_utf8_is_named() {
        assert_eq!(all("a=b&c=%ff"), Err(NotUtf8("c".into())));
        assert_eq!(all("%ff=b"), Err(NotUtf8("%ff".into())));
    }
}
