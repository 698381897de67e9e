ports::store_contract!(where_installed crate::server::fresh());
