pub fn github_hosts(_: &str) -> Vec<portcullis_common::policy::Rule> {
    Vec::new()
}
