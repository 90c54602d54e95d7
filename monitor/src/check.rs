//! `monitor check`: probes this host and says what posture a job would get.
