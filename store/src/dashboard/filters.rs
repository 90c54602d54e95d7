//! What templates do with values. What comes from jobs goes through [`shown`], which shows characters that would act; the
//! template engine then escapes HTML.

#![expect(
    unreachable_pub,
    clippy::inline_always,
    clippy::trivially_copy_pass_by_ref,
    clippy::unnecessary_wraps,
    clippy::unused_self,
    reason = "the macro of filters asks for this form, and makes public items of it"
)]

use super::html::{self, Html};
use askama::{Result, Values};
use jiff::Timestamp;
use portcullis_common::text;
use std::fmt::Display;

/// One bounded line of a hostile text.
#[askama::filter_fn]
pub(super) fn shown(value: impl Display, _: &dyn Values, max_bytes: usize) -> Result<String> {
    Ok(text::shown(&value.to_string(), max_bytes))
}

/// A path, hostile as well, whose directory is less to see than its last part; it may be wrapped behind a slash.
#[askama::filter_fn]
pub(super) fn path(value: impl Display, _: &dyn Values, max_bytes: usize) -> Result<Html> {
    Ok(html::path(&text::shown(&value.to_string(), max_bytes)))
}

/// An endpoint, hostile as well, that is wrapped where it stays readable.
#[askama::filter_fn]
pub(super) fn endpoint(value: impl Display, _: &dyn Values, max_bytes: usize) -> Result<Html> {
    Ok(html::endpoint(text::shown(&value.to_string(), max_bytes)))
}

/// A time as people read it: in their zone, with UTC on hover.
#[askama::filter_fn]
pub(super) fn time(value: &Timestamp, _: &dyn Values) -> Result<Html> {
    Ok(html::time(*value, "moment"))
}

/// A time of day.
#[askama::filter_fn]
pub(super) fn clock(value: &Timestamp, _: &dyn Values) -> Result<Html> {
    Ok(html::time(*value, "clock"))
}

/// How long ago.
#[askama::filter_fn]
pub(super) fn ago(value: &Timestamp, _: &dyn Values) -> Result<Html> {
    Ok(html::time(*value, "ago"))
}

/// A number with thousands set apart.
#[askama::filter_fn]
pub(super) fn number(value: &u64, _: &dyn Values) -> Result<String> {
    Ok(html::number(*value))
}

/// One part of an address's path.
#[askama::filter_fn]
pub(super) fn segment(value: impl Display, _: &dyn Values) -> Result<String> {
    Ok(super::api_client::segment(&value.to_string()))
}

/// One value of an address's query.
#[askama::filter_fn]
pub(super) fn param(value: impl Display, _: &dyn Values) -> Result<String> {
    Ok(url::form_urlencoded::byte_serialize(value.to_string().as_bytes()).collect())
}
