use super::*;

const TICK: u64 = 10_000_000;
const WORKER: ProcessKey = ProcessKey { pid: 10, start_time: 1 };

fn subject(pid: u32, start: u64, time: u64, parent: (u32, u64)) -> Subject {
    Subject {
        pid,
        start: start * TICK,
        time: time * TICK,
        parent: parent.0,
        parent_start: parent.1 * TICK,
        uid: 1001,
        job: 5,
    }
}

fn image(executable: &str) -> Image {
    Image {
        executable: executable.to_owned(),
        directory: "/work".to_owned(),
        arguments: vec![executable.to_owned()],
        links: 1,
        effective_uid: 1001,
    }
}

fn images() -> Images {
    let mut images = Images::new();
    let worker =
        Process { exe: Some("/runner/bin/Runner.Worker".to_owned()), ..Process::default() };
    images.add_job(5, WORKER, [(WORKER, ProcessKey { pid: 9, start_time: 0 }, worker)]);
    images
}

#[test]
fn a_call_is_put_down_to_the_program_that_was_running_then() {
    let mut images = images();
    images.fork(&subject(20, 100, 100, (10, 1)));
    images.exec(&subject(20, 100, 101, (10, 1)), image("/usr/bin/bash"));
    assert!(images.environment(&subject(20, 100, 101, (10, 1)), b"A=b\0GITHUB_ACTION=__run_2\0"));
    images.fork(&subject(30, 200, 200, (20, 100)));
    images.exec(&subject(30, 200, 300, (20, 100)), image("/usr/bin/curl"));
    images.exit(&subject(30, 200, 400, (20, 100)));

    let early = images.find(30, 250 * TICK).unwrap();
    assert_eq!(early.exe.as_deref(), Some("/usr/bin/bash"));
    let late = images.find(30, 350 * TICK).unwrap();
    assert_eq!(late.exe.as_deref(), Some("/usr/bin/curl"));
    assert_eq!((late.start_time, late.step.as_deref()), (Some(200), Some("__run_2")));
    let chain: Vec<_> = late.ancestors.iter().map(|ancestor| ancestor.pid).collect();
    assert_eq!(chain, [20, 10]);
}

#[test]
fn a_number_that_was_used_again_is_another_process() {
    let mut images = images();
    images.fork(&subject(30, 200, 200, (10, 1)));
    images.exec(&subject(30, 200, 201, (10, 1)), image("/usr/bin/first"));
    images.exit(&subject(30, 200, 250, (10, 1)));
    images.fork(&subject(30, 300, 300, (10, 1)));
    images.exec(&subject(30, 300, 301, (10, 1)), image("/usr/bin/second"));
    assert_eq!(images.find(30, 240 * TICK).unwrap().exe.as_deref(), Some("/usr/bin/first"));
    assert_eq!(images.find(30, 310 * TICK).unwrap().exe.as_deref(), Some("/usr/bin/second"));
    // An end that comes late is not the end of its successor.
    images.exit(&subject(30, 200, 250, (10, 1)));
    assert_eq!(images.find(30, 310 * TICK).unwrap().exe.as_deref(), Some("/usr/bin/second"));
    assert_eq!(images.find(31, 310 * TICK), None);
}

#[test]
fn only_the_worker_names_a_step() {
    let mut images = images();
    images.fork(&subject(20, 100, 100, (10, 1)));
    assert!(!images.environment(&subject(20, 100, 101, (10, 1)), b"GITHUB_ACTION=\0"));
    assert!(!images.environment(&subject(21, 100, 101, (10, 1)), b"GITHUB_ACTION=a\0"));
    assert_eq!(images.find(20, 200 * TICK).unwrap().step, None);
}

#[test]
fn a_storm_of_processes_is_bounded_and_keeps_those_that_live() {
    let mut images = images();
    images.fork(&subject(20, 100, 100, (10, 1)));
    for pid in 1000..40_000 {
        images.fork(&subject(pid, 200, 200, (20, 100)));
        images.exit(&subject(pid, 200, 201, (20, 100)));
    }
    assert!(images.live.len() < 10);
    assert!(images.find(20, 500 * TICK).is_some());
    assert!(images.find(39_999, 500 * TICK).is_some());
    assert!(images.find(1000, 500 * TICK).is_none());
    images.remove_job(5);
    assert!(images.find(20, 500 * TICK).is_none());
}

#[test]
fn ports_belong_to_one_job() {
    let mut images = images();
    let destination = "192.0.2.7:53".parse().unwrap();
    let port = Port { protocol: 17, source_port: 40_000, destination };
    images.port(&subject(20, 100, 100, (10, 1)), &port);
    assert_eq!(images.flow(5, 40_000, destination).unwrap().pid, 20);
    assert_eq!(images.client(5, 40_000).unwrap().pid, 20);
    assert_eq!(images.client(6, 40_000), None);
}
