//! How PostgreSQL is reached, and how long it is waited for.
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::Secret;
use percent_encoding::percent_decode_str;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::{Host, Url};

/// How PostgreSQL is reached. See [`PostgresConfig::new`] for what is usual.
#[derive(Debug, Clone)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database?sslmode=verify-full`; a host that is a directory, percent-encoded, is that of
    /// a Unix socket. Of parameters there are `sslmode` (`disable`, `prefer`, `require`, `verify-ca`, `verify-full`), `sslcert`
    /// and `sslkey` (files of a client's certificate), and `host`. Without `sslmode` a server on loopback or on a socket is
    /// spoken to as it likes (`prefer`), any other must prove who it is (`verify-full`).
    pub url: Secret<String>,
    /// Certificates of authorities, in PEM, by which the server proves who it is; without, those of the system.
    pub ca: Option<PathBuf>,
    /// Who we are in `pg_stat_activity`.
    pub application_name: String,
    /// Connections of this process at once. The server's `max_connections` must suffice for all processes.
    pub connections_max: usize,
    /// How long a request waits for a free connection, or for a server that is starting.
    pub acquire_timeout: Duration,
    /// How long the server may take to open one connection, at the most `acquire_timeout`.
    pub connect_timeout: Duration,
    /// How long the server may take for one statement. It is waited for a little longer, in case that it, or the network, is
    /// silent altogether.
    pub statement_timeout: Duration,
    /// A connection that nobody used for so long is closed.
    pub idle_timeout: Duration,
    /// A connection that is so old is closed when it is given back, so that a server that others took the place of is left, and
    /// the schema is looked at again.
    pub lifetime_max: Duration,
}

/// What is wrong with the settings of PostgreSQL. Neither the URL nor a part of it is repeated that may be a password.
#[derive(Debug, thiserror::Error)]
pub enum PostgresConfigError {
    /// It is no URL of PostgreSQL.
    #[error(
        "the URL of PostgreSQL is not understood ({0}): postgres://user:password@host:port/database?sslmode=verify-full"
    )]
    Url(&'static str),
    /// A parameter that is not supported.
    #[error(
        "the URL of PostgreSQL has the parameter {0:?}, which is not supported: sslmode, sslcert, sslkey and host are"
    )]
    Parameter(String),
    /// A mode that is not supported.
    #[error("sslmode of PostgreSQL's URL must be disable, prefer, require, verify-ca or verify-full")]
    SslMode,
    /// A bound of nothing.
    #[error("{0} of PostgreSQL must be more than nothing")]
    Zero(&'static str),
    /// A file cannot be read.
    #[error("{path:?}, which PostgreSQL's connections need, cannot be read")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl PostgresConfig {
    /// What suits a role of a fleet: 16 connections; 5 s to get one, also where it must be opened; 10 s for a statement; connections
    /// end after 5 minutes without use, and after 30 minutes.
    #[must_use]
    pub fn new(url: Secret<String>) -> Self {
        Self {
            url,
            ca: None,
            application_name: "atoll".to_owned(),
            connections_max: 16,
            acquire_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            lifetime_max: Duration::from_secs(1800),
        }
    }

    /// Looks at everything but the server.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), PostgresConfigError> {
        self.options().map(drop)
    }

    /// What sqlx needs to know. Nothing of it is taken from the environment that the URL can say.
    pub(super) fn options(&self) -> Result<PgConnectOptions, PostgresConfigError> {
        for (name, time) in [
            ("acquire_timeout", self.acquire_timeout),
            ("connect_timeout", self.connect_timeout),
            ("statement_timeout", self.statement_timeout),
            ("idle_timeout", self.idle_timeout),
            ("lifetime_max", self.lifetime_max),
        ] {
            if time.as_millis() == 0 {
                return Err(PostgresConfigError::Zero(name));
            }
        }
        if self.connections_max == 0 {
            return Err(PostgresConfigError::Zero("connections_max"));
        }
        let target = Target::parse(self.url.expose())?;
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(target.port)
            .username(&target.user)
            .password(&target.password)
            .database(&target.database)
            .ssl_mode(target.ssl_mode)
            .application_name(&self.application_name)
            // What a statement was asked with is nobody's business, and what it says is in our sources.
            .disable_statement_logging();
        options = match target.host.starts_with('/') {
            true => options.socket(&target.host),
            false => options.host(&target.host),
        };
        if let Some(path) = &self.ca {
            options = options.ssl_root_cert_from_pem(read(path)?);
        }
        if let Some(path) = &target.certificate {
            options = options.ssl_client_cert_from_pem(read(path)?);
        }
        if let Some(path) = &target.key {
            options = options.ssl_client_key_from_pem(read(path)?);
        }
        Ok(options)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, PostgresConfigError> {
    std::fs::read(path).map_err(|source| PostgresConfigError::File {
        path: path.to_owned(),
        source,
    })
}

struct Target {
    host: String,
    port: u16,
    user: String,
    password: String,
    database: String,
    ssl_mode: PgSslMode,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Target {
    fn parse(text: &str) -> Result<Self, PostgresConfigError> {
        use PostgresConfigError::Url as Wrong;
        let url = Url::parse(text).map_err(|_| Wrong("it is no URL"))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(Wrong("it does not begin with postgres://"));
        }
        let decoded = |part: &str| {
            let text = percent_decode_str(part).decode_utf8();
            let text = text.map_err(|_| Wrong("it does not decode to UTF-8"))?;
            match text.contains('\0') {
                true => Err(Wrong("it holds U+0000")),
                false => Ok(text.into_owned()),
            }
        };
        let mut host = decoded(url.host_str().unwrap_or_default())?;
        let (mut ssl_mode, mut certificate, mut key) = (None, None, None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "host" => host = value.into_owned(),
                "sslmode" => ssl_mode = Some(mode(&value)?),
                "sslcert" => certificate = Some(PathBuf::from(&*value)),
                "sslkey" => key = Some(PathBuf::from(&*value)),
                // The name alone: somebody may have written `password=`.
                other => return Err(PostgresConfigError::Parameter(other.chars().take(64).collect())),
            }
        }
        let user = decoded(url.username())?;
        let database = decoded(url.path().trim_start_matches('/'))?;
        for (part, what) in [
            (&host, "it names no host"),
            (&user, "it names no user"),
            (&database, "it names no database"),
        ] {
            if part.is_empty() {
                return Err(Wrong(what));
            }
        }
        Ok(Self {
            ssl_mode: ssl_mode.unwrap_or(match is_here(&host) {
                true => PgSslMode::Prefer,
                false => PgSslMode::VerifyFull,
            }),
            port: url.port().unwrap_or(5432),
            password: decoded(url.password().unwrap_or_default())?,
            host,
            user,
            database,
            certificate,
            key,
        })
    }
}

