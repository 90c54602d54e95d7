//! The pages, one file each, with the forms that belong to them.

mod access;
mod attach;
mod destinations;
mod detections;
mod explain;
mod home;
mod job;
mod policies;
mod policy;
mod policy_change;
mod policy_history;
mod processes;
mod runners;
mod runs;

use super::Pages;

pub(super) fn pages(pages: &mut Pages) {
    home::pages(pages);
    runs::pages(pages);
    job::pages(pages);
    policies::pages(pages);
    policy::pages(pages);
    policy_history::pages(pages);
    policy_change::pages(pages);
    attach::pages(pages);
    processes::pages(pages);
    detections::pages(pages);
    destinations::pages(pages);
    explain::pages(pages);
    runners::pages(pages);
    access::pages(pages);
}
