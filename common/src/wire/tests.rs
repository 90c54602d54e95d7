use super::{
    Answer, Call, DecodeError, MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, Refusal, RefusalKind, Status,
    decode_answer, decode_request, encode_answer, encode_request,
};
use crate::event::Verdict;
use crate::job_context::JobContext;
use crate::report::Destination;
use proptest::prelude::*;

fn context() -> JobContext {
    JobContext {
        repository: "octo/hello".to_owned(),
        repository_owner: "octo".to_owned(),
        workflow_ref: "octo/hello/.github/workflows/ci.yml@refs/heads/main".to_owned(),
        job: "build".to_owned(),
        run_id: 7,
        run_attempt: 1,
        server_url: "https://github.com".to_owned(),
        runner_name: "runner-1".to_owned(),
        ..JobContext::default()
    }
}

fn refused(line: &[u8]) -> (RefusalKind, String) {
    let refusal = decode_request(line).expect_err("must be refused");
    assert!(refusal.hint.is_some());
    (refusal.kind, refusal.message)
}

#[test]
fn requests_survive_the_wire() {
    for call in [
        Call::StartJob {
            context: context(),
            id_token: Some("a.b-c._d".to_owned()),
            id_token_request: Some(super::IdTokenRequest {
                url: "https://token.test/?a=b".to_owned(),
                token: "t0ken".to_owned(),
            }),
        },
        Call::FinishJob {},
        Call::Status {},
        Call::Explain { context: context() },
    ] {
        let line = encode_request(call.clone()).unwrap();
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        assert_eq!(decode_request(&line).unwrap().call, call);
    }
}

#[test]
fn the_token_is_never_printed() {
    let call = Call::StartJob {
        context: context(),
        id_token: Some("secret".to_owned()),
        id_token_request: Some(super::IdTokenRequest {
            url: "https://secret.test".to_owned(),
            token: "secret".to_owned(),
        }),
    };
    let shown = format!("{call:?}");
    assert!(shown.contains("redacted") && !shown.contains("secret"), "{shown}");
}

#[test]
fn malformed_requests_are_refused_in_words() {
    let deep = format!(
        "{{\"version\":1,\"request\":\"status\",\"x\":{}{}}}\n",
        "[".repeat(20_000),
        "]".repeat(20_000)
    );
    let huge_number = format!("{{\"version\":{},\"request\":\"status\"}}\n", "9".repeat(400));
    for (line, expected) in [
        (&b""[..], "does not end in a newline"),
        (b"\n", "can't be read: EOF"),
        (b"{\"version\":1,\"request\":\"status\"}", "does not end in a newline"),
        (b"{\"version\":1,\"request\":\n", "can't be read: EOF"),
        (b"{\"version\":1,\"request\":\"st\xff\"}\n", "byte 26 of the request is not UTF-8"),
        (b"{\"request\":\"status\"}\n", "missing field `version`"),
        (b"{\"version\":-1,\"request\":\"status\"}\n", "invalid value"),
        (b"{\"version\":1e300,\"request\":\"status\"}\n", "invalid type"),
        (b"{\"version\":1,\"version\":1,\"request\":\"status\"}\n", "duplicate field"),
        (b"{\"version\":1,\"request\":\"shut-down\"}\n", "unknown variant"),
        (b"{\"version\":1,\"request\":\"start-job\"}\n", "missing field `context`"),
        (b"[1]\n", "expected struct Request"),
        (b"null\n", "invalid type"),
        (b"{\"version\":1,\"request\":\"status\"} {}\n", "trailing characters"),
        (deep.as_bytes(), "recursion limit exceeded"),
        (huge_number.as_bytes(), "number out of range"),
    ] {
        let (kind, message) = refused(line);
        assert_eq!(kind, RefusalKind::BadRequest, "{message}");
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
}

#[test]
fn another_version_is_told_apart_from_nonsense() {
    let (kind, message) = refused(b"{\"version\":2,\"request\":\"teleport\",\"new\":{}}\n");
    assert_eq!(kind, RefusalKind::UnsupportedVersion);
    assert_eq!(message, "the hook speaks version 2 of the protocol, the monitor version 1");
}

#[test]
fn sizes_are_bounded() {
    let (_, message) = refused(&vec![b' '; MAX_REQUEST_BYTES + 1]);
    assert!(message.contains("longer than 65536 bytes"), "{message}");
    let mut long = context();
    long.workflow = "x".repeat(MAX_REQUEST_BYTES);
    assert!(encode_request(Call::Explain { context: long }).is_err());
    assert!(matches!(decode_answer(&vec![b' '; MAX_ANSWER_BYTES + 1]), Err(DecodeError::TooLong)));
    assert!(matches!(decode_answer(b"{\"answer\":\"status\""), Err(DecodeError::Incomplete)));
    assert!(matches!(decode_answer(b""), Err(DecodeError::Incomplete)));
    assert!(matches!(decode_answer(b"{\"answer\":\"x\"}\n"), Err(DecodeError::Malformed(_))));
}

#[test]
fn a_context_over_the_socket_is_checked_like_one_from_the_environment() {
    let mut hostile = context();
    hostile.runner_name = "a\n::error::b".to_owned();
    let line =
        encode_request(Call::StartJob { context: hostile, id_token: None, id_token_request: None })
            .unwrap();
    let (kind, message) = refused(&line);
    assert_eq!(kind, RefusalKind::BadRequest);
    assert!(
        message.contains("`RUNNER_NAME` has a line break") && !message.contains('\n'),
        "{message}"
    );
    let token = Some("a b\n".to_owned());
    let line = encode_request(Call::StartJob {
        context: context(),
        id_token: token,
        id_token_request: None,
    })
    .unwrap();
    assert!(refused(&line).1.contains("OIDC token"));
}

#[test]
fn answers_survive_the_wire_and_fit() {
    let answer = Answer::Status(Status::default());
    assert_eq!(decode_answer(&encode_answer(answer.clone())).unwrap(), answer);
    let mut report = crate::report::tests::report();
    report.destinations = vec![
        Destination {
            endpoint: "x".repeat(1_000),
            verdict: Verdict::Blocked,
            process: String::new(),
            step: String::new(),
            rule: String::new(),
            count: 1,
        };
        20_000
    ];
    let line =
        encode_answer(Answer::Finished { report: Box::new(report), markdown: "m".to_owned() });
    assert!(line.len() <= MAX_ANSWER_BYTES);
    let Answer::Finished { report, .. } = decode_answer(&line).unwrap() else {
        panic!("another answer")
    };
    assert!(!report.destinations.is_empty());
    assert_eq!(report.destinations.len() as u64 + report.destinations_left_out, 20_000);
    let huge = Refusal::new(RefusalKind::Busy, "x".repeat(MAX_ANSWER_BYTES), "");
    assert!(matches!(
        decode_answer(&encode_answer(Answer::Refused(huge))).unwrap(),
        Answer::Refused(_)
    ));
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode_request(&bytes).is_err());
        let _ = decode_answer(&bytes);
    }

    #[test]
    fn half_a_message_is_never_taken_for_one(cut in 0_usize..300) {
        let line = encode_request(Call::Explain { context: context() }).unwrap();
        let cut = cut.min(line.len() - 1);
        prop_assert!(decode_request(&line[..cut]).is_err());
    }
}
