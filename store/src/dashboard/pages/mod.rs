//! The pages, one file each, with the forms that belong to them.

mod access;
mod attach;
mod baselines;
mod calls;
mod destinations;
mod detections;
mod dry_run;
mod explain;
mod home;
mod integrations;
mod job;
mod policies;
mod policy;
mod policy_change;
mod policy_history;
mod policy_import;
mod processes;
mod runners;
mod runs;
mod suppressions;

use super::Pages;
use super::fields::Fields;
use crate::service::now;
use std::time::Duration;

/// Times to choose from: days, and how they are called.
const DAYS: [(&str, &str); 4] =
    [("1", "a day"), ("7", "a week"), ("30", "30 days"), ("90", "90 days")];

/// The time that `days` of an address stands for, as the API takes it.
fn since(query: &Fields) -> Option<String> {
    let days: u64 = query.number("days")?;
    Some((now() - Duration::from_hours(24 * days.clamp(1, 3650))).to_string())
}

pub(super) fn pages(pages: &mut Pages) {
    home::pages(pages);
    runs::pages(pages);
    job::pages(pages);
    calls::pages(pages);
    policies::pages(pages);
    policy::pages(pages);
    policy_history::pages(pages);
    policy_change::pages(pages);
    policy_import::pages(pages);
    dry_run::pages(pages);
    attach::pages(pages);
    baselines::pages(pages);
    processes::pages(pages);
    detections::pages(pages);
    suppressions::pages(pages);
    integrations::pages(pages);
    destinations::pages(pages);
    explain::pages(pages);
    runners::pages(pages);
    access::pages(pages);
}
