use super::{
    log_line, markdown_code, markdown_text, workflow_command_data, workflow_command_property,
};
use proptest::prelude::*;

#[test]
fn nothing_in_a_log_line_is_a_command() {
    for (text, shown) in [
        ("::add-mask::x", "\\x3a:add-mask::x"),
        ("  ::error::x", "  \\x3a:error::x"),
        ("x ##[error]y", "x ##\\x5berror]y"),
        ("###[group]", "###\\x5bgroup]"),
        ("[2001:db8::7]:443", "[2001:db8::7]:443"),
        ("a\nb\r\x1b[31m\u{202e}c\0", "a\\nb\\r\\x1b[31m\\u{202e}c\\x00"),
        ("line\u{2028}line\u{85}", "line\\u{2028}line\\x85"),
        ("déployé ✅ 漢字", "déployé ✅ 漢字"),
    ] {
        assert_eq!(log_line(text, 200), shown);
    }
}

#[test]
fn workflow_commands_are_escaped_as_the_runner_unescapes() {
    assert_eq!(workflow_command_data("100%\r\na,b:c", 200), "100%25%0D%0Aa,b:c");
    assert_eq!(workflow_command_property("100%\na,b:c", 200), "100%25%0Aa%2Cb%3Ac");
    assert_eq!(workflow_command_data("\x1b[31m", 200), "\\x1b[31m");
}

#[test]
fn markdown_stays_text() {
    assert_eq!(markdown_code("a`b|c\n<img>@octo", 200), "`a\\x60b\\x7cc\\n<img>@octo`");
    assert_eq!(markdown_code("", 200), "`-`");
    assert_eq!(markdown_text("@octo #1 <b>", 200), "&#64;&#8203;octo &#35;&#8203;1 &#60;b&#62;");
    assert_eq!(markdown_text("https://a.b", 200), "https&#58;&#8203;//a&#46;&#8203;b");
}

#[test]
fn cuts_between_escapes() {
    assert_eq!(log_line("abcdef", 6), "abcdef");
    assert_eq!(log_line("abcdefg", 6), "abc…");
    assert_eq!(log_line("ab\n\n\n", 6), "ab…");
    assert_eq!(workflow_command_data("%%%", 8), "%25…");
    assert_eq!(log_line("abc", 2), "");
    assert_eq!(log_line(&"x".repeat(10_000_000), 100).len(), 100);
}

/// Text made of what makes trouble.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "\n",
        "\r",
        "\x1b[31m",
        "|",
        "`",
        "``",
        "::",
        "##[",
        "@octo",
        "#1",
        "<script>",
        "&amp;",
        "%0A",
        "%",
        "\u{202e}",
        "\u{2028}",
        "\0",
        "\\",
        "\\|",
        "](https://evil.test)",
        "![x](y)",
        "www.evil.test",
        "a",
        " ",
        "é",
    ]);
    prop::collection::vec(
        prop_oneof![pieces.prop_map(str::to_owned), "\\PC", any::<char>().prop_map(String::from)],
        0..40,
    )
    .prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_line_break_or_control_character_survives(text in hostile(), max in 0_usize..300) {
        for shown in [
            log_line(&text, max),
            workflow_command_data(&text, max),
            workflow_command_property(&text, max),
            markdown_text(&text, max),
        ] {
            prop_assert!(shown.len() <= max);
            prop_assert!(!shown.chars().any(char::is_control), "{shown:?}");
            prop_assert!(!shown.contains(['\u{202e}', '\u{2028}', '\u{200b}']), "{shown:?}");
        }
        let code = markdown_code(&text, max);
        prop_assert!(code.len() <= max.max(3));
        prop_assert!(!code.chars().any(char::is_control));
    }

    #[test]
    fn no_command_survives(text in hostile()) {
        let line = log_line(&text, 1000);
        prop_assert!(!line.contains("##["));
        prop_assert!(!line.trim_start().starts_with("::"));
        prop_assert!(!workflow_command_property(&text, 1000).contains([':', ',']));
    }

    #[test]
    fn no_cell_and_no_span_is_broken(text in hostile()) {
        let code = markdown_code(&text, 1000);
        prop_assert!(code.len() >= 3 && code.starts_with('`') && code.ends_with('`'));
        prop_assert!(!code[1..code.len() - 1].contains('`'));
        prop_assert!(!code.contains('|'));
        let plain = markdown_text(&text, 1000);
        prop_assert!(!plain.contains(['|', '`', '<', '>', '@', '[', '*', '_']), "{plain}");
        prop_assert!(!plain.contains("www."));
        prop_assert!(!plain.contains("://"));
    }

    #[test]
    fn the_runner_gets_back_what_was_said(text in "[ -~\n\r]{0,80}") {
        let data = workflow_command_data(&text, 10_000);
        let back = data.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%");
        prop_assert_eq!(back, text);
    }
}
