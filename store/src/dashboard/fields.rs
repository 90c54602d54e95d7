//! Names and values, of an address or of a form.

use std::borrow::Cow;

/// Names and values in the order in which they came; a name can come several times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads `a=1&b=2`.
    pub(crate) fn read(text: &[u8]) -> Self {
        let owned = |pair: (Cow<'_, str>, Cow<'_, str>)| (pair.0.into_owned(), pair.1.into_owned());
        Self(url::form_urlencoded::parse(text).map(owned).collect())
    }

    /// The first value of a name, trimmed; nothing when it is empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.raw(name).map(str::trim).filter(|value| !value.is_empty())
    }

    /// The first value of a name as it came.
    pub(crate) fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first value of a name, trimmed; empty when there is none.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// Whether a box is ticked.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "false" && value != "0")
    }

    /// A number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }

    /// What was written into a field for a number, as far as it is one: a browser takes nothing else there.
    pub(crate) fn digits(&self, name: &str) -> &str {
        let is_number =
            |text: &&str| text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
        self.get(name).filter(is_number).unwrap_or_default()
    }

    /// All, without some names, as the query of an address.
    pub(crate) fn query_without(&self, left_out: &[&str]) -> String {
        let kept = self
            .0
            .iter()
            .filter(|(key, value)| !left_out.contains(&key.as_str()) && !value.trim().is_empty());
        url::form_urlencoded::Serializer::new(String::new()).extend_pairs(kept).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Fields;

    #[test]
    fn values_come_trimmed_and_several_times() {
        let fields = Fields::read(b"a=+x+&b=&c=1&c=2&on=true&off=false&d=%26%3D");
        assert_eq!((fields.get("a"), fields.get("b"), fields.text("z")), (Some("x"), None, ""));
        assert!(fields.is_set("on") && !fields.is_set("off") && !fields.is_set("b"));
        assert_eq!(fields.number::<u64>("c"), Some(1));
        assert_eq!((fields.digits("c"), fields.digits("a")), ("1", ""));
        assert_eq!(fields.query_without(&["a", "c", "on", "off"]), "d=%26%3D");
    }
}
