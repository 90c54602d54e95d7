use super::*;
use crate::caller::testing::eventually;
use crate::watch::audit::control;
use crate::watch::audit::tests::{
    is_first_network_namespace, wait_until_off, was_off_before_tests,
};
use std::process::{Child, Command};

fn user(pid: u32, start_time: u64, was_off: bool) -> User {
    User { key: ProcessKey { pid, start_time }, was_off }
}

#[test]
fn a_user_is_read_back_from_its_rule() {
    for was_off in [false, true] {
        let user = user(812, 123_456_789, was_off);
        assert_eq!(User::parse(&user.rule()), Some(user));
    }
}

#[test]
fn other_rules_are_nobody() {
    let foreign = |key: &str| rule(FILTER_USER, NEVER, &[], &[(FIELD_PID, 812)], key);
    let mut others = rules();
    others.extend([
        resting(),
        foreign("portcullis"),
        foreign("portcullis-user-x-audit-was-off"),
        foreign("sudo-user-1-audit-was-off"),
        Vec::new(),
        vec![0; 12],
    ]);
    let cut = user(1, 2, true).rule();
    others.push(cut[..cut.len() - 1].to_vec());
    for other in others {
        assert_eq!(User::parse(&other), None, "{other:?}");
    }
}

/// A process that stands for a monitor that uses the rules, which it leaves behind when it is killed.
fn using(control: &mut Connection, was_off: bool) -> (Child, User) {
    let process = Command::new("sleep").arg("1000").spawn().unwrap();
    let user = User { key: ProcFs.key(process.id()).unwrap(), was_off };
    change(control, AUDIT_ADD_RULE, &user.rule()).unwrap();
    for rule in rules() {
        change(control, AUDIT_ADD_RULE, &rule).unwrap();
    }
    enable(control, true).unwrap();
    (process, user)
}

/// One test, because the rules are the machine's.
#[test]
fn what_a_killed_monitor_leaves_is_taken_back_when_nobody_uses_it() {
    if !is_first_network_namespace() {
        return;
    }
    let mut control = control().unwrap();
    let was_off = was_off_before_tests(&mut control);
    let (mut killed, left) = using(&mut control, was_off);
    let (mut living, lives) = using(&mut control, was_off);
    killed.kill().unwrap();
    killed.wait().unwrap();

    // While another one uses them they stay.
    clear(&mut control).unwrap();
    assert!(listed(&mut control).unwrap().contains(&lives));
    // One that has just left may have switched it off for a moment.
    eventually("audit is on", || (status(&mut control).unwrap().enabled == 1).then_some(()));

    living.kill().unwrap();
    living.wait().unwrap();
    // Where another test uses them, they are that one's to take back.
    eventually("the rules are taken back", || {
        clear(&mut control).unwrap();
        let users = listed(&mut control).unwrap();
        let is_used = users.iter().any(|user| user.is_alive());
        (is_used || !users.contains(&left) && !users.contains(&lives)).then_some(())
    });
    if was_off {
        wait_until_off(&mut control);
    }
}
