use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A structure out of a JSON object and nothing else: what is derived also takes arrays, field by field in the order of
/// the source, which no client means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// The same for a field that may be left out or `null`.
pub(super) fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::<Object<T>>::deserialize(deserializer).map(|found| found.map(|Object(value)| value))
}

/// The same for a list of them.
pub(super) fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    let found = Option::<Vec<Object<T>>>::deserialize(deserializer)?;
    Ok(found.map(|list| list.into_iter().map(|Object(value)| value).collect()))
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::super::NewSandbox;
    use super::*;

    fn parsed(json: &str) -> Result<NewSandbox, serde_json::Error> {
        serde_json::from_str(json).map(|Object(body)| body)
    }

    #[test]
    fn arrays_are_no_objects_at_any_depth() {
        let body = parsed(r#"{"templateID":"base","autoResume":{"enabled":true},"network":null}"#).unwrap();
        assert!(body.auto_resume.unwrap().enabled && body.network.is_none());
        assert!(parsed(r#"["base"]"#).is_err());
        assert!(parsed(r#"{"templateID":"base","autoResume":[true]}"#).is_err());
        assert!(parsed(r#"{"templateID":"base","network":[true]}"#).is_err());
        let mounts = parsed(r#"{"templateID":"base","volumeMounts":[{"name":"a","path":"/b"}]}"#).unwrap();
        assert_eq!(mounts.volume_mounts.unwrap()[0].path, "/b");
        assert!(parsed(r#"{"templateID":"base","volumeMounts":[["a","/b"]]}"#).is_err());
    }
}
