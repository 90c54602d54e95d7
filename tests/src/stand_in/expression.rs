//! `${{ … }}`: look-ups of one value, without operators and functions.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

/// The contexts that a look-up can name.
#[derive(Debug)]
pub(super) struct Contexts<'a> {
    pub(super) secrets: &'a BTreeMap<String, String>,
    pub(super) environment: &'a BTreeMap<String, String>,
    /// The `GITHUB_…` variables.
    pub(super) github: &'a BTreeMap<String, String>,
    /// By step id, then by name.
    pub(super) outputs: &'a BTreeMap<String, BTreeMap<String, String>>,
}

impl Contexts<'_> {
    /// Replaces every `${{ … }}`; what does not exist is empty, as in the real runner.
    pub(super) fn expand(&self, text: &str) -> Result<String> {
        let mut result = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("${{") {
            let end = rest[start..].find("}}").context("an expression has no end: `${{`")? + start;
            result.push_str(&rest[..start]);
            result.push_str(self.look_up(rest[start + 3..end].trim())?);
            rest = &rest[end + 2..];
        }
        result.push_str(rest);
        Ok(result)
    }

    fn look_up(&self, expression: &str) -> Result<&str> {
        let parts: Vec<&str> = expression.split('.').collect();
        let found = match parts[..] {
            ["secrets", name] => self.secrets.get(name),
            ["env", name] => self.environment.get(name),
            ["github", name] => self.github.get(&format!("GITHUB_{}", name.to_ascii_uppercase())),
            ["steps", id, "outputs", name] => {
                self.outputs.get(id).and_then(|outputs| outputs.get(name))
            }
            _ => bail!("the runner stand-in does not know `${{{{ {expression} }}}}`"),
        };
        Ok(found.map_or("", String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_put_in() {
        let secrets = BTreeMap::from([("TOKEN".to_owned(), "s3cret".to_owned())]);
        let github = BTreeMap::from([("GITHUB_RUN_ID".to_owned(), "7".to_owned())]);
        let contexts = Contexts {
            secrets: &secrets,
            environment: &BTreeMap::new(),
            github: &github,
            outputs: &BTreeMap::new(),
        };
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(contexts.expand(text).ok().as_deref(), expected, "{text}");
        };
        check("a ${{ secrets.TOKEN }} b ${{github.run_id}}", Some("a s3cret b 7"));
        check("${{ steps.none.outputs.x }}|${{ env.NONE }}", Some("|"));
        check("$HOME ${X}", Some("$HOME ${X}"));
        check("${{ secrets.TOKEN", None);
        check("${{ hashFiles('x') }}", None);
    }
}