/// Whether what is said to this host stays on this machine.
fn is_here(host: &str) -> bool {
    host.starts_with('/')
        || match Host::parse(host) {
            Ok(Host::Domain(name)) => name == "localhost",
            Ok(Host::Ipv4(address)) => address.is_loopback(),
            Ok(Host::Ipv6(address)) => address.is_loopback(),
            Err(_) => false,
        }
}

fn mode(value: &str) -> Result<PgSslMode, PostgresConfigError> {
    Ok(match value {
        "disable" => PgSslMode::Disable,
        "prefer" => PgSslMode::Prefer,
        "require" => PgSslMode::Require,
        "verify-ca" => PgSslMode::VerifyCa,
        "verify-full" => PgSslMode::VerifyFull,
        _ => return Err(PostgresConfigError::SslMode),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target, String> {
        Target::parse(url).map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_says_who_where_and_what() {
        let all = target("postgres://me:p%40ss@db.example:6543/atoll?sslmode=require").unwrap();
        assert_eq!(
            (&*all.host, all.port, &*all.user, &*all.password, &*all.database),
            ("db.example", 6543, "me", "p@ss", "atoll")
        );
        assert!(matches!(all.ssl_mode, PgSslMode::Require));
        for socket in [
            "postgresql://me@%2Frun%2Fpostgresql/atoll",
            "postgres://me@x/atoll?host=/run/postgresql",
        ] {
            let socket = target(socket).unwrap();
            assert_eq!((&*socket.host, socket.port), ("/run/postgresql", 5432));
            assert!(matches!(socket.ssl_mode, PgSslMode::Prefer));
        }
    }

    #[test]
    fn a_server_elsewhere_must_prove_who_it_is_unless_it_is_said_that_it_need_not() {
        for (host, strict) in [
            ("db.example", true),
            ("10.0.0.1", true),
            ("localhost", false),
            ("127.0.0.1", false),
            ("[::1]", false),
        ] {
            let mode = target(&format!("postgres://me@{host}/atoll")).unwrap().ssl_mode;
            assert_eq!(matches!(mode, PgSslMode::VerifyFull), strict, "{host}");
        }
    }

    #[test]
    fn what_is_refused_is_named_and_the_password_is_not() {
        for url in [
            "hunter2",
            "mysql://me:hunter2@db/atoll",
            "postgres://me:hunter2@db",
            "postgres://:hunter2@db/atoll",
            "postgres://me:hunter2%00@db/atoll",
            "postgres://me:hunter2@db/atoll?password=hunter2",
            "postgres://me:hunter2@db/atoll?sslmode=allow",
            "postgres://me:hunter2@db:hunter2/atoll",
        ] {
            let error = target(url).err().expect(url);
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = target("postgres://me@db/atoll?keepalives=1").err().unwrap();
        assert!(error.contains("keepalives"), "{error}");
    }

    #[test]
    fn a_configuration_does_not_print_its_url() {
        let config = PostgresConfig::new(Secret::new("postgres://me:hunter2@db/atoll".to_owned()));
        assert!(!format!("{config:?}").contains("hunter2"));
        let none = PostgresConfig {
            connections_max: 0,
            ..config
        };
        assert!(matches!(
            none.check(),
            Err(PostgresConfigError::Zero("connections_max"))
        ));
    }
}
