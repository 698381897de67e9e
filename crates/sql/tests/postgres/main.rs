//! PostgreSQL keeps the laws of the stores, and what its module says beyond them: against a real server, which the tests start.
//! Without one they are skipped, loudly: `ATOLL_TEST_POSTGRES_BIN` names the directory of its programs where that is unusual.
mod backup;
mod contract;
mod crowd;
mod failover;
mod loss;
mod proxy;
mod schema;
mod server;
mod tls;
