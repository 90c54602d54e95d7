//! Policy files: any bytes are answered, and what is accepted survives being written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_common::policy::{Library, parse_documents};

fuzz_target!(|bytes: &[u8]| {
    match parse_documents("policy.yaml", bytes) {
        Ok(documents) => {
            for source in &documents {
                let yaml =
                    source.document.to_yaml().expect("a document that was read can be written");
                let again = parse_documents("again.yaml", yaml.as_bytes())
                    .expect("what was written can be read");
                assert_eq!(again[0].document, source.document, "{yaml}");
            }
            if let Ok(library) = Library::new(documents) {
                let names: Vec<String> = library.names().map(str::to_owned).collect();
                for name in names {
                    let _ = library.effective(&name);
                }
            }
        }
        Err(errors) => {
            for error in errors.errors() {
                assert!(!error.hint.is_empty() && !error.hint.chars().any(char::is_control));
                assert!(!error.to_string().chars().any(char::is_control), "{error}");
            }
        }
    }
});
