//! Bounded encoding and decoding of the two messages of a connection.

use super::{
    Answer, Call, IdTokenRequest, MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, PROTOCOL_VERSION, Refusal,
    RefusalKind, Request,
};
use crate::text::log_line;
use serde::Deserialize;

/// The longest OIDC token in bytes; GitHub's are below 4 KiB.
pub const MAX_ID_TOKEN_BYTES: usize = 16 * 1024;

/// An answer could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The answer is too long.
    #[error("the monitor's answer is longer than {MAX_ANSWER_BYTES} bytes")]
    TooLong,
    /// The connection ended in the middle of the answer, or before it.
    #[error("the monitor ended the connection before its answer was complete")]
    Incomplete,
    /// It is no answer of this protocol.
    #[error("the monitor's answer can't be read; is it of the same version as this program?")]
    Malformed(#[source] serde_json::Error),
}

/// A request as the line to send.
///
/// # Errors
/// A refusal as the monitor would give it, when the request is too long.
pub fn encode_request(call: Call) -> Result<Vec<u8>, Refusal> {
    let request = Request { version: PROTOCOL_VERSION, call };
    let line = to_line(&request)
        .map_err(|error| bad_request(format!("the request can't be written: {error}")))?;
    if line.len() > MAX_REQUEST_BYTES { Err(too_long()) } else { Ok(line) }
}

/// Reads a request line, newline included, and checks everything in it that has a form. Never panics, whatever it is given.
///
/// # Errors
/// The refusal to answer with.
pub fn decode_request(line: &[u8]) -> Result<Request, Refusal> {
    /// What every version of the protocol has.
    #[derive(Deserialize)]
    struct AnyVersion {
        version: u64,
    }

    if line.len() > MAX_REQUEST_BYTES {
        return Err(too_long());
    }
    let Some(line) = line.strip_suffix(b"\n") else {
        return Err(bad_request("the request does not end in a newline".to_owned()));
    };
    let text = std::str::from_utf8(line).map_err(|error| {
        bad_request(format!("byte {} of the request is not UTF-8", error.valid_up_to()))
    })?;
    let malformed = |error: serde_json::Error| {
        bad_request(format!("the request can't be read: {}", log_line(&error.to_string(), 300)))
    };
    let AnyVersion { version } = serde_json::from_str(text).map_err(malformed)?;
    if version != u64::from(PROTOCOL_VERSION) {
        return Err(Refusal::new(
            RefusalKind::UnsupportedVersion,
            format!(
                "the hook speaks version {version} of the protocol, the monitor version {PROTOCOL_VERSION}"
            ),
            "install hooks and monitor of the same version, and restart the monitor",
        ));
    }
    let request: Request = serde_json::from_str(text).map_err(malformed)?;
    check(&request.call)?;
    Ok(request)
}

/// An answer as the line to send; always at most [`MAX_ANSWER_BYTES`] long. A report that is too long loses destinations,
/// and says how many.
pub fn encode_answer(mut answer: Answer) -> Vec<u8> {
    loop {
        let problem = match to_line(&answer) {
            Ok(line) if line.len() <= MAX_ANSWER_BYTES => return line,
            Ok(_) => "the answer is too long".to_owned(),
            Err(error) => format!("the answer can't be written: {error}"),
        };
        answer = match answer {
            Answer::Finished { mut report, markdown } if !report.destinations.is_empty() => {
                let kept = report.destinations.len() / 2;
                let lost = report.destinations.len() - kept;
                report.destinations.truncate(kept);
                report.destinations_left_out =
                    report.destinations_left_out.saturating_add(u64::try_from(lost).unwrap_or(u64::MAX));
                Answer::Finished { report, markdown }
            }
            Answer::Refused(_) => return b"{\"answer\":\"refused\",\"kind\":\"busy\",\"message\":\"the answer can't be written\"}\n".to_vec(),
            _ => Answer::Refused(Refusal::new(RefusalKind::Busy, problem, "see the monitor's log")),
        };
    }
}

/// Reads an answer line, newline included.
///
/// # Errors
/// When it is too long, incomplete or no answer.
pub fn decode_answer(line: &[u8]) -> Result<Answer, DecodeError> {
    if line.len() > MAX_ANSWER_BYTES {
        return Err(DecodeError::TooLong);
    }
    let line = line.strip_suffix(b"\n").ok_or(DecodeError::Incomplete)?;
    serde_json::from_slice(line).map_err(DecodeError::Malformed)
}

/// One line of JSON with its newline; JSON escapes every newline inside.
fn to_line(message: &impl serde::Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Checks what types can't: the context's values and the token's form.
fn check(call: &Call) -> Result<(), Refusal> {
    let (context, token) = match call {
        Call::StartJob { context, id_token, id_token_request } => {
            check_token_request(id_token_request.as_ref())?;
            (context, id_token.as_deref())
        }
        Call::Explain { context } => (context, None),
        Call::FinishJob {} | Call::Status {} => return Ok(()),
    };
    context.validate().map_err(|error| {
        let diagnostic = error.diagnostic();
        Refusal {
            kind: RefusalKind::BadRequest,
            message: diagnostic.message,
            hint: diagnostic.hint,
        }
    })?;
    // RFC 7515 §3.1: three base64url parts joined by dots.
    let is_token = |token: &str| {
        token.len() <= MAX_ID_TOKEN_BYTES
            && token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    match token {
        Some(token) if !is_token(token) => {
            Err(bad_request("the OIDC token is no JSON Web Token in compact form".to_owned()))
        }
        _ => Ok(()),
    }
}

/// The form of what a token is asked for with: visible text in one piece. Where it leads is the monitor's to judge.
fn check_token_request(request: Option<&IdTokenRequest>) -> Result<(), Refusal> {
    let is_text = |text: &str| {
        (1..=MAX_ID_TOKEN_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    };
    match request {
        Some(request) if !is_text(&request.url) || !is_text(&request.token) => {
            Err(bad_request("the way to ask for an OIDC token can't be understood".to_owned()))
        }
        _ => Ok(()),
    }
}

fn too_long() -> Refusal {
    bad_request(format!("the request is longer than {MAX_REQUEST_BYTES} bytes"))
}

fn bad_request(message: String) -> Refusal {
    Refusal::new(
        RefusalKind::BadRequest,
        message,
        "requests come from pre-job, post-job and the monitor's own commands",
    )
}
