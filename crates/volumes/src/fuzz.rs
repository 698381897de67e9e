//! What holds for whatever a guest says, for `cargo xtask fuzz` and for tests.
use crate::fuse::{Asked, PIECE_BYTES_MAX, Request};

/// A request to a volume: what is understood of it leads out of no directory, and is no larger than what was said.
///
/// # Panics
/// Where that does not hold.
pub fn volume(data: &[u8]) {
    let Ok(Asked { request, .. }) = Asked::parse(data) else {
        return;
    };
    let names = match request {
        Request::Lookup { name }
        | Request::Symlink { name, .. }
        | Request::MkNod { name, .. }
        | Request::MkDir { name, .. }
        | Request::Unlink { name }
        | Request::RmDir { name }
        | Request::Link { name, .. }
        | Request::Create { name, .. } => vec![name],
        Request::Rename { name, new_name, .. } => vec![name, new_name],
        Request::Read { size, .. } | Request::ReadDir { size, .. } => {
            assert!(size <= PIECE_BYTES_MAX);
            Vec::new()
        }
        Request::Write { data: written, .. } => {
            assert!(written.len() < data.len());
            Vec::new()
        }
        _ => Vec::new(),
    };
    for name in names.iter().map(|name| name.to_bytes()) {
        assert!((1..=255).contains(&name.len()) && !name.contains(&b'/'));
        assert!(!matches!(name, b"." | b".."));
    }
}
