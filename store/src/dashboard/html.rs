//! Small pieces of HTML that many pages have. Whatever is put into them is escaped here.

use super::api_client::segment;
use askama::filters::HtmlSafe;
use jiff::Timestamp;
use portcullis_common::event::{FeatureState, PostureLevel, Verdict};
use portcullis_common::policy::{DEFAULT_AUDIT, DEFAULT_BLOCK, EgressMode};
use portcullis_common::store_api::BaselineState;
use portcullis_common::text;
use std::borrow::Borrow;
use std::fmt;

/// HTML that is made of escaped texts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Html(String);

impl fmt::Display for Html {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl HtmlSafe for Html {}

impl Html {
    /// Of a template that was rendered.
    pub(super) const fn rendered(text: String) -> Self {
        Self(text)
    }
}

/// A time. `style` says how the page's script writes it in the reader's zone; without scripts it is UTC.
pub(super) fn time(time: Timestamp, style: &'static str) -> Html {
    // Nothing in a time needs to be escaped.
    let text = time.strftime("%Y-%m-%d %H:%M:%S");
    Html(format!(
        "<time datetime=\"{time:.6}\" data-style=\"{style}\" title=\"{text} UTC\">{text} UTC</time>"
    ))
}

fn escaped(text: &str) -> String {
    let text = askama::filters::escape(text, askama::filters::Html);
    text.map(|text| text.to_string()).unwrap_or_default()
}

/// A path whose directory is less to see than its last part; it may be wrapped behind a slash.
pub(super) fn path(text: &str) -> Html {
    let (directory, name) = text.rfind('/').map_or(("", text), |at| text.split_at(at + 1));
    let directory = escaped(directory).replace('/', "/<wbr>");
    if directory.is_empty() {
        return Html(escaped(name));
    }
    Html(format!("<span class=\"muted\">{directory}</span>{}", escaped(name)))
}

/// An endpoint, already bounded: it is wrapped before its port or behind a dot of its name, and never within a port, where
/// the rest would read as another one.
pub(super) fn endpoint(text: impl AsRef<str>) -> Html {
    let text = text.as_ref();
    let is_port = |rest: &str| {
        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit() || b"-*".contains(&byte))
    };
    let (host, port) = match text.rsplit_once(':') {
        // The groups of an IPv6 address have brackets around them before a port.
        Some((host, port)) if is_port(port) && (host.ends_with(']') || !has_groups(host)) => {
            (host, Some(port))
        }
        _ => (text, None),
    };
    let is_name = without_scheme(host).bytes().any(|byte| byte.is_ascii_alphabetic());
    let shown = escaped(host);
    let shown = if is_name && !has_groups(host) { shown.replace('.', ".<wbr>") } else { shown };
    match port {
        Some(port) => Html(format!("{shown}<wbr><span class=\"nowrap\">:{port}</span>")),
        None => Html(shown),
    }
}

/// Whether this is an IPv6 address, with or without a scheme and brackets.
fn has_groups(host: &str) -> bool {
    without_scheme(host).contains(':')
}

fn without_scheme(host: &str) -> &str {
    host.split_once("://").map_or(host, |(_, host)| host)
}

/// A number with thousands set apart by a thin space.
pub(super) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A coloured word. Both are texts of this program.
fn badge(kind: &'static str, text: &'static str) -> Html {
    Html(format!("<span class=\"badge {kind}\">{text}</span>"))
}

/// What became of a call.
pub(super) fn verdict(verdict: impl Borrow<Verdict>) -> Html {
    match *verdict.borrow() {
        Verdict::Allowed => badge("good", "Allowed"),
        Verdict::Blocked => badge("bad", "Blocked"),
        Verdict::WouldBlock => badge("warn", "Would be blocked"),
    }
}

/// Whether a policy is one of those that every host has, and no page of its own.
pub(super) fn is_built_in(policy: impl AsRef<str>) -> bool {
    [DEFAULT_AUDIT, DEFAULT_BLOCK].contains(&policy.as_ref())
}

/// A policy by its name, which a host may have made up, and its page where it has one.
pub(super) fn policy(name: impl AsRef<str>) -> Html {
    let name = name.as_ref();
    let shown = escaped(&text::shown(name, 80));
    if is_built_in(name) {
        return Html(shown);
    }
    Html(format!("<a href=\"/policies/{}\">{shown}</a>", escaped(&segment(name))))
}

/// A policy's mode.
pub(super) fn mode(mode: impl Borrow<Option<EgressMode>>) -> Html {
    match *mode.borrow() {
        Some(EgressMode::Block) => badge("quiet", "Block"),
        Some(EgressMode::Audit) => badge("quiet", "Audit"),
        None => badge("plain", "Inherited"),
    }
}

