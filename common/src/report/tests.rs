use super::{Destination, MAX_MARKDOWN_BYTES, Report, first_line, markdown};
use crate::event::{
    DetectionEvent, DetectionType, EnforcementScope, Feature, FeatureState, PolicyReference,
    Posture, PostureLevel, Process, RecordedDetection, Verdict,
};
use crate::policy::{EgressMode, LockdownDetection};
use crate::resolution::{Identity, ScopeKind};
use crate::wire::Started;
use proptest::prelude::*;

fn posture(level: PostureLevel) -> Posture {
    Posture { level, scope: EnforcementScope::Job, features: Vec::new(), warnings: Vec::new() }
}

fn destination(endpoint: &str, verdict: Verdict) -> Destination {
    Destination {
        endpoint: endpoint.to_owned(),
        verdict,
        process: "/usr/bin/curl".to_owned(),
        step: "__run_2".to_owned(),
        rule: "no endpoint allows it".to_owned(),
        count: 3,
    }
}

pub(crate) fn report() -> Report {
    Report {
        job_id: "0191".to_owned(),
        policy: PolicyReference {
            name: "node-build".to_owned(),
            version: "1f2e3d4c5b6a".to_owned(),
            scope: ScopeKind::Repository,
        },
        target: "octo/hello".to_owned(),
        identity: Identity::Asserted,
        mode: EgressMode::Block,
        posture: posture(PostureLevel::Enforced),
        allowed: 1,
        blocked: 6,
        would_block: 0,
        destinations: vec![
            destination("*.evil.test:443", Verdict::Blocked),
            destination("udp://203.0.113.66:53", Verdict::Blocked),
            Destination {
                rule: "github.com:443".to_owned(),
                count: 1,
                ..destination("github.com:443", Verdict::Allowed)
            },
        ],
        destinations_left_out: 0,
        detections: Vec::new(),
        fail_job: false,
    }
}

