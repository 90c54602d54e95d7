//! A job's bytes on the resolver's socket, and an upstream's: neither may make it panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_monitor::dns::answer;
use portcullis_monitor::dns::message::{
    Body, OutgoingQuery, Parsed, ReplyTo, ResponseCode, parse, write_refusal, write_response,
};

fuzz_target!(|bytes: &[u8]| {
    let mut out = Vec::new();
    match parse(bytes) {
        Parsed::Query(query) => {
            let question = query.question;
            let _ = question.escaped_name();
            let _ = question.cache_key();
            write_response(
                &mut out,
                &ReplyTo::new(&query),
                &Body::empty(ResponseCode::NxDomain, None),
                0,
                512,
            );
            assert!(out.len() <= 512);
            if let Some(name) = question.host_name() {
                let outgoing = OutgoingQuery::build(&name, question.query_type(), true);
                assert!(outgoing.is_ok(), "a checked name can be asked for");
            }
        }
        Parsed::Refused(refused) => write_refusal(&mut out, &refused),
        Parsed::Drop => {}
    }
    let _ = answer::read(bytes, "ok.test", 1);
    let _ = answer::read(bytes, "ok.test", 16);
});
