//! Whole pods as CRI messages, compared with golden files; `UPDATE_GOLDEN=1` writes them anew.

use std::{env, fs, path::PathBuf};

use super::*;
use crate::standalone::manifest;

fn host() -> Host {
    Host {
        name: "node-1".to_owned(),
        memory: 8 << 30,
        resolver:
            "# made by hand\nnameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch example.org lan\noptions edns0\n"
                .to_owned(),
        is_cgroup_v2: false,
    }
}

fn paths() -> Paths {
    Paths { pod: "/var/lib/vaina/standalone/u-1".into(), logs: "/var/log/pods".into() }
}

fn pod(text: &str) -> Pod {
    let mut pods = manifest::parse(text).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let mut pod = pods.remove(0);
    pod.metadata.uid = Some("u-1".to_owned());
    pod
}

fn image() -> Image {
    Image { reference: "sha256:abc".to_owned(), uid: Some(0), username: String::new() }
}

fn containers(pod: &Pod, host: &Host) -> Vec<cri::ContainerConfig> {
    let spec = spec(pod);
    let convert = |one| container(pod, one, 2, &image(), &["10.88.0.5".to_owned()], &paths(), host);
    spec.containers.iter().map(convert).collect::<Result<_, _>>().expect("converted")
}

use vaina_proto::cri;

#[test]
fn golden() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/standalone/convert/golden");
    for name in ["minimal", "full", "host"] {
        let text = fs::read_to_string(directory.join(format!("{name}.yaml"))).expect(name);
        let pod = pod(&text);
        let host = Host { is_cgroup_v2: name == "minimal", ..host() };
        let actual = format!("{:#?}\n{:#?}\n", sandbox(&pod, &paths(), &host), containers(&pod, &host));
        let path = directory.join(format!("{name}.txt"));
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &actual).expect("written");
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        let difference = expected.lines().zip(actual.lines()).enumerate().find(|(_, (a, b))| a != b);
        assert!(expected == actual, "{name}: first difference (line, (expected, actual)): {difference:?}");
    }
}

#[test]
fn hostnames() {
    let long = "a".repeat(70);
    let cut = format!("{}-{}", "a".repeat(62), "b".repeat(5));
    for (hostname, name, expected) in [
        (None, "web", "web"),
        (None, "web.example", "web.example"),
        (Some("other"), "web", "other"),
        (Some(""), "web", "web"),
        (None, long.as_str(), &long[..63]),
        (None, cut.as_str(), &cut[..62]),
    ] {
        let spec = PodSpec { hostname: hostname.map(str::to_owned), ..Default::default() };
        assert_eq!(super::sandbox::hostname(&spec, name), expected, "{hostname:?} {name}");
    }
}

#[test]
fn hosts_files() {
    let spec =
        spec(&pod("{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: a, image: i}], \
         hostAliases: [{ip: 192.0.2.1, hostnames: [one, two]}]}}"));
    let text = hosts(&spec, "web", &["10.88.0.5".to_owned()]);
    assert!(text.contains("127.0.0.1\tlocalhost\n") && text.contains("\n10.88.0.5\tweb\n"), "{text}");
    assert!(text.ends_with("\n192.0.2.1\tone\ttwo\n"), "{text}");
    let text = host_hosts(&spec, "127.0.0.1 localhost");
    assert!(text.contains("127.0.0.1 localhost\n\n# Entries"), "{text}");
}

#[test]
fn non_root() {
    let refused = |pod_user: &str, user: &str, uid: Option<i64>, username: &str| {
        let pod = pod(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{securityContext: {{runAsNonRoot: true{pod_user}}}, \
             containers: [{{name: a, image: i, securityContext: {{{user}}}}}]}}}}"
        ));
        let image = Image { reference: "i".to_owned(), uid, username: username.to_owned() };
        let spec = spec(&pod);
        container(&pod, &spec.containers[0], 0, &image, &[], &paths(), &host()).is_err()
    };
    assert!(refused("", "", Some(0), ""));
    assert!(refused("", "", None, ""));
    assert!(refused("", "", None, "www-data"));
    assert!(refused(", runAsUser: 0", "", Some(1000), ""));
    assert!(refused(", runAsUser: 5", "runAsUser: 0", Some(1000), ""));
    assert!(!refused("", "", Some(1000), ""));
    assert!(!refused(", runAsUser: 5", "", Some(0), "root"));
    assert!(!refused("", "runAsNonRoot: false", Some(0), ""));
}

#[test]
fn resolvers_on_the_loopback_are_of_no_use_to_a_pod() {
    let stub = "nameserver 127.0.0.53\noptions edns0\n";
    let real = "nameserver 192.0.2.1\n";
    assert_eq!(resolver(stub, Some(real)), real);
    assert_eq!(resolver(stub, None), stub);
    assert_eq!(resolver(real, Some("nameserver 192.0.2.2\n")), real);
    assert_eq!(resolver("", Some(real)), "");
}
