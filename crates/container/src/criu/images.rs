//! What Atoll itself knows of CRIU's images.
use std::ffi::OsStr;
use std::io;

use super::wire::{self, Value, Writer};

/// Every image begins with two words (`magic.h` of CRIU), and these two begin the one that tells users.
const MAGIC: [u32; 2] = [0x5456_4319, 0x5547_4906];

/// Whether this is the image of a user namespace.
pub(crate) fn tells_users(name: &OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| name.starts_with("userns-") && name.ends_with(".img"))
}

/// The image of a user namespace (`userns_entry`), as it is with these users of the host instead: they begin with `first`.
///
/// # Errors
/// It is no such image, or has other users than a machine's.
pub(crate) fn with_users(image: &[u8], first: u32) -> io::Result<Vec<u8>> {
    let (head, rest) = image.split_at_checked(12).ok_or_else(broken)?;
    let word = |at: usize| {
        let bytes = head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    let length = usize::try_from(word(8)).map_err(|_| broken())?;
    if [word(0), word(4)] != MAGIC || rest.len() != length {
        return Err(broken());
    }
    let mut users = Writer::default();
    let mut maps = 0;
    // The maps of users and of groups, each of one extent: first inside, first outside, how many.
    for (field, value) in wire::fields(rest)? {
        let extent: Vec<(u32, Value<'_>)> = wire::fields(value.bytes().ok_or_else(broken)?)?;
        let number = |field: u32| {
            extent
                .iter()
                .find(|(found, _)| *found == field)
                .and_then(|(_, value)| value.number())
        };
        let (Some(0), Some(_), Some(count)) = (number(1), number(2), number(3)) else {
            return Err(broken());
        };
        let mut changed = Writer::default();
        changed.number(1, 0).number(2, u64::from(first)).number(3, count);
        users.bytes(field, &changed.done());
        maps += 1;
    }
    if maps != 2 {
        return Err(broken());
    }
    let users = users.done();
    let mut made = head[..8].to_vec();
    made.extend(u32::try_from(users.len()).map_err(|_| broken())?.to_le_bytes());
    made.extend(users);
    Ok(made)
}

fn broken() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it is no image of a machine's user namespace",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(first: u32) -> Vec<u8> {
        let mut extent = Writer::default();
        extent.number(1, 0).number(2, u64::from(first)).number(3, 65_536);
        let extent = extent.done();
        let mut users = Writer::default();
        users.bytes(1, &extent).bytes(2, &extent);
        let users = users.done();
        let mut image: Vec<u8> = MAGIC.iter().flat_map(|word| word.to_le_bytes()).collect();
        image.extend(u32::try_from(users.len()).unwrap().to_le_bytes());
        image.extend(users);
        image
    }

    #[test]
    fn a_machines_users_are_moved() {
        assert_eq!(with_users(&image(0x1000_0000), 7).unwrap(), image(7));
    }

    #[test]
    fn what_is_no_such_image_is_refused() {
        let good = image(1);
        for length in 0..good.len() {
            assert!(with_users(&good[..length], 7).is_err(), "{length}");
        }
        let mut other = good;
        other[4] ^= 1;
        assert!(with_users(&other, 7).is_err());
    }
}