#[test]
fn shows_what_a_job_reached() {
    insta::assert_snapshot!(markdown(&report()), @r#"
    ## Portcullis: what this job reached

    | | |
    |---|---|
    | Policy | `node-build` version `1f2e3d4c5b6a` |
    | Attached to | repository `octo/hello` |
    | Mode | block |
    | Posture | **enforced**, scope job |
    | Identity | asserted by the runner |
    | Calls | 1 allowed, 6 blocked, 0 would be blocked |

    ### Destinations

    | Endpoint | Process | Step | Status | Rule | Policy | Count |
    |---|---|---|---|---|---|---:|
    | `*.evil.test:443` | `/usr/bin/curl` | `__run_2` | Blocked | `no endpoint allows it` | `node-build` | 3 |
    | `udp://203.0.113.66:53` | `/usr/bin/curl` | `__run_2` | Blocked | `no endpoint allows it` | `node-build` | 3 |
    | `github.com:443` | `/usr/bin/curl` | `__run_2` | Allowed | `github.com:443` | `node-build` | 1 |

    ### To allow what was stopped

    Add what this job should reach to its policy, and nothing else:

    ```yaml
    allowed-endpoints:
      - "*.evil.test:443"
      - "udp://203.0.113.66:53"
    ```
    "#);
}

#[test]
fn a_downgrade_is_red_and_warnings_are_listed() {
    let mut report = report();
    report.mode = EgressMode::Audit;
    report.posture = Posture {
        level: PostureLevel::AuditFallback,
        features: vec![
            Feature {
                name: "nftables".to_owned(),
                state: FeatureState::Missing,
                reason: "the kernel has no nf_tables".to_owned(),
            },
            Feature {
                name: "cgroup-v2".to_owned(),
                state: FeatureState::Active,
                reason: "found".to_owned(),
            },
        ],
        warnings: vec!["rules could not be verified".to_owned()],
        ..posture(PostureLevel::AuditFallback)
    };
    report.destinations = vec![destination("evil.test:443", Verdict::WouldBlock)];
    report.detections = vec![DetectionEvent {
        detection: DetectionType::Lockdown(LockdownDetection::ReverseShell),
        evidence: "standard input and output lead to 203.0.113.66:4444".to_owned(),
        is_lockdown: true,
        process: Some(Process { exe: Some("/usr/bin/bash".to_owned()), ..Process::default() }),
    }];
    report.fail_job = true;
    insta::assert_snapshot!(markdown(&report), @r#"
    ## Portcullis: what this job reached

    > [!CAUTION]
    > **The policy was not enforced.** Enforcement failed, and the failure mode let the job run; its calls were only recorded.

    > [!CAUTION]
    > **This job was killed by Lockdown Mode: `Reverse-Shell`.** standard input and output lead to 203&#46;&#8203;0&#46;&#8203;113&#46;&#8203;66&#58;&#8203;4444

    > [!WARNING]
    > * rules could not be verified
    > * `nftables` is missing: the kernel has no nf&#95;tables

    | | |
    |---|---|
    | Policy | `node-build` version `1f2e3d4c5b6a` |
    | Attached to | repository `octo/hello` |
    | Mode | audit |
    | Posture | **audit-fallback**, scope job |
    | Identity | asserted by the runner |
    | Calls | 1 allowed, 6 blocked, 0 would be blocked |

    ### Destinations

    | Endpoint | Process | Step | Status | Rule | Policy | Count |
    |---|---|---|---|---|---|---:|
    | `evil.test:443` | `/usr/bin/curl` | `__run_2` | Would be blocked | `no endpoint allows it` | `node-build` | 3 |

    ### Detections

    | Detection | Evidence | Process | Job killed |
    |---|---|---|---|
    | `Reverse-Shell` | `standard input and output lead to 203.0.113.66:4444` | `/usr/bin/bash` | **yes** |

    ### To allow what was stopped

    Add what this job should reach to its policy, and nothing else:

    ```yaml
    allowed-endpoints:
      - "evil.test:443"
    ```
    "#);
}

#[test]
fn hostile_strings_stay_text() {
    let mut report = report();
    report.target = "octo/hello | `x` \n# forged".to_owned();
    report.posture.warnings = vec!["<img src=x> @octo #1\n> [!NOTE]".to_owned()];
    report.destinations = vec![Destination {
        endpoint: "evil.test:443 |\n| forged".to_owned(),
        process: "/tmp/`|\u{1b}[31m\n</details>".to_owned(),
        step: "](https://evil.test)".to_owned(),
        rule: "\u{202e}@everyone".to_owned(),
        ..destination("", Verdict::Blocked)
    }];
    report.detections = vec![DetectionEvent {
        detection: DetectionType::Recorded(RecordedDetection::DnsExfiltration),
        evidence: "```\n## forged".to_owned(),
        is_lockdown: false,
        process: None,
    }];
    insta::assert_snapshot!(markdown(&report), @r"
    ## Portcullis: what this job reached

    > [!WARNING]
    > * &#60;img src&#61;x&#62; &#64;&#8203;octo &#35;&#8203;1\n&#62; &#91;&#33;NOTE&#93;

    | | |
    |---|---|
    | Policy | `node-build` version `1f2e3d4c5b6a` |
    | Attached to | repository `octo/hello \x7c \x60x\x60 \n# forged` |
    | Mode | block |
    | Posture | **enforced**, scope job |
    | Identity | asserted by the runner |
    | Calls | 1 allowed, 6 blocked, 0 would be blocked |

    ### Destinations

    | Endpoint | Process | Step | Status | Rule | Policy | Count |
    |---|---|---|---|---|---|---:|
    | `evil.test:443 \x7c\n\x7c forged` | `/tmp/\x60\x7c\x1b[31m\n</details>` | `](https://evil.test)` | Blocked | `\u{202e}@everyone` | `node-build` | 3 |

    ### Detections

    | Detection | Evidence | Process | Job killed |
    |---|---|---|---|
    | `Dns-Exfiltration` | `\x60\x60\x60\n## forged` | `-` | no |
    ");
}

#[test]
fn a_flood_is_cut_and_counted() {
    let mut report = report();
    let long = "|`\n".repeat(5_000);
    report.destinations = (0..50_000)
        .map(|index| Destination {
            process: long.clone(),
            ..destination(&format!("h{index}.test:443"), Verdict::Blocked)
        })
        .collect();
    report.destinations_left_out = 7;
    report.detections = vec![
        DetectionEvent {
            detection: DetectionType::Recorded(RecordedDetection::LeftOverProcess),
            evidence: long.clone(),
            is_lockdown: false,
            process: None,
        };
        5_000
    ];
    report.posture.warnings = vec![long; 5_000];
    let text = markdown(&report);
    assert!(text.len() <= MAX_MARKDOWN_BYTES, "{}", text.len());
    let shown = text.lines().filter(|line| line.starts_with("| `h")).count();
    assert!(text.contains(&format!("\n{} more destinations are not shown.\n", 50_007 - shown)));
    assert!(text.contains("more detections are not shown"));
    assert!(text.contains("more warnings are not shown"));
    assert!(text.contains("more endpoints are not shown"));
}

#[test]
fn the_snippet_is_a_valid_policy() {
    let text = markdown(&report());
    let start = text.find("```yaml\n").unwrap() + "```yaml\n".len();
    let snippet = &text[start..start + text[start..].find("```").unwrap()];
    let policy = format!("name: pasted\n{snippet}");
    let documents = crate::policy::parse_documents("pasted.yaml", policy.as_bytes()).unwrap();
    let endpoints = documents[0].document.allowed_endpoints.as_ref().unwrap();
    assert_eq!(endpoints.0.len(), 2);
}

#[test]
fn first_line_says_it_all() {
    let started = Started {
        job_id: "0191".to_owned(),
        policy: "node-build".to_owned(),
        policy_version: "1f2e3d4c5b6a".to_owned(),
        scope: ScopeKind::Repository,
        target: "octo/hello\n::error::forged".to_owned(),
        identity: Identity::Asserted,
        mode: EgressMode::Block,
        endpoints: 12,
        posture: posture(PostureLevel::Enforced),
        applied_ms: 1.5,
    };
    insta::assert_snapshot!(first_line(&started), @r"Portcullis: policy node-build version 1f2e3d4c5b6a from repository octo/hello\n::error::forged, mode block, 12 endpoints allowed, posture enforced");
}

proptest! {
    #[test]
    fn the_shape_of_the_table_does_not_depend_on_the_job(endpoint in any::<String>(), process in any::<String>(), step in ".*", rule in ".*") {
        let mut report = report();
        report.destinations = vec![Destination { endpoint, process, step, rule, ..destination("", Verdict::Allowed) }];
        let text = markdown(&report);
        let rows: Vec<&str> = text.lines().skip_while(|line| *line != "|---|---|---|---|---|---|---:|").skip(1).take_while(|line| !line.is_empty()).collect();
        prop_assert_eq!(rows.len(), 1);
        prop_assert_eq!(rows[0].matches('|').count(), 8);
        prop_assert_eq!(text.lines().filter(|line| line.starts_with('#')).count(), 2);
        prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
    }
}
