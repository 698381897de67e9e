//! The orchestrator as its clients and its nodes see it: alone with scripted nodes, among others in virtual time, and as a placer of
//! a whole fleet.
mod alone;
mod builds;
mod capacity;
mod collect;
mod control_plane;
mod create;
mod drain;
mod elsewhere;
mod events;
mod fleet;
mod life;
mod reconcile;
mod simulation;
mod snapshots;
mod stow;
mod volumes;
mod volumes_at_home;
mod world;
