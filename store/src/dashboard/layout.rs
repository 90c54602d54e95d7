//! The frame that every page has: navigation, who is signed in, what was done just now.

use super::assets;
use super::page::{OpenPage, Page};
use super::session::cookie_value;
use axum::http::HeaderMap;
use portcullis_common::store_api::Role;

/// Which part of the dashboard a page belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Section {
    /// None of them.
    None,
    /// The last day.
    Home,
    /// Policies.
    Policies,
    /// Which policy applies.
    Explain,
    /// Runs and jobs.
    Runs,
    /// Detections.
    Detections,
    /// Destinations.
    Destinations,
    /// Baselines.
    Baselines,
    /// Runner hosts.
    Runners,
    /// How to install.
    Install,
    /// Notifications.
    Integrations,
    /// Tokens.
    Access,
    /// Who changed what.
    AuditLog,
}

/// How the reader wants pages to look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Theme {
    /// As the system says.
    System,
    /// Light.
    Light,
    /// Dark.
    Dark,
}

impl Theme {
    /// What the reader chose; a cookie, so that the first paint is right.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        match cookie_value(headers, "portcullis-theme") {
            Some("light") => Self::Light,
            Some("dark") => Self::Dark,
            _ => Self::System,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }
}

/// A link of the navigation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    section: Section,
    /// Where it leads.
    pub(crate) href: &'static str,
    /// What it is called.
    pub(crate) title: &'static str,
    role: Role,
}

const fn link(section: Section, href: &'static str, title: &'static str, role: Role) -> Link {
    Link { section, href, title, role }
}

/// The navigation, in groups.
const GROUPS: [(&str, &[Link]); 4] = [
    (
        "Activity",
        &[
            link(Section::Home, "/", "Home", Role::Viewer),
            link(Section::Runs, "/runs", "Runs", Role::Viewer),
            link(Section::Detections, "/detections", "Detections", Role::Viewer),
            link(Section::Destinations, "/destinations", "Destinations", Role::Viewer),
            link(Section::Baselines, "/baselines", "Baselines", Role::Viewer),
        ],
    ),
    (
        "Policy",
        &[
            link(Section::Policies, "/policies", "Policies", Role::Viewer),
            link(Section::Explain, "/explain", "Explain", Role::Viewer),
        ],
    ),
    (
        "Fleet",
        &[
            link(Section::Runners, "/runners", "Runners", Role::Viewer),
            link(Section::Install, "/install", "Install", Role::Viewer),
        ],
    ),
    (
        "Settings",
        &[
            link(Section::Integrations, "/integrations", "Integrations", Role::Admin),
            link(Section::Access, "/access", "Access", Role::Admin),
            link(Section::AuditLog, "/audit-log", "Audit log", Role::Admin),
        ],
    ),
];

/// Where the parts of a page are.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    /// The script of every page.
    pub(crate) script: String,
    /// The styles.
    pub(crate) styles: String,
    /// The script of pages with a chart.
    pub(crate) chart: String,
    /// The script of pages with an editor.
    pub(crate) editor: String,
    /// The icon.
    pub(crate) icon: String,
}

impl Addresses {
    pub(super) fn new() -> Self {
        Self {
            script: assets::address("app.js"),
            styles: assets::address("app.css"),
            chart: assets::address("chart.js"),
            editor: assets::address("editor.js"),
            icon: assets::address("icon.svg"),
        }
    }
}

/// The frame of one page.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The page's title.
    pub(crate) title: String,
    section: Section,
    /// Who is signed in; empty on pages without.
    pub(crate) user: String,
    role: Option<Role>,
    /// The proof that forms carry.
    pub(crate) proof: String,
    theme: Theme,
    /// What was done just now.
    pub(crate) notice: Option<&'static str>,
    /// Scripts and styles.
    pub(crate) addresses: Addresses,
}

impl Layout {
    pub(super) fn new(page: &Page, title: String, section: Section) -> Self {
        Self {
            title,
            section,
            user: page.session.name().to_owned(),
            role: Some(page.session.role()),
            proof: page.proof(),
            theme: page.open.theme,
            notice: page.query("done").and_then(notice),
            addresses: Addresses::new(),
        }
    }

    /// The frame of a page that nobody is signed in for.
    pub(super) fn open(page: &OpenPage, title: &str) -> Self {
        Self {
            title: title.to_owned(),
            section: Section::None,
            user: String::new(),
            role: None,
            proof: String::new(),
            theme: page.theme,
            notice: page.query.get("done").and_then(notice),
            addresses: Addresses::new(),
        }
    }

    /// Whether somebody is signed in.
    pub(crate) const fn is_signed_in(&self) -> bool {
        self.role.is_some()
    }

    /// Whether who is signed in may change policies.
    pub(crate) fn may_edit(&self) -> bool {
        self.role.is_some_and(|role| role.allows(Role::Editor))
    }

    /// Whether who is signed in may change who may do what.
    pub(crate) fn may_administer(&self) -> bool {
        self.role.is_some_and(|role| role.allows(Role::Admin))
    }

    /// The role of who is signed in.
    pub(crate) fn role(&self) -> &'static str {
        self.role.map_or("", Role::name)
    }

    /// How the reader wants it.
    pub(crate) const fn theme(&self) -> &'static str {
        self.theme.name()
    }

    /// The navigation, as far as who is signed in may go.
    pub(crate) fn groups(&self) -> Vec<(&'static str, Vec<Link>)> {
        let may = |link: &&Link| self.role.is_some_and(|role| role.allows(link.role));
        GROUPS
            .iter()
            .map(|(title, links)| (*title, links.iter().filter(may).copied().collect::<Vec<_>>()))
            .filter(|(_, links)| !links.is_empty())
            .collect()
    }

    /// Whether what was done did not work.
    pub(crate) fn has_failed(&self) -> bool {
        self.notice == notice(TEST_FAILED)
    }

    /// Whether a link leads to where the reader is.
    pub(crate) fn is_here(&self, link: &Link) -> bool {
        link.section == self.section
    }
}

/// The code of the one notice that tells of a failure.
const TEST_FAILED: &str = "test-failed";

/// What a page says that was done just before it. Only these: an address can't put words into our mouth.
fn notice(code: &str) -> Option<&'static str> {
    Some(match code {
        "saved" => "Saved as a new version.",
        "unchanged" => "Nothing had changed, so there is no new version.",
        "created" => "The policy was made. Attach it, so that it applies to jobs.",
        "deleted" => "The policy was deleted. Its versions stay in the record.",
        "renamed" => "The policy has its new name.",
        "restored" => "The earlier version is the newest one again.",
        "attached" => "Attached. The next job gets this policy.",
        "detached" => "Detached.",
        "endpoint-added" => "The endpoint was added. The next job may reach it.",
        "imported" => "The endpoints were imported.",
        "token-revoked" => "The token was revoked, at once.",
        "host-revoked" => "The host's credentials were revoked, at once.",
        "enrolment-revoked" => "The enrolment token was revoked.",
        "suppressed" => "Suppressed. What matches no longer counts as new.",
        "unsuppressed" => "The suppression was removed.",
        "resolved" => "Marked as resolved.",
        "reopened" => "Marked as new again.",
        "integration-saved" => "The integration was saved.",
        "integration-deleted" => "The integration was deleted.",
        "test-delivered" => "The test was delivered.",
        TEST_FAILED => "The test was not delivered; the list of deliveries says why.",
        "retried" => "It is tried again.",
        "signed-out" => "You are signed out.",
        _ => return None,
    })
}