/// What is in force.
pub(super) fn posture(level: impl Borrow<Option<PostureLevel>>) -> Html {
    match *level.borrow() {
        Some(PostureLevel::Enforced) => badge("good", "Enforced"),
        Some(PostureLevel::Degraded) => badge("warn", "Degraded"),
        Some(PostureLevel::Audit) => badge("info", "Audit"),
        Some(PostureLevel::AuditFallback) => badge("bad", "Audit, because enforcement failed"),
        Some(PostureLevel::Unenforced) => badge("bad", "Not enforced"),
        None => badge("plain", "Not known yet"),
    }
}

/// What is in force, when it is known.
pub(super) fn level(level: impl Borrow<PostureLevel>) -> Html {
    posture(Some(*level.borrow()))
}

/// A mode that is known.
pub(super) fn known_mode(known: impl Borrow<EgressMode>) -> Html {
    mode(Some(*known.borrow()))
}

/// The state of a mechanism.
pub(super) fn feature(state: impl Borrow<FeatureState>) -> Html {
    match *state.borrow() {
        FeatureState::Active => badge("good", "Active"),
        FeatureState::Degraded => badge("warn", "Degraded"),
        FeatureState::Missing => badge("bad", "Missing"),
    }
}

/// Whether a run or job goes on.
pub(super) fn running(state: &str) -> Html {
    if state == "running" { badge("info live", "Running") } else { badge("plain", "Ended") }
}

/// How much a baseline has learned.
pub(super) fn baseline(state: impl Borrow<BaselineState>) -> Html {
    match state.borrow() {
        BaselineState::Creating => badge("plain", "Creating"),
        BaselineState::Stable => badge("good", "Stable"),
        BaselineState::Unstable => badge("warn", "Unstable"),
    }
}

/// The state of a detection.
pub(super) fn detection_state(state: &str) -> Html {
    match state {
        "suppressed" => badge("plain", "Suppressed"),
        "resolved" => badge("plain", "Resolved"),
        _ => badge("warn", "New"),
    }
}

/// That a job was killed.
pub(super) fn lockdown() -> Html {
    badge("lockdown", "Lockdown")
}

#[cfg(test)]
mod tests {
    use super::{endpoint, is_built_in, number, path, policy};

    #[test]
    fn only_built_in_policies_have_no_page() {
        assert_eq!(policy("default-block").to_string(), "default-block");
        assert_eq!(
            policy("default-web").to_string(),
            "<a href=\"/policies/default-web\">default-web</a>"
        );
        assert!(is_built_in("default-audit") && !is_built_in("default-web"));
        let hostile = policy("\"><img onerror=x>").to_string();
        assert!(!hostile.contains("<img") && hostile.matches('"').count() == 2, "{hostile}");
    }

    #[test]
    fn a_path_is_escaped_and_may_be_wrapped() {
        let shown = |text| path(text).to_string();
        assert_eq!(shown("make"), "make");
        assert_eq!(
            shown("/usr/bin/git"),
            "<span class=\"muted\">/<wbr>usr/<wbr>bin/<wbr></span>git"
        );
        let hostile = shown("/tmp/<b>\"/</script><img onerror=x>");
        assert!(
            !hostile.contains("<b>") && !hostile.contains("<img") && !hostile.contains("</script>"),
            "{hostile}"
        );
    }

    #[test]
    fn an_endpoint_is_wrapped_before_its_port() {
        let shown = |text: &str| endpoint(text).to_string().replace("<span class=\"nowrap\">", "_");
        let shown = |text: &str| shown(text).replace("</span>", "").replace("<wbr>", "|");
        for (text, expected) in [
            ("203.0.113.66:4444", "203.0.113.66|_:4444"),
            ("[2001:db8::66]:4444", "[2001:db8::66]|_:4444"),
            ("2001:db8::66", "2001:db8::66"),
            ("udp://[2001:db8::66]:53", "udp://[2001:db8::66]|_:53"),
            ("udp://203.0.113.66:5555", "udp://203.0.113.66|_:5555"),
            ("icmp://2001:db8::6", "icmp://2001:db8::6"),
            ("api.ok.test:443", "api.|ok.|test|_:443"),
            ("evil.test", "evil.|test"),
            ("*.npmjs.org:*", "*.|npmjs.|org|_:*"),
            ("10.0.0.0/8:8000-8080", "10.0.0.0/8|_:8000-8080"),
            ("", ""),
        ] {
            assert_eq!(shown(text), expected);
        }
        let hostile = endpoint("<img/src=x onerror=y>.test:1").to_string();
        assert!(!hostile.contains("<img"), "{hostile}");
    }

    #[test]
    fn thousands_are_set_apart() {
        let written: Vec<_> = [0, 999, 1000, 1_234_567].map(number).into();
        assert_eq!(written, ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]);
    }
}
