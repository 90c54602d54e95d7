use super::{MAX_FILE_BYTES, parse_documents};
use crate::policy::{
    EgressMode, FailureMode, JsonPolicyDocument, LockdownDetection, PolicyDocument, WrittenEndpoint,
};
use proptest::prelude::*;
use std::fmt::Write as _;

const FULL: &str = r#"name: node-build
description: npm builds
egress-policy: block
allowed-endpoints:
  - github.com:443
  - "*.npmjs.org:443"
  - 10.20.0.0/16:5432
  - "[2001:db8::7]:8443"
  - udp://time.example.com:123
denied-endpoints: []
extends: [org-base]
fail-on-block: false
disable-sudo: false
disable-sudo-and-containers: false
disable-file-monitoring: false
disable-telemetry: false
on-failure: closed
lockdown-mode:
  enabled: true
  detections: [Privileged-Container, Runner-Worker-Memory-Read, Reverse-Shell]
attach:
  - cluster: prod-linux
  - organization: octo
  - repository: Octo/Hello
  - workflow: octo/hello/.github/workflows/CI.yml
"#;

fn one(text: &str) -> PolicyDocument {
    parse_documents("policy.yaml", text.as_bytes())
        .unwrap_or_else(|e| panic!("{e}"))
        .remove(0)
        .document
}

fn refused(text: impl AsRef<[u8]>) -> String {
    parse_documents("policy.yaml", text.as_ref()).expect_err("must be refused").to_string()
}

#[test]
fn reads_every_key() {
    let document = one(FULL);
    assert_eq!(document.name.as_str(), "node-build");
    assert_eq!(document.egress_policy, Some(EgressMode::Block));
    assert_eq!(document.on_failure, Some(FailureMode::Closed));
    assert_eq!(document.disable_telemetry, Some(false));
    assert_eq!(document.denied_endpoints.as_ref().map(|list| list.0.len()), Some(0));
    let texts: Vec<_> = document
        .allowed_endpoints
        .iter()
        .flat_map(|list| &list.0)
        .map(WrittenEndpoint::text)
        .collect();
    assert_eq!(texts[3], "[2001:db8::7]:8443");
    assert_eq!(texts.len(), 5);
    let lockdown = document.lockdown_mode.unwrap();
    assert!(lockdown.enabled);
    assert_eq!(lockdown.detections[2], LockdownDetection::ReverseShell);
    let targets: Vec<_> = document.attach.iter().map(ToString::to_string).collect();
    assert_eq!(
        targets,
        [
            "cluster prod-linux",
            "organization octo",
            "repository octo/hello",
            "workflow octo/hello/.github/workflows/CI.yml"
        ]
    );
}

#[test]
fn kebab_and_snake_case_are_read_from_yaml_and_json() {
    let document = one(FULL);
    let snake = FULL
        .replace("-policy", "_policy")
        .replace("-endpoints", "_endpoints")
        .replace("lockdown-mode", "lockdown_mode");
    assert_eq!(one(&snake), document);
    let json = serde_json::to_string_pretty(&JsonPolicyDocument(document.clone())).unwrap();
    assert!(json.contains("\"egress_policy\": \"block\"") && !json.contains("egress-policy"));
    assert_eq!(one(&json), document);
    assert_eq!(serde_json::from_str::<JsonPolicyDocument>(&json).unwrap().0, document);
    let kebab = serde_json::to_string(&document).unwrap();
    assert!(kebab.contains("\"egress-policy\":\"block\""));
    assert_eq!(one(&kebab), document);
    assert_eq!(serde_json::from_str::<PolicyDocument>(&kebab).unwrap(), document);
}

#[test]
fn yaml_written_is_yaml_read() {
    let document = one(FULL);
    let yaml = document.to_yaml().unwrap();
    assert!(yaml.contains("\negress-policy: block\n"), "{yaml}");
    assert_eq!(one(&yaml), document);
}

#[test]
fn endpoints_may_be_one_text() {
    let list = |yaml: &str| {
        let list = one(yaml).allowed_endpoints.unwrap();
        list.0.iter().map(|e| e.endpoint().to_string()).collect::<Vec<_>>()
    };
    let expected = ["github.com:443", "*.npmjs.org:443", "udp://a.test:53"];
    assert_eq!(
        list("name: a\nallowed-endpoints: github.com *.npmjs.org:443 udp://a.test:53"),
        expected
    );
    assert_eq!(
        list(
            "name: a\nallowed-endpoints: >\n  github.com:443\n  *.npmjs.org:443\n\n  udp://a.test:53\n"
        ),
        expected
    );
    assert_eq!(
        list(
            "name: a\nallowed-endpoints: |\n  github.com:443\n  *.npmjs.org:443\n  udp://a.test:53\n"
        ),
        expected
    );
    assert_eq!(list("name: a\nallowed-endpoints:\n"), Vec::<String>::new());
}

