//! `monitor.toml` and the paths below the root directory.
