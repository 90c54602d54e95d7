//! The main job behind the gate: a real build whose one dependency sends the environment away.

use anyhow::Result;
use portcullis_common::event::{EventKind, JobStage, PostureLevel, Verdict};
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Canary, Job, JobOutcome, World};

/// What the main job needs, and nothing else.
const POLICY: &str = "
name: hello-build
egress-policy: block
allowed-endpoints:
  - git.test:443
  - pypi.test:443
  - files.pypi.test:443
  - api.ok.test:443
attach:
  - repository: octo/hello
";

#[test]
fn in_block_mode_the_build_succeeds_and_nothing_leaks() -> Result<()> {
    let world = World::builder().main_job().build()?;
    world.write_policy("hello.yaml", POLICY)?;
    world.install_hooks()?;
    let monitor = world.monitor(MonitorOptions::default())?;
    let canary = Canary::generate()?;
    let job = Job::from_file(std::path::Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/jobs/main.yml"
    )))?
    .secret("DEPLOY_TOKEN", canary.as_str());
    let result = world.runner(0).run(&job)?;
    println!("{}\n{}", result.log(), monitor.log());
    assert!(result.outcome == JobOutcome::Success);
    monitor.wait_until_idle()?;
    world.attacker().assert_untouched(&canary)?;
    Ok(())
}
