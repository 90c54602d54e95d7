//! Whether a line that a shell has read from a peer is a command: what tells a loop that executes what it is sent from a client
//! that reads the answers of a server (`220 mail.test ESMTP`, `+PONG`, `HTTP/1.1 200 OK`).

/// What shells execute without a program. Words that servers answer with as well (`true`, `false`, `test`, `wait`, `time`) are
/// left out: programs of these names do not count either.
const BUILTINS: [&str; 26] = [
    ".", "alias", "bg", "builtin", "cd", "command", "declare", "echo", "eval", "exec", "export",
    "fg", "hash", "jobs", "local", "printf", "pushd", "pwd", "readonly", "set", "shopt", "source",
    "trap", "type", "ulimit", "unset",
];

/// Names of programs that are words of protocols, too.
const WORDS: [&str; 12] = [
    "[", "continue", "false", "free", "login", "stat", "sync", "test", "time", "timeout", "true",
    "wait",
];

/// Words before a command that are none themselves.
const BEFORE_COMMAND: [&str; 10] =
    ["!", "(", "do", "env", "if", "nohup", "sudo", "then", "while", "{"];

/// Whether the line begins with a command. `is_program` tells whether there is a program of that name or path.
pub fn is_command(line: &[u8], is_program: impl Fn(&str) -> bool) -> bool {
    let text = String::from_utf8_lossy(line);
    let command = text
        .split([' ', '\t', '\r', '\n', ';', '&', '|'])
        .map(|word| word.trim_start_matches(['(', '{']))
        .find(|word| !word.is_empty() && !BEFORE_COMMAND.contains(word) && !is_assignment(word));
    let Some(command) = command else { return false };
    let is_plain =
        command.chars().all(|letter| letter.is_ascii_alphanumeric() || "/._-+[".contains(letter));
    // The last word of what was read may be cut.
    is_plain && !WORDS.contains(&command) && (BUILTINS.contains(&command) || is_program(command))
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty()
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(line: &str) -> bool {
        is_command(line.as_bytes(), |name| {
            ["id", "ls", "/usr/bin/id", "true", "cat", "time"].contains(&name)
        })
    }

    #[test]
    fn commands() {
        for line in [
            "id\n",
            "  ls -la /home\n",
            "echo answer-$((40+2)); echo executed >>/tmp/f\n",
            "A=b C= sudo id",
            "(cd /tmp; ls)",
            "{ id; }",
            ";id",
            "cat</etc/passwd\nid",
            "/usr/bin/id\n",
        ] {
            // What follows a redirection without a space is a word with it.
            assert_eq!(judged(line), !line.contains("cat<"), "{line}");
        }
    }

    #[test]
    fn answers_of_servers() {
        for line in [
            "220 mail.test ESMTP Postfix\r\n",
            "+PONG\r\n",
            "HTTP/1.1 200 OK\r\n",
            "* OK IMAP4rev1\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n",
            "true\n",
            "time 12\n",
            "OK\n",
            "{\"id\": 1}\n",
            "id: 7\n",
            "",
            "\n",
        ] {
            assert!(!judged(line), "{line}");
        }
    }
}
