//! The documents as the tests of them see them: headings, prose, tables and fenced blocks.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A document: its path below the root, and its text.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A fenced block: what stands behind the fence, and what is inside.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) place: String,
    pub(crate) info: String,
    pub(crate) text: String,
}

pub(crate) fn documents() -> Result<Vec<Document>> {
    let mut paths = vec![PathBuf::from("README.md"), PathBuf::from("CHANGELOG.md")];
    for entry in fs::read_dir(root().join("docs"))? {
        let path = Path::new("docs").join(entry?.file_name());
        if path.extension().is_some_and(|extension| extension == "md") {
            paths.push(path);
        }
    }
    ensure!(paths.len() >= 10, "documents are missing: {paths:?}");
    paths.into_iter().map(|path| Ok(Document { text: read(&path)?, path })).collect()
}

pub(crate) fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = root().join(path);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

impl Document {
    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut is_open = false;
        for (number, line) in self.text.lines().enumerate() {
            match (line.strip_prefix("```"), is_open, blocks.last_mut()) {
                (Some(info), false, _) => {
                    let place = format!("{}:{}", self.path.display(), number + 1);
                    blocks.push(Block { place, info: info.to_owned(), text: String::new() });
                    is_open = true;
                }
                (Some(_), true, _) => is_open = false,
                (None, true, Some(block)) => block.text.extend([line, "\n"]),
                _ => {}
            }
        }
        blocks
    }

    /// The lines outside of fenced blocks.
    pub(crate) fn prose(&self) -> impl Iterator<Item = &str> {
        let mut is_open = false;
        self.text.lines().filter(move |line| {
            if line.starts_with("```") {
                is_open = !is_open;
                return false;
            }
            !is_open
        })
    }

    /// The headings as GitHub makes anchors of them.
    pub(crate) fn anchors(&self) -> BTreeSet<String> {
        self.prose()
            .filter_map(|line| line.strip_prefix('#'))
            .map(|heading| heading.trim_start_matches('#').trim().to_lowercase())
            .map(|heading| {
                let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
                heading.chars().filter(kept).collect::<String>().replace(' ', "-")
            })
            .collect()
    }

    /// The rows of the table whose first heading is `heading`: the code in the first cell.
    pub(crate) fn table(&self, heading: &str) -> Vec<String> {
        let start = format!("| {heading} |");
        self.prose()
            .skip_while(|line| !line.starts_with(&start))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .filter_map(|line| line.split('`').nth(1))
            .map(str::to_owned)
            .collect()
    }
}

pub(crate) fn document(name: &str) -> Result<Document> {
    Ok(Document { path: name.into(), text: read(name)? })
}

/// All blocks with this word behind the fence, and at least `least` of them.
pub(crate) fn blocks(info: &str, least: usize) -> Result<Vec<Block>> {
    let all = documents()?;
    let found: Vec<Block> =
        all.iter().flat_map(Document::blocks).filter(|block| block.info == info).collect();
    ensure!(found.len() >= least, "only {} blocks of {info}", found.len());
    Ok(found)
}
