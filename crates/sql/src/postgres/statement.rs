use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Arguments as _, Encode, Postgres, Type};

/// A statement with its arguments, which can be carried out more than once.
#[derive(Clone)]
pub(crate) struct Statement {
    sql: &'static str,
    arguments: PgArguments,
    planned_once: bool,
}

impl Statement {
    pub(crate) fn new(sql: &'static str) -> Self {
        Self {
            sql,
            arguments: PgArguments::default(),
            planned_once: true,
        }
    }

    pub(crate) fn bind<T>(mut self, value: T) -> Self
    where
        T: for<'q> Encode<'q, Postgres> + Type<Postgres>,
    {
        self.arguments
            .add(value)
            .expect("texts, numbers, bytes and lists of them can always be sent");
        self
    }

    /// Has it planned anew each time, by the values of its arguments: for one whose best plan depends on them.
    pub(crate) fn planned_each_time(mut self) -> Self {
        self.planned_once = false;
        self
    }

    pub(crate) fn query(&self) -> Query<'static, Postgres, PgArguments> {
        sqlx::query_with(self.sql, self.arguments.clone()).persistent(self.planned_once)
    }
}
