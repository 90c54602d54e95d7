use super::*;
use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData, RecordType};
use proptest::prelude::*;

/// A query message: header fields, then `rest`.
fn message(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [0x1234, flags].into_iter().chain(counts) {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    bytes.extend_from_slice(rest);
    bytes
}

fn question(labels: &[&[u8]], query_type: u16, class: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in labels {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes.extend_from_slice(&query_type.to_be_bytes());
    bytes.extend_from_slice(&class.to_be_bytes());
    bytes
}

fn opt(payload: u16, version: u8, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 41];
    bytes.extend_from_slice(&payload.to_be_bytes());
    bytes.extend_from_slice(&[0, version, 0x80, 0]);
    bytes.extend_from_slice(&u16::try_from(options.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(options);
    bytes
}

fn github() -> Vec<u8> {
    question(&[b"GitHub", b"com"], 1, 1)
}

const RD: u16 = 0x0100;

/// What parsing comes to, in a word.
fn check(bytes: &[u8], expected: &str) {
    let found = match parse(bytes) {
        Parsed::Query(query) => format!(
            "{} {} {:?}",
            query.question.escaped_name(),
            query.question.query_type(),
            query.edns
        ),
        Parsed::Refused(refused) => refused.code.name().to_owned(),
        Parsed::Drop => "drop".to_owned(),
    };
    assert_eq!(found, expected, "{bytes:02x?}");
}

#[test]
fn ordinary_queries_are_read() {
    check(&message(RD, [1, 0, 0, 0], &github()), "github.com 1 None");
    let with = |opt: &[u8]| message(RD, [1, 0, 0, 1], &[&github(), opt].concat());
    check(&with(&opt(4096, 0, &[])), "github.com 1 Some(1232)");
    check(&with(&opt(0, 0, &[])), "github.com 1 Some(512)");
    // A cookie and padding, as dig and others send them.
    check(&with(&opt(1000, 0, &[0, 10, 0, 2, 7, 7, 0, 12, 0, 0])), "github.com 1 Some(1000)");
    // AD and CD, which DNSSEC-aware clients set.
    check(&message(RD | 0x30, [1, 0, 0, 0], &github()), "github.com 1 None");
    check(&message(0, [1, 0, 0, 0], &question(&[], 2, 1)), ". 2 None");
}

#[test]
fn everything_else_is_refused() {
    let good = github();
    check(&[], "drop");
    check(&[0; 11], "drop");
    check(&message(0x8000 | RD, [1, 0, 0, 0], &good), "drop");
    check(&message(0x2800, [1, 0, 0, 0], &good), "NOTIMP");
    check(&message(RD, [0, 0, 0, 0], &[]), "FORMERR");
    check(&message(RD, [2, 0, 0, 0], &[good.clone(), good.clone()].concat()), "FORMERR");
    check(&message(RD, [1, 1, 0, 0], &good), "FORMERR");
    check(&message(RD, [1, 0, 1, 0], &good), "FORMERR");
    check(&message(RD, [1, 0, 0, 2], &good), "FORMERR");
    check(&message(RD | 0x0200, [1, 0, 0, 0], &good), "FORMERR");
    check(&message(RD, [1, 0, 0, 0], &[&good[..], b"x"].concat()), "FORMERR");
    check(&message(RD, [1, 0, 0, 0], &good[..good.len() - 1]), "FORMERR");
    check(&message(RD, [1, 0, 0, 0], &question(&[b"version", b"bind"], 16, 3)), "REFUSED");
    // Pointers: to itself, to the header, forward; extended label types.
    for pointer in [[0xc0, 12], [0xc0, 0], [0xc0, 14], [0x41, 1], [0x80, 1]] {
        check(&message(RD, [1, 0, 0, 0], &[&pointer[..], &[0, 1, 0, 1]].concat()), "FORMERR");
    }
    let long = question(&[&[b'a'; 63][..]; 4], 1, 1);
    check(&message(RD, [1, 0, 0, 0], &long), "FORMERR");
    let longest = question(&[&[b'a'; 63][..], &[b'a'; 63], &[b'a'; 63], &[b'a'; 61]], 1, 1);
    assert!(matches!(parse(&message(RD, [1, 0, 0, 0], &longest)), Parsed::Query(_)));
    let too_long = question(&[&[b'a'; 63][..], &[b'a'; 63], &[b'a'; 63], &[b'a'; 62]], 1, 1);
    check(&message(RD, [1, 0, 0, 0], &too_long), "FORMERR");
    let with = |opt: &[u8]| message(RD, [1, 0, 0, 1], &[&good[..], opt].concat());
    check(&with(&opt(1232, 1, &[])), "BADVERS");
    check(&with(&opt(1232, 0, &[0, 10, 0, 9, 1])), "FORMERR");
    check(&with(&[&opt(1232, 0, &[])[..], b"x"].concat()), "FORMERR");
    check(&with(&good), "FORMERR");
    check(&vec![0; MAXIMUM_QUERY * 2], "FORMERR");
}

#[test]
fn unusual_bytes_are_no_host_name() {
    for label in ["a.b", "a\0b", "a&b", "a#b", "a b", "b\u{fc}cher", "*", "a/b", "a\\b", "a@b"] {
        let bytes = message(RD, [1, 0, 0, 0], &question(&[label.as_bytes(), b"test"], 1, 1));
        let Parsed::Query(query) = parse(&bytes) else { panic!("{label} is well-formed") };
        assert_eq!(query.question.host_name(), None, "{label}");
        assert!(query.question.escaped_name().contains('\\'), "{label}");
    }
    let bytes = message(RD, [1, 0, 0, 0], &question(&[b"_Http", b"_tcp", b"a-b9"], 33, 1));
    let Parsed::Query(query) = parse(&bytes) else { panic!("well-formed") };
    assert_eq!(query.question.host_name().as_deref(), Some("_http._tcp.a-b9"));
}

/// Answers `query` with `body`, as hickory reads it.
fn answered(query: &[u8], body: &Body, age: u32, limit: usize) -> Message {
    let Parsed::Query(query) = parse(query) else { panic!("a query") };
    let mut out = vec![0xff; 3];
    write_response(&mut out, &ReplyTo::new(&query), body, age, limit);
    assert!(out.len() <= limit);
    Message::from_vec(&out).unwrap()
}

#[test]
fn answers_are_what_was_asked_for() {
    let query = message(RD, [1, 0, 0, 1], &[github(), opt(1232, 0, &[0, 10, 0, 1, 9])].concat());
    let mut builder = BodyBuilder::new(github().len());
    assert!(builder.alias("lb.example.net", 60) && builder.alias("a.b.example.net", 60));
    assert!(builder.address("203.0.113.1".parse().unwrap(), 60));
    assert!(builder.address("203.0.113.2".parse().unwrap(), 60));
    let answer = answered(&query, &builder.build(ResponseCode::NoError, None), 13, 1232);
    let records: Vec<String> = answer.answers.iter().map(ToString::to_string).collect();
    assert_eq!(
        records,
        [
            "GitHub.com. 47 IN CNAME lb.example.net.",
            "lb.example.net. 47 IN CNAME a.b.example.net.",
            "a.b.example.net. 47 IN A 203.0.113.1",
            "a.b.example.net. 47 IN A 203.0.113.2",
        ]
    );
    assert_eq!(answer.metadata.id, 0x1234);
    assert_eq!(answer.queries[0].name().to_string(), "GitHub.com.");
    assert!(answer.edns.unwrap().options().as_ref().is_empty(), "no client option comes back");
}

#[test]
fn an_extended_error_only_for_those_who_understand() {
    let error = ExtendedError { code: 15, text: "policy p: no endpoint allows it".into() };
    let body = Body::empty(ResponseCode::NxDomain, Some(error));
    let plain = answered(&message(RD, [1, 0, 0, 0], &github()), &body, 0, 512);
    assert_eq!(plain.edns, None);
    let query = message(RD, [1, 0, 0, 1], &[github(), opt(1232, 0, &[])].concat());
    let Parsed::Query(parsed) = parse(&query) else { panic!("a query") };
    let mut out = Vec::new();
    write_response(&mut out, &ReplyTo::new(&parsed), &body, 0, 1232);
    assert!(out.ends_with(b"\x00\x0fpolicy p: no endpoint allows it"));
    assert_eq!(u16::from(answered(&query, &body, 0, 1232).metadata.response_code), 3);
}

#[test]
fn long_answers_are_cut_and_marked() {
    let query = message(RD, [1, 0, 0, 0], &github());
    let mut builder = BodyBuilder::new(github().len());
    for number in 0..60 {
        assert!(builder.address([203, 0, 113, number].into(), 60));
    }
    let body = builder.build(ResponseCode::NoError, None);
    let cut = answered(&query, &body, 0, 512);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = answered(&query, &body, 0, 65535);
    assert!(!whole.metadata.truncation && whole.answers.len() == 60);
}

#[test]
fn refusals_carry_nothing_but_the_question() {
    let mut out = Vec::new();
    for (bytes, code) in [
        (message(0x2800, [1, 0, 0, 0], &github()), 4),
        (message(RD, [3, 0, 0, 0], b"secret"), 1),
        (message(RD, [1, 0, 0, 1], &[github(), opt(1232, 9, b"")].concat()), 16),
    ] {
        let Parsed::Refused(refused) = parse(&bytes) else { panic!("refused") };
        write_refusal(&mut out, &refused);
        let answer = Message::from_vec(&out).unwrap();
        assert_eq!(u16::from(answer.metadata.response_code), code);
        assert!(!out.windows(6).any(|window| window == b"secret"));
    }
}

#[test]
fn equal_questions_have_equal_keys() {
    let key = |labels: &[&[u8]], query_type| {
        let bytes = message(RD, [1, 0, 0, 0], &question(labels, query_type, 1));
        let Parsed::Query(query) = parse(&bytes) else { panic!("a query") };
        query.question.cache_key().as_bytes().to_vec()
    };
    assert_eq!(key(&[b"GITHUB", b"com"], 1), key(&[b"github", b"COM"], 1));
    assert_ne!(key(&[b"github", b"com"], 1), key(&[b"github", b"com"], 28));
    assert_ne!(key(&[b"a", b"b"], 1), key(&[b"a.b"], 1));
}

#[test]
fn outgoing_queries_differ_in_id_and_case_and_know_their_answer() {
    let query = OutgoingQuery::build("registry.npmjs.org", 28, true).unwrap();
    let parsed = Message::from_vec(query.bytes()).unwrap();
    assert_eq!(parsed.queries[0].name().to_lowercase().to_string(), "registry.npmjs.org.");
    assert_eq!(parsed.queries[0].query_type(), RecordType::AAAA);
    let edns = parsed.edns.unwrap();
    assert_eq!((edns.max_payload(), edns.options().as_ref().len()), (1232, 0));
    assert!(!edns.flags().dnssec_ok);
    let others: std::collections::HashSet<Vec<u8>> = (0..50)
        .map(|_| OutgoingQuery::build("registry.npmjs.org", 28, true).unwrap().bytes().to_vec())
        .collect();
    assert!(others.len() > 45, "ids and letter case are random");

    let mut answer = query.bytes().to_vec();
    assert_eq!(query.compare(&answer), Match::Foreign, "a query is no answer");
    answer[2] |= 0x80;
    assert_eq!(query.compare(&answer), Match::Exact);
    answer[13] ^= 0x20;
    assert_eq!(query.compare(&answer), Match::LetterCase);
    answer[13] ^= 0x01;
    assert_eq!(query.compare(&answer), Match::Foreign);
    assert_eq!(query.compare(&query.bytes()[..20]), Match::Foreign);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut out = Vec::new();
        match parse(&bytes) {
            Parsed::Query(query) => {
                let _ = query.question.host_name();
                let _ = query.question.escaped_name();
                let _ = query.question.cache_key();
                let body = Body::empty(ResponseCode::NxDomain, None);
                write_response(&mut out, &ReplyTo::new(&query), &body, 0, 512);
            }
            Parsed::Refused(refused) => write_refusal(&mut out, &refused),
            Parsed::Drop => {}
        }
    }

    /// What our parser takes, hickory reads the same way.
    #[test]
    fn the_parser_agrees_with_hickory(
        labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..64), 0..5),
        query_type in any::<u16>(),
        class in 0u16..4,
        damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
        let mut bytes = message(RD, [1, 0, 0, 0], &question(&labels, query_type, class));
        if let Some((index, byte)) = damage {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Parsed::Query(query) = parse(&bytes) {
            let theirs = Message::from_vec(&bytes).unwrap();
            prop_assert_eq!(theirs.queries.len(), 1);
            prop_assert_eq!(u16::from(theirs.queries[0].query_type()), query.question.query_type());
            if let Some(name) = query.question.host_name() {
                let text: Vec<String> = theirs.queries[0]
                    .name()
                    .iter()
                    .map(|label| String::from_utf8(label.to_ascii_lowercase()).unwrap())
                    .collect();
                prop_assert_eq!(text.join("."), name);
            }
        }
    }

    /// D8: whatever a client adds to its message, what goes upstream is made of the name's letters alone.
    #[test]
    fn nothing_of_the_client_but_the_name_goes_upstream(
        labels in prop::collection::vec("[a-zA-Z0-9_-]{1,20}", 1..5),
        option in prop::collection::vec(any::<u8>(), 8..40),
        id in any::<u16>(),
    ) {
        let labels: Vec<&[u8]> = labels.iter().map(String::as_bytes).collect();
        let mut options = vec![0xff, 0xf0];
        options.extend_from_slice(&u16::try_from(option.len()).unwrap().to_be_bytes());
        options.extend_from_slice(&option);
        let rest = [question(&labels, 1, 1), opt(4096, 0, &options)].concat();
        let mut bytes = message(0x0130, [1, 0, 0, 1], &rest);
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        let Parsed::Query(query) = parse(&bytes) else { panic!("well-formed") };
        let name = query.question.host_name().unwrap();
        let outgoing = OutgoingQuery::build(&name, 1, true).unwrap();
        let sent = Message::from_vec(outgoing.bytes()).unwrap();
        // Everything in it is accounted for: header, our question, our OPT record.
        prop_assert_eq!(outgoing.bytes().len(), HEADER + name.len() + 2 + 4 + 11);
        let asked: Vec<&[u8]> = sent.queries[0].name().iter().collect();
        prop_assert_eq!(asked.join(&b'.').to_ascii_lowercase(), name.as_bytes());
        let flags = &outgoing.bytes()[2..HEADER];
        prop_assert_eq!(flags, [1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        prop_assert!(outgoing.bytes().ends_with(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]));
    }

    /// Every body that is built is a message that others can read.
    #[test]
    fn bodies_are_well_formed(
        aliases in prop::collection::vec("[a-z0-9-]{1,20}(\\.[a-z0-9]{1,10}){1,3}", 0..16),
        addresses in prop::collection::vec(any::<std::net::IpAddr>(), 0..40),
        age in any::<u32>(),
    ) {
        let query = message(RD, [1, 0, 0, 0], &github());
        let mut builder = BodyBuilder::new(github().len());
        for alias in &aliases {
            prop_assert!(builder.alias(alias, 300));
        }
        for address in &addresses {
            prop_assert!(builder.address(*address, 300));
        }
        let answer = answered(&query, &builder.build(ResponseCode::NoError, None), age, 65535);
        prop_assert_eq!(answer.answers.len(), aliases.len() + addresses.len());
        let text = |name: &Name| name.iter().collect::<Vec<_>>().join(&b'.');
        let mut owner = b"GitHub.com".to_vec();
        for (record, alias) in answer.answers.iter().zip(&aliases) {
            prop_assert_eq!(text(&record.name), owner);
            owner = alias.as_bytes().to_vec();
            let RData::CNAME(target) = &record.data else { panic!("an alias") };
            prop_assert_eq!(text(&target.0), alias.as_bytes());
        }
        for record in answer.answers.iter().skip(aliases.len()) {
            prop_assert_eq!(text(&record.name), owner.clone());
            prop_assert_eq!(record.ttl, 300u32.saturating_sub(age));
        }
    }
}
