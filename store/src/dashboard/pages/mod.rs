//! The pages, one file each, with the forms that belong to them.

mod policies;

use super::Pages;

pub(super) fn pages(pages: &mut Pages) {
    policies::pages(pages);
}
