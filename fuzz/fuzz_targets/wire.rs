//! The messages of the monitor's socket: any line is answered, and a request that is taken is the same when sent again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_common::wire::{decode_answer, decode_request, encode_request};

fuzz_target!(|bytes: &[u8]| {
    let _ = decode_answer(bytes);
    match decode_request(bytes) {
        Ok(request) => {
            // Escapes in the line may have been shorter than those that are written.
            if let Ok(line) = encode_request(request.call.clone()) {
                assert_eq!(decode_request(&line).expect("what is sent is taken"), request);
            }
        }
        Err(refusal) => {
            assert!(!refusal.message.chars().any(char::is_control), "{}", refusal.message)
        }
    }
});
