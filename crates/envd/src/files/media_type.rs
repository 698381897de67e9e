//! What kind of content a file holds: by its name, else by its first bytes.

/// How much of a file is looked at.
pub(super) const SNIFFED_BYTES: usize = 512;

/// Names that clients and browsers care about.
const BY_NAME: [(&str, &str); 34] = [
    ("avif", "image/avif"),
    ("bmp", "image/bmp"),
    ("css", "text/css; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("gif", "image/gif"),
    ("gz", "application/gzip"),
    ("htm", "text/html; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/x-icon"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("log", "text/plain; charset=utf-8"),
    ("md", "text/markdown; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("ogg", "audio/ogg"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("py", "text/x-python; charset=utf-8"),
    ("sh", "text/x-sh; charset=utf-8"),
    ("svg", "image/svg+xml"),
    ("tar", "application/x-tar"),
    ("txt", "text/plain; charset=utf-8"),
    ("wasm", "application/wasm"),
    ("wav", "audio/wav"),
    ("webm", "video/webm"),
    ("webp", "image/webp"),
    ("xml", "text/xml; charset=utf-8"),
    ("yaml", "application/yaml"),
    ("yml", "application/yaml"),
    ("zip", "application/zip"),
];

/// First bytes that say it all.
const BY_CONTENT: [(&[u8], &str); 8] = [
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"\x1f\x8b\x08", "application/gzip"),
    (b"PK\x03\x04", "application/zip"),
    (b"<!DOCTYPE html", "text/html; charset=utf-8"),
    (b"<html", "text/html; charset=utf-8"),
];

/// The type that a name tells.
pub(super) fn by_name(name: &str) -> Option<&'static str> {
    let (_, extension) = name.rsplit_once('.')?;
    let found = BY_NAME
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(extension));
    found.map(|(_, media_type)| *media_type)
}

/// The type that the first [`SNIFFED_BYTES`] tell.
pub(super) fn by_content(first: &[u8]) -> &'static str {
    if let Some((_, media_type)) = BY_CONTENT.iter().find(|(magic, _)| first.starts_with(magic)) {
        return media_type;
    }
    let is_text = |byte: &u8| *byte >= 0x20 || matches!(byte, b'\t' | b'\n' | b'\x0c' | b'\r' | 0x1b);
    if first.iter().all(is_text) {
        "text/plain; charset=utf-8"
    } else {
        "application/octet-stream"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_and_content_tells_the_rest() {
        assert_eq!(by_name("a.JSON"), Some("application/json"));
        assert_eq!(by_name("archive.tar.gz"), Some("application/gzip"));
        assert_eq!(by_name("Makefile"), None);
        assert_eq!(by_content(b"hello\n"), "text/plain; charset=utf-8");
        assert_eq!(by_content(b"\x7fELF\x02\x01\x01\0"), "application/octet-stream");
        assert_eq!(by_content(b"\x89PNG\r\n\x1a\n..."), "image/png");
    }
}
