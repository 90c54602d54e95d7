//! The endpoint grammar: any text is answered, and what is accepted prints to a text with the same meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_common::endpoint::Endpoint;

fuzz_target!(|text: &str| {
    match text.parse::<Endpoint>() {
        Ok(endpoint) => {
            let printed = endpoint.to_string();
            assert_eq!(printed.parse::<Endpoint>().as_ref(), Ok(&endpoint), "{printed}");
            assert!(endpoint.includes(&endpoint), "{printed}");
        }
        Err(error) => {
            assert!(error.column >= 1 && error.column <= text.len() + 1);
            assert!(!error.to_string().chars().any(char::is_control));
        }
    }
});
