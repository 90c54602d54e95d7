//! A job's processes as a tree of lines.

use super::output::{Output, Table, print, word};
use portcullis_common::store_api::{ProcessNode, ProcessTree};
use portcullis_common::text::log_line;
use std::fmt::Write as _;

/// The longest line of a process in bytes, without what is before it.
const MAX_LINE_BYTES: usize = 200;

/// Shows a tree: as it is for programs, as lines for people.
pub(super) fn show(output: Output, tree: &ProcessTree) -> anyhow::Result<()> {
    if output != Output::Table {
        return super::output::show(output, tree, |_| Table::new([""], []));
    }
    let mut text = String::new();
    for root in &tree.roots {
        line(&mut text, root);
        below(&mut text, root, "");
    }
    if !tree.complete {
        text.push_str(
            "\nthere is more than one tree holds; `portcullis events --all` has everything\n",
        );
    }
    print(&text)
}

fn below(text: &mut String, node: &ProcessNode, indent: &str) {
    let calls = node
        .calls
        .iter()
        .map(|call| format!("→ {} {} {}", word(&call.verdict), call.endpoint, times(call.calls)));
    let files = node.files.iter().map(|path| format!("✎ {path}"));
    let detections = node.detections.iter().map(|kind| format!("! {kind}"));
    let bar = if node.children.is_empty() { " " } else { "│" };
    for fact in calls.chain(files).chain(detections) {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{indent}{bar}    {}", log_line(fact.trim_end(), MAX_LINE_BYTES));
    }
    let last = node.children.len().saturating_sub(1);
    for (index, child) in node.children.iter().enumerate() {
        let (branch, further) =
            if index == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        text.push_str(indent);
        text.push_str(branch);
        line(text, child);
        below(text, child, &format!("{indent}{further}"));
    }
}

fn line(text: &mut String, node: &ProcessNode) {
    let what = match (node.argv.is_empty(), &node.exe, node.uid) {
        (false, ..) => node.argv.join(" "),
        (true, Some(exe), _) => exe.clone(),
        (true, None, Some(uid)) => format!("a process of user {uid}"),
        (true, None, None) => "a process that is not known".to_owned(),
    };
    let pid = node.pid.map(|pid| format!("{pid} ")).unwrap_or_default();
    let step = node.step.as_ref().map(|step| format!(" [{step}]")).unwrap_or_default();
    let runs: u64 = node.executions.iter().map(|execution| execution.count).sum();
    let runs = times(runs);
    let what = log_line(&format!("{pid}{what}{step} {runs}"), MAX_LINE_BYTES);
    text.push_str(what.trim_end());
    text.push('\n');
}

/// How often, where it is more than once.
fn times(count: u64) -> String {
    if count > 1 { format!("({count}×)") } else { String::new() }
}
