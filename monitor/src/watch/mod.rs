//! Watchers: they gather facts and decide nothing.
