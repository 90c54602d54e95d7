//! The pages, one file each, with the forms that belong to them.

mod access;
mod attach;
mod baselines;
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

pub(super) fn pages(pages: &mut Pages) {
    home::pages(pages);
    runs::pages(pages);
    job::pages(pages);
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
