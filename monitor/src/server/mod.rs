//! The monitor's socket.
