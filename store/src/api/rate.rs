//! How often somebody may call: token buckets by caller and by address.

use super::problem::ApiError;
use crate::configuration::LimitsConfiguration;
use axum::http::StatusCode;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;

/// The limits of a server. Buckets that are full again are forgotten by [`RateLimits::forget_idle`].
#[derive(Debug)]
pub struct RateLimits {
    callers: DefaultKeyedRateLimiter<String>,
    public: DefaultKeyedRateLimiter<IpAddr>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
}

impl RateLimits {
    /// Limits as configured.
    pub fn new(limits: &LimitsConfiguration) -> Self {
        let number = |number: u32| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        let requests =
            Quota::per_second(number(limits.requests_per_second)).allow_burst(number(limits.burst));
        Self {
            callers: RateLimiter::keyed(requests),
            public: RateLimiter::keyed(requests),
            failures: RateLimiter::keyed(Quota::per_minute(number(
                limits.failed_sign_ins_per_minute,
            ))),
        }
    }

    /// Counts a request of a caller.
    ///
    /// # Errors
    /// When it is one too many.
    pub fn check_caller(&self, caller: &String) -> Result<(), ApiError> {
        self.callers.check_key(caller).map_err(|not_until| {
            too_many(not_until.wait_time_from(DefaultClock::default().now()).as_secs())
        })
    }

    /// Counts a request that needs no token.
    ///
    /// # Errors
    /// When it is one too many.
    pub fn check_public(&self, address: IpAddr) -> Result<(), ApiError> {
        self.public.check_key(&network(address)).map_err(|not_until| {
            too_many(not_until.wait_time_from(DefaultClock::default().now()).as_secs())
        })
    }

    /// Counts a failed attempt to become somebody. Good tokens of the same address go on: they have 256 random bits, so
    /// guessing is in vain anyway, and a host with a stale credential must not lock out its neighbours behind one address.
    ///
    /// # Errors
    /// When it is one too many.
    pub fn check_failure(&self, address: IpAddr) -> Result<(), ApiError> {
        self.failures.check_key(&network(address)).map_err(|not_until| {
            too_many(not_until.wait_time_from(DefaultClock::default().now()).as_secs())
        })
    }

    /// Forgets buckets that are full again, so that memory does not grow with the number of addresses ever seen.
    pub fn forget_idle(&self) {
        self.callers.retain_recent();
        self.public.retain_recent();
        self.failures.retain_recent();
    }
}

/// The network that counts as one caller: an IPv6 host has a whole /64 to choose from.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

fn too_many(seconds: u64) -> ApiError {
    ApiError::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too-many-requests",
        "there were too many requests in a short time",
    )
    .retry_after(seconds.max(1))
}
