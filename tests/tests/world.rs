//! The test world itself: what it promises to tests, checked before any gate is put up.

use anyhow::Result;
use portcullis_tests::{Canary, Job, JobOutcome, World};
use std::path::Path;

fn main_job(canary: &Canary) -> Result<Job> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/main.yml");
    let mut job = Job::from_file(&path)?;
    job.secrets.insert("DEPLOY_TOKEN".to_owned(), canary.to_string());
    Ok(job)
}

#[test]
fn both_families_reach_the_internet_and_the_attacker() -> Result<()> {
    let world = World::builder().build()?;
    for (family, target) in [
        ("-4", "https://ok.test/"),
        ("-6", "https://ok.test/"),
        ("-4", "http://www.ok.test/"),
        ("-6", "https://anything.wild.test/"),
        ("-4", "https://shop.test/"),
        ("-6", "https://evil.test/"),
    ] {
        let text = world.command("curl").args(["-sS", family, target]).text()?;
        assert!(!text.is_empty(), "{family} {target}");
    }
    assert!(world.attacker().packets()? > 0);
    assert!(world.attacker().received_bytes()? > 0);
    Ok(())
}

#[test]
fn main_job_succeeds_without_a_gate_and_its_secret_leaks_every_way() -> Result<()> {
    let world = World::builder().main_job().build()?;
    let canary = Canary::generate()?;
    assert!(!world.attacker().saw(&canary)?);
    let result = world.runner(0).run(&main_job(&canary)?)?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    assert!(world.attacker().saw(&canary)?, "{}", result.log());
    Ok(())
}
