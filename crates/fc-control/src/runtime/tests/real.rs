//! The real Firecracker and jailer, where whoever runs the tests has them, as far as that goes without a processor for guests.
use super::*;
