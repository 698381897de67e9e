//! Lines of `/etc/passwd`, `/etc/group` and their like (passwd(5), group(5), shadow(5)).
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a system without accounts begins with.
pub(super) const ROOT_ACCOUNT: &str = "root:x:0:0:root:/root:/bin/bash\n";
pub(super) const ROOT_GROUP: &str = "root:x:0:\n";

/// Numbers of people (login.defs(5): `UID_MIN`, `UID_MAX`).
const NUMBERS: std::ops::RangeInclusive<u32> = 1000..=60_000;

/// A line of passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: String,
}

/// What a new account gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The account of this name, or with this number.
pub(super) fn find(passwd: &str, name: &str) -> Option<Account> {
    let accounts = || passwd.lines().filter_map(account);
    let by_name = accounts().find(|account| account.name == name);
    let number = || {
        name.parse::<u32>()
            .ok()
            .filter(|number| number.to_string() == name)
    };
    by_name.or_else(|| number().and_then(|uid| accounts().find(|account| account.uid == uid)))
}

fn account(line: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields[..] else {
        return None;
    };
    Some(Account {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: if home.is_empty() { "/" } else { home }.to_owned(),
    })
}

/// Whether somebody or a group of this name has a line.
pub(super) fn has(text: &str, name: &str) -> bool {
    text.lines().any(|line| line.split(':').next() == Some(name))
}

/// Numbers for a new account: one for itself and its group, above those that are taken; a group of its name is its own.
pub(super) fn numbers(passwd: &str, group: &str, name: &str) -> Option<Numbers> {
    let taken = |text: &str| -> BTreeSet<u32> {
        let numbers = text
            .lines()
            .filter_map(|line| line.split(':').nth(2)?.parse().ok());
        numbers.filter(|number| NUMBERS.contains(number)).collect()
    };
    let (uids, gids) = (taken(passwd), taken(group));
    let own_group = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    });
    let is_free = |number: &u32| !uids.contains(number) && (own_group.is_some() || !gids.contains(number));
    let above = uids.last().map_or(*NUMBERS.start(), |last| last + 1);
    let uid = (above..=*NUMBERS.end()).chain(NUMBERS).find(is_free)?;
    Some(Numbers {
        uid,
        gid: own_group.unwrap_or(uid),
    })
}

/// The same text with one more line.
pub(super) fn with_line(text: &str, line: &str) -> String {
    let break_ = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    format!("{text}{break_}{line}\n")
}

/// The same groups with one more member of one; `None`, where it is one already.
pub(super) fn with_member(groups: &str, group: &str, name: &str) -> Option<String> {
    let mut text = String::with_capacity(groups.len() + name.len() + 1);
    let mut is_added = false;
    for line in groups.split_inclusive('\n') {
        let content = line.trim_end_matches('\n');
        let fields: Vec<&str> = content.split(':').collect();
        match fields[..] {
            [this, _, _, members] if this == group && !is_added => {
                if members.split(',').any(|member| member == name) {
                    return None;
                }
                let comma = if members.is_empty() || members.ends_with(',') {
                    ""
                } else {
                    ","
                };
                text.extend([content, comma, name, &line[content.len()..]]);
                is_added = true;
            }
            _ => text += line,
        }
    }
    is_added.then_some(text)
}

/// Days since the epoch, as shadow counts.
pub(super) fn today() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
        / 86_400
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nbroken\nnode:x:1000:1000::/home/node:/bin/sh\n\
                          nobody:x:65534:65534::/:/bin/false\n7:x:1003:7::/seven:/bin/sh\n";

    #[test]
    fn somebody_is_found_by_name_before_number() {
        let uid = |name: &str| find(PASSWD, name).map(|account| account.uid);
        assert_eq!(
            (uid("node"), uid("1000"), uid("7")),
            (Some(1000), Some(1000), Some(1003))
        );
        assert_eq!(
            (uid("01000"), uid("+1000"), uid("broken"), uid("none")),
            (None, None, None, None)
        );
    }

    #[test]
    fn numbers_are_above_those_of_people() {
        let check = |passwd: &str, group: &str, uid: u32, gid: u32| {
            assert_eq!(
                numbers(passwd, group, "new"),
                Some(Numbers { uid, gid }),
                "{passwd} {group}"
            );
        };
        check("", "", 1000, 1000);
        check(PASSWD, "", 1004, 1004);
        check(PASSWD, "staff:x:1004:\n", 1005, 1005);
        check(PASSWD, "staff:x:1004:\nnew:x:50:\n", 1004, 50);
        check("last:x:60000:1::/:/bin/sh\n", "", 1000, 1000);
        let all: String = NUMBERS.map(|n| format!("u{n}:x:{n}:{n}::/:/bin/sh\n")).collect();
        assert_eq!(numbers(&all, "", "new"), None);
    }

    #[test]
    fn lines_and_members_are_added_and_everything_else_stays() {
        assert_eq!(with_line("a", "b"), "a\nb\n");
        assert_eq!(with_line("", "b"), "b\n");
        let groups = "x:x:1:\nsudo:x:27:\nbroken\nlast:x:9:a";
        let added = with_member(groups, "sudo", "new").unwrap();
        assert_eq!(added, "x:x:1:\nsudo:x:27:new\nbroken\nlast:x:9:a");
        assert_eq!(
            with_member(&added, "last", "new").unwrap(),
            "x:x:1:\nsudo:x:27:new\nbroken\nlast:x:9:a,new"
        );
        assert_eq!(with_member(&added, "sudo", "new"), None);
        assert_eq!(with_member(&added, "none", "new"), None);
    }
}
