//! `$(NAME)` in environments, commands and arguments, and fields of the pod as values.

use k8s_openapi::api::core::v1::{Container, Pod};
use vaina_proto::cri;

use super::{Host, Identity};

/// The environment of a container, in the manifest's order, and the look-up for its command.
pub(super) fn environment(container: &Container, pod: &Pod, host: &Host, addresses: &[String]) -> Vec<cri::KeyValue> {
    let mut environment: Vec<cri::KeyValue> = Vec::new();
    for variable in container.env.iter().flatten() {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        let value = match (field, &variable.value) {
            (Some(field), _) => self::field(&field.field_path, pod, host, addresses),
            // Only what stands above can be used, so there are no circles.
            (None, Some(value)) => expand(value, &environment),
            (None, None) => String::new(),
        };
        let key = variable.name.clone();
        environment.retain(|other| other.key != key);
        environment.push(cri::KeyValue { key, value: value.into_bytes() });
    }
    environment
}

/// Replaces `$(NAME)` by the value of NAME. `$$` is a dollar; an unknown name stays as it is written.
pub(super) fn expand(text: &str, environment: &[cri::KeyValue]) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        result.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        rest = match after.as_bytes().first() {
            Some(b'$') => {
                result.push('$');
                &after[1..]
            }
            Some(b'(') => match after.find(')') {
                Some(end) => {
                    let name = &after[1..end];
                    match environment.iter().find(|variable| variable.key == name) {
                        Some(variable) => result.push_str(&String::from_utf8_lossy(&variable.value)),
                        None => result.push_str(&rest[dollar..dollar + end + 2]),
                    }
                    &after[end + 1..]
                }
                None => {
                    result.push_str("$(");
                    &after[1..]
                }
            },
            _ => {
                result.push('$');
                after
            }
        };
    }
    result + rest
}

/// The value of a downward API field; the manifest reader lets only known ones pass.
fn field(path: &str, pod: &Pod, host: &Host, addresses: &[String]) -> String {
    let identity = Identity::of(pod);
    let keyed = |prefix: &str| path.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("']"));
    match path {
        "metadata.name" => identity.name.to_owned(),
        "metadata.namespace" => identity.namespace.to_owned(),
        "metadata.uid" => identity.uid.to_owned(),
        "spec.nodeName" => host.name.clone(),
        "status.podIP" => addresses.first().cloned().unwrap_or_default(),
        "status.podIPs" => addresses.join(","),
        _ => {
            let (map, key) = match (keyed("metadata.labels['"), keyed("metadata.annotations['")) {
                (Some(key), _) => (&pod.metadata.labels, key),
                (None, Some(key)) => (&pod.metadata.annotations, key),
                (None, None) => return String::new(),
            };
            map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion() {
        let environment: Vec<_> = [("A", "1"), ("B_C", "$(A)"), ("EMPTY", "")]
            .map(|(key, value)| cri::KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec() })
            .into();
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(A)z", "x1y1z"),
            ("$(B_C)", "$(A)"),
            ("$(EMPTY)", ""),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$", "$"),
            ("$$", "$"),
            ("a$", "a$"),
            ("$(A", "$(A"),
            ("$(A$(A)", "$(A$(A)"),
            ("$()", "$()"),
            ("ü$(A)ü", "ü1ü"),
        ] {
            assert_eq!(expand(text, &environment), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_without_dollars_is_left_alone(text in "[^$]{0,40}") {
            proptest::prop_assert_eq!(expand(&text, &[]), text);
        }

        #[test]
        fn any_text_is_expanded(text in "[$()AB]{0,20}") {
            let _ = expand(&text, &[cri::KeyValue { key: "A".to_owned(), value: b"$".to_vec() }]);
        }
    }
}