#[test]
fn anchors_and_several_documents() {
    let text = "---\nname: a\nallowed-endpoints: &list [github.com]\ndenied-endpoints: *list\n---\n---\nname: b\n...\n";
    let documents = parse_documents("policy.yaml", text.as_bytes()).unwrap();
    assert_eq!(documents.len(), 2);
    assert_eq!(documents[0].document.denied_endpoints, documents[0].document.allowed_endpoints);
    assert_eq!(documents[1].name_place.to_string(), "policy.yaml:7:7");
}

#[test]
fn every_mistake_of_a_run_is_reported() {
    insta::assert_snapshot!(refused(
        r#"name: Node_Build
egres-policy: block
allowed-endpoints:
  - github.com:443/path
  - "*.com"
  - 10.0.0.1/8
  - [nested]
allowed_endpoints: x.test
fail-on-block: yes
disable-sudo: "true"
on-failure: close
lockdown-mode:
  enable: true
  detections: [reverse-shell]
extends: base
attach:
  - org: octo
  - repository: octo
  - cluster: a
    organization: b
  - workflow: octo/hello/ci.yml@main
<<: {x: y}
---
egress-policy: deny
---
name: ok
denied-endpoints: |
  fine.test
  git hub:0
"#
    ), @"
    error: policy.yaml:1:7: `name`: `Node_Build` is no policy name

    hint: use 1 to 63 lower-case letters, digits and hyphens, the first no hyphen

    error: policy.yaml:2:1: `egres-policy`: there is no such key

    hint: did you mean `egress-policy`? It can be `name`, `description`, `egress-policy`, `allowed-endpoints`, `denied-endpoints`, `extends`, `fail-on-block`, `disable-sudo`, `disable-sudo-and-containers`, `disable-file-monitoring`, `disable-telemetry`, `on-failure`, `lockdown-mode` or `attach`

    error: policy.yaml:4:19: `allowed-endpoints`: `github.com:443/path`: an endpoint has no path

    hint: endpoints name hosts and ports; leave out what follows

    error: policy.yaml:5:6: `allowed-endpoints`: `*.com`: `*.com` covers names that anybody can register

    hint: name the domain below it, as in `*.example.com`

    error: policy.yaml:6:14: `allowed-endpoints`: `10.0.0.1/8`: `10.0.0.1/8` has bits set behind its prefix length

    hint: write `10.0.0.0/8`, or `10.0.0.1` for the one address

    error: policy.yaml:7:5: `allowed-endpoints`: an endpoint is expected, not a list

    hint: write a value behind the key, or leave the key out

    error: policy.yaml:8:1: `allowed_endpoints`: the key stands twice, first in line 3

    hint: keep one of them

    error: policy.yaml:9:16: `fail-on-block`: `true` or `false` is expected, not `yes`

    hint: write `true` or `false` without quotes

    error: policy.yaml:10:15: `disable-sudo`: `true` or `false` is expected, not `true`

    hint: write `true` or `false` without quotes

    error: policy.yaml:11:13: `on-failure`: `close` is no value of this key

    hint: did you mean `closed`? It can be `closed`, `last-known-good` or `audit`

    error: policy.yaml:13:3: `lockdown-mode.enable`: there is no such key

    hint: did you mean `enabled`? It can be `enabled` or `detections`

    error: policy.yaml:14:16: `lockdown-mode.detections`: `reverse-shell` is no value of this key

    hint: did you mean `Reverse-Shell`? It can be `Privileged-Container`, `Runner-Worker-Memory-Read` or `Reverse-Shell`

    error: policy.yaml:15:10: `extends`: a list is expected, not `base`

    hint: write a list of policy names, such as `[org-base]`

    error: policy.yaml:17:5: `attach`: `org` is no kind of target

    hint: did you mean `organization`? It can be `cluster`, `organization`, `repository` or `workflow`

    error: policy.yaml:18:17: `attach.repository`: `octo` names no repository

    hint: write `owner/name`, such as `octo/hello`

    error: policy.yaml:19:5: `attach`: an entry names exactly one target

    hint: begin each target with a `-` of its own

    error: policy.yaml:22:1: `<<`: YAML merge keys can't be used in a policy

    hint: put what is shared into a policy of its own and name it in `extends`

    error: policy.yaml:24:16: `egress-policy`: `deny` is no value of this key

    hint: it can be `audit` or `block`

    error: policy.yaml:29:11: `denied-endpoints`: `hub:0`: `0` is no port from 1 to 65535

    hint: write a port like `:443`, a range like `:8000-8100`, or `:*` for all ports
    ");
}

#[test]
fn mistakes_of_form_are_told_with_their_place() {
    insta::assert_snapshot!(
        [
            refused(""),
            refused("# only a comment\n"),
            refused("- name: a\n"),
            refused("just text"),
            refused("name: [\n---\nname: b\negress-policy: wrong\n"),
            refused("name: a\n\tegress-policy: block\n"),
            refused(b"name: a\ndescription: caf\xe9\n"),
            refused("name: !!python/object x\n"),
            refused("name: a\nallowed-endpoints: *nowhere\n"),
            refused("name: a\nextends: &x [*x]\n"),
            refused("name: a\n? [complex]\n: b\n"),
            refused("name:\n"),
            refused("name: a\ndescription: \u{1b}[31m\n"),
            refused(format!("name: {}", "[".repeat(100))),
        ]
        .join("\n\n"), @r"
    error: policy.yaml: there is no policy in this file

    hint: write at least `name:` and `egress-policy:`, or remove the file

    error: policy.yaml: there is no policy in this file

    hint: write at least `name:` and `egress-policy:`, or remove the file

    error: policy.yaml:1:1: a mapping is expected, not a list

    hint: write keys and values, such as `name: …`

    error: policy.yaml:1:1: a mapping is expected, not `just text`

    hint: write keys and values, such as `name: …`

    error: policy.yaml:1:7: this is not valid YAML: unclosed bracket '['

    hint: check indentation, quotes and brackets here and in the line above; quote a value that starts with `*`, `[`, `&` or `@`

    error: policy.yaml:4:16: `egress-policy`: `wrong` is no value of this key

    hint: it can be `audit` or `block`

    error: policy.yaml:1:7: this is not valid YAML: while scanning a plain scalar, found a tab

    hint: check indentation, quotes and brackets here and in the line above; quote a value that starts with `*`, `[`, `&` or `@`

    error: policy.yaml:2:17: byte 24 (0xe9) is not UTF-8

    hint: save the file as UTF-8

    error: policy.yaml:1:23: the YAML tag `!!python/object` can't be used in a policy

    hint: leave the tag out

    error: policy.yaml:2:20: this is not valid YAML: while parsing node, found unknown anchor

    hint: check indentation, quotes and brackets here and in the line above; quote a value that starts with `*`, `[`, `&` or `@`

    error: policy.yaml:2:14: the alias refers to a node that contains it

    hint: write the value out

    error: policy.yaml:2:3: a key is expected, not a list

    hint: write the key as a plain word

    error: policy.yaml:1:5: `name`: a policy's name is expected, not nothing

    hint: write a value behind the key, or leave the key out

    error: policy.yaml:2:14: this is not valid YAML: unexpected character: `\u{1b}'

    hint: check indentation, quotes and brackets here and in the line above; quote a value that starts with `*`, `[`, `&` or `@`

    error: policy.yaml:1:106: this is not valid YAML: unclosed bracket '['

    hint: check indentation, quotes and brackets here and in the line above; quote a value that starts with `*`, `[`, `&` or `@`
    ");
}

#[test]
fn hostile_text_in_messages_is_one_visible_line() {
    let text = refused("name: \"a\\n::error::\\e[31m\\u202e\"\n\"k\\n::error::\": 1\n");
    let text = text
        + &refused(
            "name: a\nallowed-endpoints: [\"https://a\u{202e}b\", \"a\u{202e}/x\", \"\\e\"]\n",
        );
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    assert!(text.lines().all(|line| !line.starts_with("::")), "{text}");
}

#[test]
fn a_large_file_is_refused_before_it_is_parsed() {
    let text = refused(vec![b'['; 10 * 1024 * 1024]);
    assert!(
        text.contains("the file has 10485760 bytes; a policy file has at most 1048576"),
        "{text}"
    );
    let mut largest = String::from("name: a\n#");
    largest.push_str(&"x".repeat(MAX_FILE_BYTES - largest.len()));
    assert!(parse_documents("x", largest.as_bytes()).is_ok());
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut bomb = String::from("name: a\na0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
        writeln!(bomb, "a{level}: &a{level} [{aliases}]").unwrap();
    }
    let text = refused(bomb);
    assert!(text.contains("aliases repeat more than 256 KiB of this file"), "{text}");
}

#[test]
fn a_million_mistakes_are_bounded() {
    let entries = format!("name: a\nallowed-endpoints: [{}]\n", vec!["x:0"; 200_000].join(","));
    let errors = parse_documents("policy.yaml", entries.as_bytes()).unwrap_err();
    assert_eq!(errors.errors().len(), 100);
    assert!(errors.is_truncated());
    let documents = "--- {}\n".repeat(100_000);
    assert!(parse_documents("policy.yaml", documents.as_bytes()).unwrap_err().is_truncated());
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_documents("policy.yaml", &bytes);
    }

    #[test]
    fn any_mutation_of_a_policy_is_answered(at in 0..FULL.len(), remove in 0_usize..20, insert in "[-a-z:*&\\[\\]{}\"'#|>!%@\\n ]{0,8}") {
        let mut text = FULL.to_owned();
        let end = (at + remove).min(text.len());
        text.replace_range(at..end, &insert);
        if let Err(errors) = parse_documents("policy.yaml", text.as_bytes()) {
            for error in errors.errors() {
                prop_assert!(!error.hint.is_empty());
                prop_assert!(error.place.line <= text.lines().count() + 1);
            }
        }
    }

    #[test]
    fn an_endpoint_survives_yaml(endpoint in crate::endpoint::strategy::endpoint()) {
        let mut document = one("name: a");
        document.allowed_endpoints = Some(crate::policy::EndpointList(vec![endpoint.clone().into()]));
        let back = one(&document.to_yaml().unwrap());
        let list = back.allowed_endpoints.unwrap();
        prop_assert_eq!(list.0[0].endpoint(), &endpoint);
    }
}
