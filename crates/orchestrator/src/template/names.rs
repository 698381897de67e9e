//! How templates and their tags may be called (contract 3.4, 4.1).
use model::{BuildId, Team, Template, TemplateRef};
use ports::TemplateError;

/// Longer tags are in nobody's interest: they are parts of names, and of lists that are shown whole.
const TAG_BYTES_MAX: usize = 128;
/// The most tags that one request may give or take.
const TAGS_MAX: usize = 64;
/// The most tags of one template: it is read whole, with what is known of each tag's build, for every sandbox of it.
const TAGS_OF_ONE_MAX: usize = 1000;

/// A namespace, where one is given, is the team's own.
pub(crate) fn check_namespace(team: &Team, reference: &TemplateRef) -> Result<(), TemplateError> {
    match &reference.namespace {
        Some(namespace) if *namespace != team.slug => Err(TemplateError::Namespace {
            namespace: namespace.clone(),
            team: team.slug.clone(),
        }),
        _ => Ok(()),
    }
}

/// A tag is no UUID: it would be taken for a build.
pub(crate) fn check_tag(tag: &str) -> Result<(), TemplateError> {
    let shown: String = tag.chars().take(TAG_BYTES_MAX).collect();
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if tag.is_empty() || tag.len() > TAG_BYTES_MAX || !tag.bytes().all(is_word) {
        return Err(TemplateError::Invalid(format!(
            "Invalid tag: '{shown}' is not at most {TAG_BYTES_MAX} of the characters a-z, 0-9, '-', '_' and '.'"
        )));
    }
    if tag.parse::<BuildId>().is_ok() {
        return Err(TemplateError::Invalid(format!(
            "Invalid tag: '{shown}' is a UUID, which names a build"
        )));
    }
    Ok(())
}

/// Refuses tags beyond those that one template may have. `new` may be among those that it has.
pub(crate) fn check_tags_of_one<'a>(
    template: &Template,
    new: impl IntoIterator<Item = &'a String>,
) -> Result<(), TemplateError> {
    let more = new
        .into_iter()
        .filter(|tag| !template.tags.contains_key(*tag))
        .count();
    if more > 0 && template.tags.len() + more > TAGS_OF_ONE_MAX {
        return Err(TemplateError::Exhausted(format!(
            "The template has reached its limit of {TAGS_OF_ONE_MAX} tags: delete one first"
        )));
    }
    Ok(())
}

/// The tags of a request: lower-case, each once, in the order in which they were given.
pub(crate) fn tags(given: impl IntoIterator<Item = String>) -> Result<Vec<String>, TemplateError> {
    let mut tags = Vec::new();
    for tag in given {
        let tag = tag.trim().to_ascii_lowercase();
        check_tag(&tag)?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
        if tags.len() > TAGS_MAX {
            return Err(TemplateError::Invalid(format!(
                "Invalid tag: there are more than {TAGS_MAX} of them"
            )));
        }
    }
    Ok(tags)
}

/// A template as its user named it, without the tag.
pub(crate) fn shown(reference: &TemplateRef) -> String {
    match &reference.namespace {
        Some(namespace) => format!("{namespace}/{}", reference.name),
        None => reference.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use ports::store::contract;

    use super::*;

    #[test]
    fn tags_are_words_in_lower_case_and_given_once() {
        let given = |tags: &[&str]| super::tags(tags.iter().map(|tag| (*tag).to_owned()));
        assert_eq!(
            given(&[" V1.2-rc_0 ", "v1.2-rc_0", "b"]).unwrap(),
            ["v1.2-rc_0", "b"]
        );
        for bad in ["", "a b", "a:b", "a/b", "ä", &"a".repeat(TAG_BYTES_MAX + 1)] {
            let error = given(&[bad]).unwrap_err();
            assert!(error.to_string().starts_with("Invalid tag: "), "{error}");
        }
        let uuid = BuildId::random().to_string();
        assert!(given(&[&uuid]).unwrap_err().to_string().contains("UUID"));
        let many: Vec<String> = (0..=TAGS_MAX).map(|n| n.to_string()).collect();
        assert!(super::tags(many).is_err());
    }

    #[test]
    fn a_namespace_is_the_teams_own() {
        let team = contract::team("acme");
        check_namespace(&team, &"app".parse().unwrap()).unwrap();
        check_namespace(&team, &"acme/app".parse().unwrap()).unwrap();
        let error = check_namespace(&team, &"other/app".parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "namespace 'other' must match your team 'acme'");
    }
}
