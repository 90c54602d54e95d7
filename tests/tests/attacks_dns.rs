//! ATTACKS.md, D1-D8: what a hostile job does to its resolver, through the redirection and with everything in place.
//!
//! The programs ask the attacker's server or the world's own; what they say of the answers is compared line by line.

use anyhow::{Context, Result, ensure};
use portcullis_common::event::{Event, RecordedDetection, Verdict};
use portcullis_tests::evidence::{Actor, NO_RULE, Question, dns_events, find_detection};
use portcullis_tests::gate::{Gate, POLICY, policy, step};
use portcullis_tests::{JobOutcome, JobResult, World, wait_until};

const ALLOWED: &[&str] = &[
    "ok.test:443",
    "api.ok.test:443",
    "text.ok.test:443",
    "*.wild.test:443",
    "*.other-wild.test:443",
];

/// The world's name server, which `resolv.conf` names.
const OWN: &str = "203.0.113.53";

/// What is run, whom it asks, and what it must say behind the gate. The last lines of each are the benign twins.
const ATTACKS: &[(&str, &str, &[&str])] = &[
    // D1: whatever server is asked over whatever, ours answers.
    ("over-tcp", "203.0.113.66", OVER_TCP),
    ("over-tcp", "2001:db8::66", OVER_TCP),
    ("over-tcp", "2001:db8::53", OVER_TCP),
    // D2: and the second question hidden behind the count, in another section, over TCP.
    (
        "two-questions",
        OWN,
        &[
            "two: FORMERR",
            "two over TCP: FORMERR",
            "hidden: FORMERR",
            "as answer: FORMERR",
            "as additional: FORMERR",
            "one: NOERROR 198.51.100.10",
        ],
    ),
    // D3: and in another order, and with segments that end within a message.
    (
        "pipelined",
        OWN,
        &[
            "in one segment: NOERROR 198.51.100.10, NXDOMAIN",
            "evil first: NXDOMAIN, NOERROR 198.51.100.10, NXDOMAIN",
            "split: NOERROR 198.51.100.10, NXDOMAIN",
            "both allowed: NOERROR 198.51.100.10, NOERROR 198.51.100.11",
        ],
    ),
    // D4: and over TCP, and forged answers to every port of this machine while a query is under way.
    (
        "answers",
        OWN,
        &[
            "as data: silence",
            "of an allowed name: silence",
            "over TCP: silence",
            "fresh0: NOERROR 198.51.100.30",
            "fresh1: NOERROR 198.51.100.30",
            "fresh2: NOERROR 198.51.100.30",
            "ok: NOERROR 198.51.100.10",
        ],
    ),
    (
        "malformed",
        OWN,
        &[
            "no question: FORMERR",
            "empty: silence",
            "half a header: silence",
            "cut name: FORMERR",
            "cut type: FORMERR",
            "loop: FORMERR",
            "loop behind: FORMERR",
            "pointer outside: FORMERR",
            "label type: FORMERR",
            "long name: FORMERR",
            "counts: FORMERR",
            "other operation: NOTIMP",
            "other class: REFUSED",
            "64 KiB: silence",
            "length without message: silence",
            "still there: NOERROR 198.51.100.10",
            "still there over TCP: NOERROR 198.51.100.10",
        ],
    ),
    (
        "strange-labels",
        OWN,
        &[
            "dot: REFUSED",
            "nul: REFUSED",
            "and: REFUSED",
            "hash: REFUSED",
            "space: REFUSED",
            "high: REFUSED",
            "quote: REFUSED",
            "newline: REFUSED",
            "percent: REFUSED",
            "one label: REFUSED",
            "nul behind: REFUSED",
            "suffix in a label: REFUSED",
            "plain: NOERROR 198.51.100.30",
        ],
    ),
    // D7
    (
        "bulk-types",
        OWN,
        &[
            "TXT: REFUSED",
            "NULL: REFUSED",
            "CNAME: REFUSED",
            "MX: REFUSED",
            "ANY: REFUSED",
            "private: REFUSED",
            "TXT of a listed name: NOERROR",
            "A below the wildcard: NOERROR 198.51.100.30",
        ],
    ),
    // D7 by somebody who is gone when the answer comes.
    ("gone", "203.0.113.66", GONE),
    ("gone", "2001:db8::66", GONE),
    // D8: each is answered, and what it carried is gone; bytes behind the message are none of it.
    (
        "carriers",
        OWN,
        &[
            "option: NOERROR 198.51.100.30",
            "padding: NOERROR 198.51.100.30",
            "cookie: NOERROR 198.51.100.30",
            "client subnet: NOERROR 198.51.100.30",
            "bits: NOERROR 198.51.100.30",
            "size: NOERROR 198.51.100.30",
            "header bits: NOERROR 198.51.100.30",
            "number: NOERROR 198.51.100.30",
            "letter case: NOERROR 198.51.100.30",
            "trailing bytes: FORMERR",
            "plain: NOERROR 198.51.100.30",
        ],
    ),
    // D7 again: the budgets, last because they are used up then.
    ("bulk-names", OWN, &[]),
    ("long-labels", OWN, &["long labels answered: 8", "a listed name: NOERROR 198.51.100.10"]),
];

