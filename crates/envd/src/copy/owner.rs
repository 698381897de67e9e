//! To whom it belongs what is copied: `user[:group]`, by names or numbers (chown(1)).
use super::place::Owner;
use crate::users::{self, User};

/// Whom a COPY names; whoever is not there is told of.
pub(super) fn parse(owner: &str) -> Result<Owner, String> {
    let (user, group) = match owner.split_once(':') {
        // `u` means `u:u` (contract 4.2).
        None => (owner, None),
        Some((user, group)) => (user, Some(group)),
    };
    let account = User::find(user);
    let uid = match (&account, number(user)) {
        (Some(account), _) => account.uid,
        (None, Some(uid)) => uid,
        (None, None) => {
            return Err(format!(
                "the owner '{owner}' of COPY is no user: '{user}' does not exist"
            ));
        }
    };
    let own_group = account.map(|account| account.gid);
    let gid = match group {
        // The group of the same name; a user whose group has another name has that.
        None => users::group_number(user).or_else(|| number(user)).or(own_group),
        Some("") => own_group.or(Some(uid)),
        Some(group) => users::group_number(group).or_else(|| number(group)),
    };
    match gid {
        Some(gid) => Ok(Owner { uid, gid }),
        None => Err(format!(
            "the owner '{owner}' of COPY names a group that does not exist"
        )),
    }
}

/// The number of somebody who needs no name. The last one means nobody to the kernel.
fn number(text: &str) -> Option<u32> {
    let is_digits = text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|number| is_digits && *number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_names_and_numbers() {
        let check =
            |owner: &str, uid: u32, gid: u32| assert_eq!(parse(owner), Ok(Owner { uid, gid }), "{owner}");
        check("root", 0, 0);
        check("root:root", 0, 0);
        check("root:", 0, 0);
        check("0:0", 0, 0);
        check("54321", 54321, 54321);
        check("54321:54322", 54321, 54322);
        check("root:54322", 0, 54322);
    }

    #[test]
    fn who_is_not_there_is_no_owner() {
        for owner in [
            "",
            ":",
            "nobody-has-this",
            "root:nobody-has-this",
            "-1",
            "+5",
            "4294967295",
            "1:2:3",
            "1.2",
        ] {
            assert!(parse(owner).is_err(), "{owner}");
        }
    }
}
