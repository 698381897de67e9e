//! The edge as its clients see it: real HTTP over loopback, a fake fleet behind it.
mod client;
mod house;

mod ends;
mod pools;
mod refusals;
mod routes;
mod secured;
mod signatures;
mod streams;
mod wakes;
