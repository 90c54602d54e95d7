//! Numbers for Prometheus.

use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

/// The content type of the text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the histogram of durations, in seconds.
const BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    route: String,
    method: String,
    status: u16,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RouteLabels {
    route: String,
}

/// The numbers of a server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram>,
    /// Policies as they were last seen.
    pub policies: Gauge,
    /// Notifications that were given up.
    pub dead_notifications: Counter,
}

impl Metrics {
    /// The numbers of a server whose store counts `events`.
    pub fn new(events: &Counter) -> Self {
        let mut registry = Registry::with_prefix("portcullis_store");
        let requests = Family::default();
        let durations =
            Family::<RouteLabels, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        let (policies, dead_notifications) = (Gauge::default(), Counter::default());
        registry.register("requests", "Requests answered", requests.clone());
        registry.register("request_duration_seconds", "How long answers took", durations.clone());
        registry.register("policies", "Policies", policies.clone());
        registry.register("events", "Events stored", events.clone());
        registry.register(
            "dead_notifications",
            "Notifications given up",
            dead_notifications.clone(),
        );
        Self { registry, requests, durations, policies, dead_notifications }
    }

    /// Counts a request. `route` is the pattern, so that there are only as many as there are routes.
    pub fn request(&self, route: &str, method: &Method, status: StatusCode, duration: Duration) {
        // A method can be any word; only those that are served get a series of their own.
        let method = match *method {
            Method::GET | Method::PUT | Method::POST | Method::DELETE => method.as_str(),
            _ => "other",
        };
        let labels = RequestLabels {
            route: route.to_owned(),
            method: method.to_owned(),
            status: status.as_u16(),
        };
        self.requests.get_or_create(&labels).inc();
        self.durations
            .get_or_create(&RouteLabels { route: route.to_owned() })
            .observe(duration.as_secs_f64());
    }

    /// The numbers as text.
    pub fn answer(&self) -> Response {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}
