//! How a part of a form is named: `Content-Disposition` (RFC 7578, 4.2; RFC 2183).
use http::HeaderMap;
use http::header::CONTENT_DISPOSITION;
use percent_encoding::percent_decode;

/// The two names of a part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Disposition {
    /// Of the field.
    pub(super) name: String,
    /// Of the file, whole: it may be a path.
    pub(super) file_name: Option<String>,
}

impl Disposition {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        headers
            .get(CONTENT_DISPOSITION)
            .map(|value| Self::parse(value.as_bytes()))
            .unwrap_or_default()
    }

    fn parse(value: &[u8]) -> Self {
        let mut disposition = Self::default();
        let mut extended = None;
        let mut rest = value;
        while let Some(semicolon) = unquoted_semicolon(rest) {
            rest = &rest[semicolon + 1..];
            let end = unquoted_semicolon(rest).unwrap_or(rest.len());
            let Some(equals) = rest[..end].iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (key, value) = (rest[..equals].trim_ascii(), rest[equals + 1..end].trim_ascii());
            match key.to_ascii_lowercase().as_slice() {
                b"name" => disposition.name = text(value),
                b"filename" => disposition.file_name = Some(text(value)),
                b"filename*" => extended = extended_text(value),
                _ => {}
            }
        }
        disposition.file_name = extended.or(disposition.file_name);
        disposition
    }
}

/// Where the next semicolon outside of quotes is.
fn unquoted_semicolon(text: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.iter().position(|byte| {
        let is_end = *byte == b';' && !quoted;
        quoted ^= *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && quoted && !escaped;
        is_end
    })
}

/// A value, with what browsers and HTTP libraries escape in it: `\"`, `\\`, `%22`, and `%0A` and its like for the control
/// characters, but for ESC, which they leave as it is. A `%` itself is not escaped, so nothing else is restored.
fn text(value: &[u8]) -> String {
    let Some(inner) = value.strip_prefix(b"\"") else {
        return String::from_utf8_lossy(value).into_owned();
    };
    let inner = inner.strip_suffix(b"\"").unwrap_or(inner);
    let mut plain = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some((byte, after)) = rest.split_first() {
        (plain, rest) = match (byte, after) {
            (b'\\', [escaped @ (b'"' | b'\\'), after @ ..]) => (pushed(plain, *escaped), after),
            (b'%', [b'2', b'2', after @ ..]) => (pushed(plain, b'"'), after),
            (b'%', [sixteens @ (b'0' | b'1'), ones, after @ ..])
                if ones.is_ascii_hexdigit() && control(*sixteens, *ones) != ESC =>
            {
                (pushed(plain, control(*sixteens, *ones)), after)
            }
            _ => (pushed(plain, *byte), after),
        };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

const ESC: u8 = 0x1b;

/// The control character of two digits, the first of which is `0` or `1`.
fn control(sixteens: u8, ones: u8) -> u8 {
    let ones = (ones as char)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok());
    (sixteens - b'0') * 16 + ones.unwrap_or(0)
}

fn pushed(mut bytes: Vec<u8>, byte: u8) -> Vec<u8> {
    bytes.push(byte);
    bytes
}

/// `utf-8''percent%20encoded` (RFC 8187).
fn extended_text(value: &[u8]) -> Option<String> {
    let mut parts = value.splitn(3, |byte| *byte == b'\'');
    let (charset, _language, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    charset
        .eq_ignore_ascii_case(b"utf-8")
        .then(|| percent_decode(encoded).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &str, name: &str, file_name: Option<&str>) {
        let parsed = Disposition::parse(value.as_bytes());
        assert_eq!(
            (parsed.name.as_str(), parsed.file_name.as_deref()),
            (name, file_name),
            "{value}"
        );
    }

    #[test]
    fn names_are_taken_whole() {
        check(
            r#"form-data; name="file"; filename="/home/user/a b.txt""#,
            "file",
            Some("/home/user/a b.txt"),
        );
        check(
            r#"form-data; name="file"; filename="a;b=c.txt""#,
            "file",
            Some("a;b=c.txt"),
        );
        check(r#"form-data; name=file; filename=x"#, "file", Some("x"));
        check(r#"form-data; name="file""#, "file", None);
        check(
            r#"form-data; name="file"; filename="ünï/日本.txt""#,
            "file",
            Some("ünï/日本.txt"),
        );
        check("form-data", "", None);
    }

    #[test]
    fn what_clients_escape_is_restored_and_nothing_else() {
        check(
            r#"form-data; name="file"; filename="a%22b%0Ac%20d""#,
            "file",
            Some("a\"b\nc%20d"),
        );
        check(
            r#"form-data; name="file"; filename="a%09b%1fc%1Bd%0""#,
            "file",
            Some("a\tb\x1fc%1Bd%0"),
        );
        check(
            r#"form-data; name="file"; filename="a\"b\\c\d""#,
            "file",
            Some(r#"a"b\c\d"#),
        );
        check(
            r#"form-data; name="file"; filename="x\\"; other=1"#,
            "file",
            Some(r"x\"),
        );
        check(
            "form-data; name=file; filename=x; filename*=UTF-8''%e2%82%ac",
            "file",
            Some("€"),
        );
    }
}
