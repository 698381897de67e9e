//! Who is who: `/etc/passwd` and `/etc/group`, read by hand because a static program has no name service switch.
use linux::spawn::Identity;

use crate::system_file;

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

impl User {
    /// The account of this name, or with this number.
    pub(crate) fn find(name: &str) -> Option<User> {
        let passwd = read("/etc/passwd");
        let mut users = passwd.lines().filter_map(parse);
        let by_name = users.find(|user| user.name == name);
        let is_number = name.bytes().all(|digit| digit.is_ascii_digit());
        by_name.or_else(|| name.parse().ok().filter(|_| is_number).and_then(Self::of_uid))
    }

    /// The account with this number.
    pub(crate) fn of_uid(uid: u32) -> Option<User> {
        read("/etc/passwd")
            .lines()
            .filter_map(parse)
            .find(|user| user.uid == uid)
    }

    /// The account with all its groups.
    pub(crate) fn identity(&self) -> Identity {
        let is_member = |members: &str| members.split(',').any(|member| member == self.name);
        let mut groups = vec![self.gid];
        for line in read("/etc/group").lines() {
            let mut fields = line.split(':');
            let gid = fields.nth(2).and_then(|gid| gid.parse().ok());
            if let (Some(gid), Some(members)) = (gid, fields.next())
                && is_member(members)
                && !groups.contains(&gid)
            {
                groups.push(gid);
            }
        }
        Identity {
            uid: self.uid,
            gid: self.gid,
            groups,
        }
    }
}

/// The name of a group; its number, where it has none.
pub(crate) fn group_name(gid: u32) -> String {
    let groups = read("/etc/group");
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| gid.to_string())
}

/// The number of a group, by its name.
pub(crate) fn group_number(name: &str) -> Option<u32> {
    let groups = read("/etc/group");
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// The name of a user; its number, where it has none.
pub(crate) fn user_name(uid: u32) -> String {
    User::of_uid(uid).map_or_else(|| uid.to_string(), |user| user.name)
}

fn parse(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields[..] else {
        return None;
    };
    let home = if home.is_empty() { "/" } else { home };
    Some(User {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: home.to_owned(),
    })
}

fn read(path: &str) -> String {
    system_file::read(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_parse_and_broken_lines_do_not() {
        let user = parse("user:x:1000:1000::/home/user:/bin/bash").unwrap();
        assert_eq!(
            (user.uid, user.gid, user.home.as_str()),
            (1000, 1000, "/home/user")
        );
        assert_eq!(parse("root:x:0:0:root::/bin/sh").unwrap().home, "/");
        assert_eq!(parse("broken"), None);
        assert_eq!(parse("a:x:notanumber:0::/:"), None);
    }

    #[test]
    fn root_is_found_by_name_and_number() {
        assert_eq!(User::find("root"), User::of_uid(0));
        assert_eq!(User::find("root"), User::find("0"));
        assert_eq!(
            (User::find("nobody-has-this-name"), User::find("+0")),
            (None, None)
        );
    }
}