const OVER_TCP: &[&str] = &[
    "evil over TCP: NXDOMAIN",
    "evil over UDP: NXDOMAIN",
    "ok over TCP: NOERROR 198.51.100.10",
    "ok over UDP: NOERROR 198.51.100.10",
];

const GONE: &[&str] = &["evil: NXDOMAIN", "ok: NOERROR 198.51.100.10"];

fn run(gate: &Gate) -> Result<JobResult> {
    gate.world().dns().addresses("*.other-wild.test", &["198.51.100.31"])?;
    let mut job = gate.job();
    job.steps = ATTACKS
        .iter()
        .enumerate()
        .map(|(number, (technique, server, _))| {
            let command = format!("python3 -S $ATTACKS/dns.py {technique} {server}");
            step(&step_id(number, technique), &command)
        })
        .collect();
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    Ok(result)
}

fn step_id(number: usize, technique: &str) -> String {
    format!("{technique}-{number}")
}

/// A line of a step, found again by what stands before the colon.
fn answer<'a>(result: &'a JobResult, id: &str, what: &str) -> Result<&'a str> {
    let step = result.step(id).with_context(|| format!("no step {id}"))?;
    let prefix = format!("{what}: ");
    let line = step.log.lines().find_map(|line| line.strip_prefix(&prefix));
    line.with_context(|| format!("{id} says nothing of `{what}`:\n{}", step.log))
}

/// Whose questions of a step are.
fn asker(number: usize) -> Actor {
    let technique = ATTACKS[number].0;
    Actor::new("python3").argument(technique).step(&step_id(number, technique))
}

/// The number of the first attack of this technique.
fn number(technique: &str) -> usize {
    ATTACKS.iter().position(|attack| attack.0 == technique).expect("it is in the list")
}

#[test]
fn nothing_but_allowed_questions_leaves_and_everything_is_recorded() -> Result<()> {
    let gate = Gate::up(&policy("block", ALLOWED))?;
    let result = run(&gate)?;
    for (number, (technique, _, expected)) in ATTACKS.iter().enumerate() {
        let step = result.step(&step_id(number, technique)).context("a step is missing")?;
        for line in *expected {
            ensure!(
                step.log.lines().any(|found| found == *line),
                "{technique} does not say `{line}`:\n{}",
                step.log
            );
        }
    }
    gate.assert_contained()?;
    check_upstream(&gate)?;

    let events = gate.final_events()?;
    check_questions(&gate, &events)?;
    check_budgets(&result, &events)
}

/// Nothing of the secret reached even the allowed servers but the few long names that a budget leaves.
fn check_upstream(gate: &Gate) -> Result<()> {
    let queries = gate.world().dns().queries();
    let with_secret: Vec<_> =
        queries.iter().filter(|query| gate.canary().is_in(&query.message)).collect();
    ensure!(
        with_secret.len() <= 8
            && with_secret
                .iter()
                .all(|query| query.name.to_lowercase().ends_with(".other-wild.test")),
        "the secret went upstream: {with_secret:?}"
    );
    for query in &queries {
        let name = query.name.to_lowercase();
        ensure!(!name.contains("evil") && !name.is_empty(), "{query:?} went upstream");
        ensure!(
            matches!(query.kind.as_str(), "A" | "AAAA") || name == "text.ok.test",
            "{query:?} went upstream"
        );
    }
    // The letter case of names is the resolver's own, not the job's: it would carry a bit for each letter.
    let case = queries.iter().filter(|query| query.name.eq_ignore_ascii_case("case.wild.test"));
    ensure!(case.clone().count() == 1, "the name with strange letter case was not asked once");
    ensure!(
        case.clone().all(|query| query.name != "CaSe.WiLd.TeSt"),
        "the letter case went through"
    );
    // Neither flags nor a size nor a number of the job's choice.
    for query in queries.iter().filter(|query| query.name.to_lowercase().starts_with("api")) {
        ensure!(query.message[3] & 0x70 == 0, "flags of the job went upstream: {query:?}");
        let has = |needle: &[u8]| query.message.windows(needle.len()).any(|part| part == needle);
        ensure!(!has(&[0x63, 0x61]), "a value of the job's choice went upstream: {query:?}");
    }
    Ok(())
}

