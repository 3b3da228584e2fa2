//! Environment variables whose values are not UTF-8. A configuration is JSON and can't hold them, so they come in an
//! annotation, and are given to the process with its other variables when it becomes its program.

use std::collections::BTreeMap;

use libcontainer::oci_spec::runtime::Spec;
use vaina_proto::ENVIRONMENT_ANNOTATION;

use super::OciError;

/// Values by names.
pub(super) type Environment = BTreeMap<String, Vec<u8>>;

/// What the container's configuration has of them.
pub(super) fn of(spec: &Spec) -> Result<Environment, OciError> {
    let text = spec.annotations().as_ref().and_then(|annotations| annotations.get(ENVIRONMENT_ANNOTATION));
    let Some(text) = text else { return Ok(Environment::new()) };
    serde_json::from_str(text).map_err(|source| OciError::Environment { source })
}

/// All variables as the program gets them: the process's own in their order, the last of a name winning, then those of
/// the annotation, and then those that were added to both.
pub(super) fn merge(own: &[String], bytes: &Environment, all: &[String]) -> Vec<Vec<u8>> {
    let name = |entry: &str| entry.split_once('=').map(|(name, _)| name.to_owned());
    let last: BTreeMap<String, usize> =
        own.iter().enumerate().filter_map(|(at, entry)| Some((name(entry)?, at))).collect();
    let mut merged: Vec<Vec<u8>> = own
        .iter()
        .enumerate()
        .filter(|(at, entry)| name(entry).is_some_and(|name| last.get(&name) == Some(at)))
        .map(|(_, entry)| entry.clone().into_bytes())
        .collect();
    let further = bytes.iter().filter(|(name, _)| !last.contains_key(*name));
    merged.extend(further.map(|(name, value)| [name.as_bytes(), b"=", value].concat()));
    let added: BTreeMap<String, &String> = all
        .iter()
        .filter_map(|entry| Some((name(entry)?, entry)))
        .filter(|(name, _)| !last.contains_key(name) && !bytes.contains_key(name))
        .collect();
    merged.extend(added.into_values().map(|entry| entry.clone().into_bytes()));
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn variables_keep_their_order_and_the_last_wins() {
        let own = texts(&["PATH=/bin", "B=1", "A=2", "B=3", "nonsense"]);
        let all = texts(&["B=3", "HOME=/root", "A=2", "PATH=/bin"]);
        let bytes =
            |list: &[(&str, &[u8])]| list.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
        let merged = |bytes: &Environment| merge(&own, bytes, &all);
        let expected = |list: &[&[u8]]| list.iter().map(|entry| entry.to_vec()).collect::<Vec<_>>();
        assert_eq!(merged(&Environment::new()), expected(&[b"PATH=/bin", b"A=2", b"B=3", b"HOME=/root"]));
        let raw = bytes(&[("A", b"\xff"), ("HOME", b"/\xfe"), ("Z", b"\xff=\n")]);
        assert_eq!(merged(&raw), expected(&[b"PATH=/bin", b"A=2", b"B=3", b"HOME=/\xfe", b"Z=\xff=\n"]));
    }

    #[test]
    fn an_annotation_that_is_none_is_refused() {
        let spec = |text: &str| {
            let json = serde_json::json!({ "ociVersion": "1.0.2", "annotations": { ENVIRONMENT_ANNOTATION: text } });
            serde_json::from_value::<Spec>(json).unwrap()
        };
        assert_eq!(of(&spec(r#"{"A":[255]}"#)).unwrap(), Environment::from([("A".to_owned(), vec![255])]));
        assert!(of(&spec(r#"{"A":[256]}"#)).is_err());
    }
}
