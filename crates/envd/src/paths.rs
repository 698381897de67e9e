//! What a client's path means (contract 5.1).
use crate::users::User;

/// Turns a client's path into an absolute one: empty is the default directory, `~` the user's home, a relative one
/// lies below the home. It is not cleaned: the kernel resolves it.
pub(crate) fn expand(path: &str, user: &User, default: Option<&str>) -> Result<String, String> {
    if path.contains('\0') {
        return Err("path contains a NUL byte".to_owned());
    }
    if path.is_empty() {
        return Ok(default.map_or_else(|| user.home.clone(), str::to_owned));
    }
    if path == "~" {
        return Ok(user.home.clone());
    }
    if let Some(rest) = path.strip_prefix("~/") {
        return Ok(join(&user.home, rest));
    }
    if path.starts_with('~') {
        return Err("cannot expand user-specific home dir".to_owned());
    }
    if path.starts_with('/') { Ok(path.to_owned()) } else { Ok(join(&user.home, path)) }
}

/// One path below another, with the dots of the lower one resolved by text, as clients expect to see it again.
fn join(base: &str, rest: &str) -> String {
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expanded: &str) {
        let user = User { name: "user".into(), uid: 1000, gid: 1000, home: "/home/user".into() };
        assert_eq!(expand(path, &user, Some("/work")).as_deref(), Ok(expanded));
    }

    #[test]
    fn paths_are_the_users() {
        check("", "/work");
        check("~", "/home/user");
        check("~/a", "/home/user/a");
        check("a/b", "/home/user/a/b");
        check("./a/../b", "/home/user/b");
        check("/etc//x/", "/etc//x/");
    }

    #[test]
    fn another_users_home_is_not_expanded() {
        let user = User { name: "user".into(), uid: 1000, gid: 1000, home: "/home/user".into() };
        assert!(expand("~root/x", &user, None).is_err());
        assert!(expand("a\0b", &user, None).is_err());
    }
}
