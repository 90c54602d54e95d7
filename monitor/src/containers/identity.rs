//! How containers are called: by their cgroup, and by what their engine says of them.

use crate::detect::privileged_container::has_runner_label;
use crate::detect::privileged_container::json::Json;
use jiff::Timestamp;
use portcullis_common::text::log_line;
use std::path::Path;

/// Digits of a container's id, and of its short form.
const ID_DIGITS: usize = 64;
const SHORT_ID_DIGITS: usize = 12;

/// The longest name or image in an event.
const NAME_BYTES: usize = 256;

/// The id of the container whose group this is, or is below: `docker-<id>.scope`, `libpod-<id>`, `<id>`.
pub fn id_in_path(group: &Path) -> Option<&str> {
    group.iter().rev().find_map(|part| id_in_name(part.to_str()?))
}

fn id_in_name(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name.rsplit_once(['-', ':']).map_or(name, |(_, id)| id);
    is_id(id).then_some(id)
}

/// Whether this is a container's id as engines make them.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What an engine says of a container.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Description {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image, as it was asked for.
    pub image: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Whether it has the label of the runner's own containers.
    pub has_runner_label: bool,
}

impl Description {
    /// From `GET /containers/ID/json`.
    pub fn from_json(json: &Json) -> Self {
        let first = |path: &[&str]| {
            json.texts(path).first().map(|text| log_line(text, NAME_BYTES)).unwrap_or_default()
        };
        Self {
            id: first(&["Id"]),
            name: first(&["Name"]).trim_start_matches('/').to_owned(),
            image: first(&["Config", "Image"]),
            created: first(&["Created"]).parse().ok(),
            has_runner_label: has_runner_label(json.pairs(&["Config", "Labels"])),
        }
    }
}

/// A container in words: `busy_bell (0123456789ab, image alpine:3)`, or what is known of it.
pub fn in_words(id: Option<&str>, description: Option<&Description>) -> String {
    let short = |id: &str| id.chars().take(SHORT_ID_DIGITS).collect::<String>();
    match (description, id) {
        (Some(known), _) => format!("{} ({}, image {})", known.name, short(&known.id), known.image),
        (None, Some(id)) => short(id),
        (None, None) => "without an id".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c";

    #[test]
    fn ids_are_found_in_the_names_that_engines_give() {
        for name in [
            format!("/docker/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/libpod_parent/libpod-{ID}"),
            format!("/system.slice/cri-containerd:pod:{ID}"),
        ] {
            assert_eq!(id_in_path(Path::new(&name)), Some(ID), "{name}");
        }
        assert_eq!(id_in_path(Path::new("/system.slice/ssh.service")), None);
        assert_eq!(id_in_path(Path::new("/docker/abcd")), None);
    }

    #[test]
    fn a_description_is_read_and_said() {
        let json: Json = serde_json::from_str(&format!(
            r#"{{"Id":"{ID}","Name":"/busy\u001b_bell","Created":"2026-11-22T02:18:46.388159967Z","Config":{{"Image":"alpine:3","Labels":{{"a1b2c3":""}}}}}}"#
        ))
        .unwrap();
        let described = Description::from_json(&json);
        assert!(described.has_runner_label && described.created.is_some());
        let words = in_words(Some(ID), Some(&described));
        assert!(words.contains("b5bb9d8014a0,") && words.contains("alpine:3"), "{words}");
        assert!(!words.contains('\u{1b}'), "{words}");
        assert_eq!(in_words(Some(ID), None), "b5bb9d8014a0");
    }
}
