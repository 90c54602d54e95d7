//! Files of endpoints: text with one a line, or YAML.

use anyhow::bail;
use portcullis_common::endpoint::Endpoint;
use portcullis_common::policy::parse_documents;
use portcullis_common::text::log_line;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;

/// The most mistakes that are told.
const MAX_TOLD: usize = 20;

/// The endpoints of a file: of a text one a line, `#` begins a comment; of YAML (`.yaml`, `.yml`, `.json`) a list, the
/// `allowed-endpoints` of policies, or `endpoints`.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<String>> {
    let (bytes, name) = super::policy::read(path)?;
    let Ok(text) = std::str::from_utf8(&bytes) else {
        bail!("{name} is not UTF-8\n\nhint: save the file as UTF-8")
    };
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let written = match extension.to_ascii_lowercase().as_str() {
        "yaml" | "yml" | "json" => of_yaml(&name, text)?,
        _ => of_text(text),
    };
    check(&name, written)
}

/// An endpoint with the line it stands in; 0 when that is not known.
type Written = (usize, String);

fn of_text(text: &str) -> Vec<Written> {
    text.trim_start_matches('\u{feff}')
        .lines()
        .zip(1..)
        .map(|(line, number)| {
            // No endpoint has a `#`.
            (number, line.split('#').next().unwrap_or_default().trim().to_owned())
        })
        .filter(|(_, line)| !line.is_empty())
        .collect()
}

fn of_yaml(name: &str, text: &str) -> anyhow::Result<Vec<Written>> {
    let hint = "write a list of endpoints, `endpoints:` with such a list, or a policy";
    let value: Value = match serde_saphyr::from_str(text) {
        Ok(value) => value,
        Err(error) => {
            // Several policies are several documents, which are read as policies only.
            let documents = parse_documents(name, text.as_bytes())
                .map_err(|_| anyhow::anyhow!("{name} can't be read: {error}\n\nhint: {hint}"))?;
            let lists =
                documents.iter().filter_map(|source| source.document.allowed_endpoints.as_ref());
            return Ok(lists
                .flat_map(|list| &list.0)
                .map(|written| (0, written.text().to_owned()))
                .collect());
        }
    };
    let list = match &value {
        Value::Object(keys) => {
            let found = ["allowed-endpoints", "allowed_endpoints", "endpoints"]
                .iter()
                .find_map(|key| keys.get(*key));
            match found {
                Some(list) => list,
                None => bail!("{name} has no endpoints\n\nhint: {hint}"),
            }
        }
        other => other,
    };
    match list {
        Value::String(text) => {
            Ok(text.split_whitespace().map(|text| (0, text.to_owned())).collect())
        }
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok((0, text.clone())),
                other => bail!(
                    "{name}: {} is no endpoint\n\nhint: {hint}",
                    log_line(&other.to_string(), 80)
                ),
            })
            .collect(),
        _ => bail!("{name} has no endpoints\n\nhint: {hint}"),
    }
}

/// All mistakes at once, each with its place and remedy.
fn check(name: &str, written: Vec<Written>) -> anyhow::Result<Vec<String>> {
    let mut told = String::new();
    let mut mistakes = 0;
    for (line, text) in &written {
        let Err(error) = text.parse::<Endpoint>() else { continue };
        mistakes += 1;
        if mistakes > MAX_TOLD {
            continue;
        }
        let place = if *line == 0 { name.to_owned() } else { format!("{name}:{line}") };
        let before = if told.is_empty() { "" } else { "\n\nerror: " };
        // Writing to a String can't fail.
        let _ = write!(
            told,
            "{before}{place}: `{}`: {error}\n\nhint: {}",
            log_line(text, 80),
            error.hint
        );
    }
    if mistakes > MAX_TOLD {
        let _ = write!(told, "\n\nerror: {name} has {} mistakes more", mistakes - MAX_TOLD);
    }
    if mistakes > 0 {
        bail!("{told}");
    }
    if written.is_empty() {
        bail!("{name} has no endpoints\n\nhint: write one a line");
    }
    Ok(written.into_iter().map(|(_, text)| text).collect())
}

#[cfg(test)]
mod tests {
    use super::read;
    use std::fs;

    fn check(name: &str, text: &str, expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        let found = match read(&path) {
            Ok(endpoints) => endpoints.join(" "),
            Err(error) => {
                error.to_string().replace(&format!("{}/", directory.path().display()), "")
            }
        };
        assert_eq!(found, expected, "{name}");
    }

    #[test]
    fn endpoints_are_read_from_text_and_yaml() {
        check("a.txt", "# all\na.test\n\n b.test:22 # git\r\n", "a.test b.test:22");
        check("list.yaml", "- a.test\n- '*.b.test:443'\n", "a.test *.b.test:443");
        check("policy.yml", "name: x\nallowed-endpoints: a.test b.test\n", "a.test b.test");
        check(
            "two.yaml",
            "name: x\nallowed-endpoints: [a.test]\n---\nname: y\nallowed-endpoints: [b.test]\n",
            "a.test b.test",
        );
        check("answer.json", r#"{"endpoints": ["a.test:443"]}"#, "a.test:443");
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        check(
            "a.txt",
            "a.test\nhttps://b.test/\n*.com\n",
            "a.txt:2: `https://b.test/`: `https://` is no scheme of an endpoint (column 1)\n\nhint: endpoints are no URLs; write `b.test:443`\n\nerror: a.txt:3: `*.com`: `*.com` covers names that anybody can register (column 1)\n\nhint: name the domain below it, as in `*.example.com`",
        );
        check("empty.txt", "# nothing\n", "empty.txt has no endpoints\n\nhint: write one a line");
        check(
            "a.yaml",
            "- 7\n",
            "a.yaml: 7 is no endpoint\n\nhint: write a list of endpoints, `endpoints:` with such a list, or a policy",
        );
    }
}
