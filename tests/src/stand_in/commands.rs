//! Workflow commands in the output of a step: `::error::`, `::add-mask::` … (Runner.Worker/ActionCommandManager.cs).

/// A line of output, understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Line {
    /// What is shown in the log.
    Text(String),
    /// `error`, `warning` or `notice`, and its text.
    Annotation {
        /// The level.
        level: String,
        /// The text, unescaped.
        message: String,
    },
    /// From now on this is masked.
    Mask(String),
    /// Until this token comes, nothing is a command.
    StopCommands(String),
    /// Nothing is shown.
    Hidden,
}

/// Understands a line. `resume` is the token that ends a stop of commands, while there is one.
pub(super) fn understand(line: &str, resume: Option<&str>) -> Line {
    let text = || Line::Text(line.to_owned());
    let trimmed = line.trim_start();
    let Some((head, message)) = trimmed.strip_prefix("::").and_then(|rest| rest.split_once("::"))
    else {
        return text();
    };
    let name = head.split(' ').next().unwrap_or_default();
    if resume.is_some() {
        return text();
    }
    let message = unescape(message);
    match name {
        "error" | "warning" | "notice" => Line::Annotation { level: name.to_owned(), message },
        "add-mask" => Line::Mask(message),
        "group" => Line::Text(format!("##[group]{message}")),
        "endgroup" => Line::Text("##[endgroup]".to_owned()),
        "debug" | "add-matcher" | "remove-matcher" | "echo" => Line::Hidden,
        "stop-commands" => Line::StopCommands(message),
        "set-env" | "add-path" => Line::Annotation {
            level: "error".to_owned(),
            message: format!("The `{name}` command is disabled."),
        },
        _ => text(),
    }
}

/// Undoes the escapes of a command's data.
fn unescape(text: &str) -> String {
    text.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        fn check(line: &str, expected: &Line) {
            assert_eq!(understand(line, None), *expected, "{line}");
        }
        let annotation = |level: &str, message: &str| Line::Annotation {
            level: level.to_owned(),
            message: message.to_owned(),
        };
        check("plain", &Line::Text("plain".to_owned()));
        check("::error::no%0Agood", &annotation("error", "no\ngood"));
        check("::warning file=a,line=1::careful", &annotation("warning", "careful"));
        check("::add-mask::x", &Line::Mask("x".to_owned()));
        check("::group::Build", &Line::Text("##[group]Build".to_owned()));
        check("a ::error::b", &Line::Text("a ::error::b".to_owned()));
        let stopped = understand("::error::x", Some("token"));
        assert_eq!(stopped, Line::Text("::error::x".to_owned()));
    }
}