fn check_questions(gate: &Gate, events: &[Event]) -> Result<()> {
    let blocked = |name: &str| Question::of(name).verdict(Verdict::Blocked).policy(POLICY);
    let evil = format!("{}.evil.test", gate.canary());
    for first in 0..3 {
        blocked(&evil)
            .rule(NO_RULE)
            .response_code("NXDOMAIN")
            .query_type("A")
            .by(asker(first))
            .find(events)?;
    }
    blocked(&evil).by(asker(number("pipelined"))).find(events)?;
    blocked(&format!("{}.other.test", gate.canary()))
        .by(asker(number("pipelined")))
        .find(events)?;
    for technique in ["two-questions", "answers", "malformed"] {
        blocked("").rule("not a well-formed query").by(asker(number(technique))).find(events)?;
    }
    for name in
        ["www\\046ok.wild.test", "evil\\000ok.wild.test", "a\\032b.wild.test", "ok\\046test"]
    {
        blocked(name)
            .rule("not a host name")
            .response_code("REFUSED")
            .by(asker(number("strange-labels")))
            .find(events)?;
    }
    for query_type in ["TXT", "NULL", "CNAME", "MX"] {
        blocked(&format!("{}.wild.test", gate.canary()))
            .query_type(query_type)
            .rule("queries of this type are not forwarded")
            .by(asker(number("bulk-types")))
            .find(events)?;
    }
    Question::of("ok.test")
        .verdict(Verdict::Allowed)
        .rule("ok.test:443")
        .response_code("NOERROR")
        .by(asker(0))
        .find(events)?;
    Ok(())
}

fn check_budgets(result: &JobResult, events: &[Event]) -> Result<()> {
    let found = find_detection(
        events,
        RecordedDetection::DnsExfiltration,
        "too many different names below one wildcard (*.wild.test)",
    )?;
    asker(number("bulk-names")).check(found.process.as_ref())?;
    let found = find_detection(
        events,
        RecordedDetection::DnsExfiltration,
        "too many long labels below one wildcard (*.other-wild.test)",
    )?;
    asker(number("long-labels")).check(found.process.as_ref())?;
    let bulk = number("bulk-names");
    let answered: usize =
        answer(result, &step_id(bulk, "bulk-names"), "many names answered")?.parse()?;
    ensure!((1..=512).contains(&answered), "{answered} of 700 names were answered");
    let refused = dns_events(events)
        .filter(|question| question.rule == "too many different names below one wildcard")
        .count();
    ensure!(refused >= 700 - 512, "{refused} names are recorded as refused");
    Ok(())
}

#[test]
fn without_a_gate_the_same_questions_carry_the_secret_out() -> Result<()> {
    let gate = Gate::without(World::builder())?;
    let result = run(&gate)?;
    let first = step_id(0, "over-tcp");
    ensure!(
        answer(&result, &first, "evil over TCP")? == "NOERROR 203.0.113.66",
        "{}",
        result.log()
    );
    gate.assert_leaked()?;
    // The same secret in the messages that reach an ordinary name server: answers, options, bulk types.
    for (what, marker) in [("an answer", &[0x81, 0x80][..]), ("an option", &[0xfd, 0xe9])] {
        wait_until(&format!("{what} with the secret to reach the name server"), || {
            gate.world().dns().queries().iter().any(|query| {
                let has = query.message.windows(2).any(|part| part == marker);
                has && gate.canary().is_in(&query.message)
            })
        })?;
    }
    let queries = gate.world().dns().queries();
    let bulk =
        queries.iter().any(|query| query.kind == "TXT" && gate.canary().is_in(&query.message));
    ensure!(bulk, "no TXT query with the secret");
    ensure!(
        queries.iter().any(|query| query.name == "CaSe.WiLd.TeSt"),
        "no name as it was written"
    );
    let names = step_id(number("bulk-names"), "bulk-names");
    ensure!(answer(&result, &names, "many names answered")? == "700", "{}", result.log());
    Ok(())
}
