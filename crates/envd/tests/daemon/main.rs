//! A real envd, spoken to as clients do: over its socket and its port, with real processes and real files.
mod builds;
mod client;
mod codecs;
mod commands;
mod content;
mod doors;
mod quiet;
