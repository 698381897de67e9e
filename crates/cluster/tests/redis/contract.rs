//! The laws of every port, on two processes.
macro_rules! faces {
    ($port:ident) => {
        async {
            let (server, one, other) = crate::server::two().await?;
            let faces = (one.$port(), other.$port());
            Some(((server, one, other), faces.0, faces.1))
        }
    };
}

mod catalog {
    ports::catalog_contract!(where_installed faces!(catalog));
}

mod limits {
    ports::limit_contract!(where_installed faces!(limits));
}

mod shares {
    ports::share_contract!(where_installed faces!(shares));
}

mod idempotency {
    ports::idempotency_contract!(where_installed faces!(idempotency));
}

mod bus {
    ports::bus_contract!(where_installed faces!(bus));
}

mod queue {
    ports::queue_contract!(where_installed faces!(queue));
}
