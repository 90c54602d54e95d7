//! Suppression rules as values: which detections are known and accepted.

use portcullis_common::policy::Attachment;
use portcullis_common::resolution::ScopeKind;

/// A rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Its id.
    pub id: String,
    /// The type of detection.
    pub kind: String,
    /// Only there.
    pub scope: Option<Attachment>,
    /// Only about this endpoint; `*` stands for any characters, and letter case makes no difference.
    pub endpoint: Option<String>,
    /// Only by this executable; `*` stands for any characters.
    pub process: Option<String>,
}

/// Where something happened.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The cluster of the host.
    pub cluster: &'a str,
    /// The organization, in lower case.
    pub organization: &'a str,
    /// `owner/name`, in lower case.
    pub repository: &'a str,
    /// The workflow's path, as it is written.
    pub workflow: &'a str,
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The type of detection.
    pub kind: &'a str,
    /// Where it happened.
    pub place: Place<'a>,
    /// The endpoint, when it is about one.
    pub endpoint: Option<&'a str>,
    /// The executable, when it is known.
    pub process: Option<&'a str>,
}

impl Place<'_> {
    /// Whether the target is around this place.
    pub fn is_in(&self, target: &Attachment) -> bool {
        match target.scope() {
            ScopeKind::Default => false,
            ScopeKind::Cluster => target.target() == self.cluster,
            ScopeKind::Organization => target.target() == self.organization,
            ScopeKind::Repository => target.target() == self.repository,
            // The path as GitHub writes it has the repository's own letter case.
            ScopeKind::Workflow => Attachment::new(ScopeKind::Workflow, self.workflow)
                .is_ok_and(|workflow| workflow.target() == target.target()),
        }
    }
}

impl Rule {
    /// Whether the rule suppresses a detection. What a rule asks for and the detection does not have, does not match.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        let fits = |pattern: &Option<String>, text: Option<&str>, fold: bool| match (pattern, text)
        {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(pattern), Some(text)) if fold => {
                glob(&pattern.to_ascii_lowercase(), &text.to_ascii_lowercase())
            }
            (Some(pattern), Some(text)) => glob(pattern, text),
        };
        self.kind == facts.kind
            && self.scope.as_ref().is_none_or(|scope| facts.place.is_in(scope))
            && fits(&self.endpoint, facts.endpoint, true)
            && fits(&self.process, facts.process, false)
    }
}

/// Whether `text` has the form of `pattern`, in which `*` stands for any characters. Takes time in the product of both
/// lengths at most: the last `*` is the only one that is tried again.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut in_pattern, mut in_text) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(letter) = text.get(in_text) {
        match pattern.get(in_pattern) {
            Some(b'*') => {
                star = Some((in_pattern, in_text));
                in_pattern += 1;
            }
            Some(expected) if expected == letter => {
                in_pattern += 1;
                in_text += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                in_pattern = at + 1;
                in_text = taken + 1;
            }
        }
    }
    pattern.iter().skip(in_pattern).all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::{Facts, Place, Rule, glob};
    use portcullis_common::policy::Attachment;
    use portcullis_common::resolution::ScopeKind;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c", "abcabc", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("**", "x", true),
            ("a", "ab", false),
            ("a?c", "abc", false),
            ("/opt/*/bin/node", "/opt/tools/node/20/bin/node", true),
            ("*.example.com:443", "example.com:443", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
        // Many stars don't take for ever.
        assert!(!glob(&"*a".repeat(200), &"b".repeat(100_000)));
    }

    #[test]
    fn a_rule_matches_what_it_says_and_nothing_else() {
        let place = Place {
            cluster: "prod",
            organization: "octo",
            repository: "octo/hello",
            workflow: "Octo/Hello/.github/workflows/ci.yml",
        };
        let facts = Facts {
            kind: "Reverse-Shell",
            place,
            endpoint: Some("Evil.test:4444"),
            process: Some("/usr/bin/bash"),
        };
        let rule = Rule {
            id: "r".to_owned(),
            kind: "Reverse-Shell".to_owned(),
            scope: None,
            endpoint: None,
            process: None,
        };
        let target = |scope, target| Some(Attachment::new(scope, target).unwrap());
        for (rule, expected) in [
            (rule.clone(), true),
            (Rule { kind: "Sudo-Use".to_owned(), ..rule.clone() }, false),
            (Rule { scope: target(ScopeKind::Cluster, "prod"), ..rule.clone() }, true),
            (Rule { scope: target(ScopeKind::Cluster, "dev"), ..rule.clone() }, false),
            (Rule { scope: target(ScopeKind::Organization, "Octo"), ..rule.clone() }, true),
            (Rule { scope: target(ScopeKind::Repository, "octo/hell"), ..rule.clone() }, false),
            (
                Rule {
                    scope: target(ScopeKind::Workflow, "octo/hello/.github/workflows/ci.yml"),
                    ..rule.clone()
                },
                true,
            ),
            (Rule { endpoint: Some("*evil.test:*".to_owned()), ..rule.clone() }, true),
            (Rule { endpoint: Some("evil.test".to_owned()), ..rule.clone() }, false),
            (Rule { process: Some("/usr/bin/*".to_owned()), ..rule.clone() }, true),
            (Rule { process: Some("/usr/bin/Bash".to_owned()), ..rule.clone() }, false),
        ] {
            assert_eq!(rule.matches(&facts), expected, "{rule:?}");
        }
        let unknown = Facts { process: None, endpoint: None, ..facts };
        assert!(!Rule { process: Some("*".to_owned()), ..rule }.matches(&unknown));
    }
}
