//! The one connection that writes. Whatever waits when it comes around is committed in one transaction: under load the
//! price of a commit is shared, and alone a write waits for nobody.
use ports::StoreError;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use crate::sqlite::away;

/// A statement with its arguments.
pub(crate) type Statement = sqlx::query::Query<'static, sqlx::Sqlite, SqliteArguments>;

/// Writes that wait. When it is full, callers wait: the disk sets the pace.
const QUEUE_MAX: usize = 1024;
/// Writes in one transaction: some milliseconds of work, so that the first of a group is not kept long by the last.
const GROUP_MAX: usize = 128;

/// One caller's statements.
struct Write {
    statements: Vec<Statement>,
    done: oneshot::Sender<Result<u64, StoreError>>,
}

pub(crate) struct Writer(mpsc::Sender<Write>);

impl Writer {
    /// The connection is closed when the writer is dropped and the queue is empty.
    pub(crate) fn start(connection: SqliteConnection) -> Self {
        let (queue, writes) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(connection, writes));
        Self(queue)
    }

    /// All or nothing; the rows that the first statement changed.
    pub(crate) async fn write(&self, statements: Vec<Statement>) -> Result<u64, StoreError> {
        let (done, answer) = oneshot::channel();
        self.0.send(Write { statements, done }).await.map_err(away)?;
        answer.await.map_err(away)?
    }
}

async fn run(mut connection: SqliteConnection, mut writes: mpsc::Receiver<Write>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while writes.recv_many(&mut group, GROUP_MAX).await > 0 {
        if group.len() == 1 && group[0].statements.len() == 1 {
            // Alone: the statement is its own transaction.
            let mut write = group.remove(0);
            let statement = write.statements.remove(0);
            let _ = write
                .done
                .send(execute(&mut connection, statement).await.map_err(refused));
        } else {
            commit(&mut connection, &mut group).await;
        }
    }
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "the database was not closed cleanly; it recovers when it is opened next");
    }
}

/// Carries out a group in one transaction. Answers are held back until it is committed.
async fn commit(connection: &mut SqliteConnection, group: &mut Vec<Write>) {
    let mut answers = Vec::with_capacity(group.len());
    let outcome = transact(connection, group, &mut answers).await;
    if let Err(error) = &outcome {
        tracing::error!(error = %error, writes = answers.len(), "a transaction failed; its writes are undone");
        // SQLite may have rolled back by itself, and then says that there is no transaction.
        let _ = sqlx::query("ROLLBACK").execute(&mut *connection).await;
    }
    for (done, answer) in answers {
        let _ = done.send(if outcome.is_ok() {
            answer
        } else {
            Err(away("the transaction failed"))
        });
    }
    for write in group.drain(..) {
        let _ = write.done.send(Err(away("the transaction failed")));
    }
}

type Answer = (oneshot::Sender<Result<u64, StoreError>>, Result<u64, StoreError>);

async fn transact(
    connection: &mut SqliteConnection,
    group: &mut Vec<Write>,
    answers: &mut Vec<Answer>,
) -> Result<(), sqlx::Error> {
    execute(connection, sqlx::query("BEGIN IMMEDIATE")).await?;
    for write in group.drain(..) {
        match unit(connection, write.statements).await {
            Ok(rows) => answers.push((write.done, Ok(rows))),
            Err(error) if is_constraint(&error) => answers.push((write.done, Err(refused(error)))),
            Err(error) => {
                answers.push((write.done, Err(away("the transaction failed"))));
                return Err(error);
            }
        }
    }
    execute(connection, sqlx::query("COMMIT")).await?;
    Ok(())
}

/// One caller's statements inside of a transaction. A statement that breaks a constraint undoes itself; several need a
/// savepoint.
async fn unit(connection: &mut SqliteConnection, statements: Vec<Statement>) -> Result<u64, sqlx::Error> {
    let many = statements.len() > 1;
    if many {
        execute(connection, sqlx::query("SAVEPOINT unit")).await?;
    }
    let mut first = None;
    for statement in statements {
        match execute(connection, statement).await {
            Ok(rows) => {
                if *first.get_or_insert(rows) == 0 {
                    break;
                }
            }
            Err(error) if many && is_constraint(&error) => {
                execute(connection, sqlx::query("ROLLBACK TO unit")).await?;
                execute(connection, sqlx::query("RELEASE unit")).await?;
                return Err(error);
            }
            Err(error) => return Err(error),
        }
    }
    if many {
        execute(connection, sqlx::query("RELEASE unit")).await?;
    }
    Ok(first.unwrap_or_default())
}

async fn execute(connection: &mut SqliteConnection, statement: Statement) -> Result<u64, sqlx::Error> {
    Ok(statement.execute(connection).await?.rows_affected())
}

fn is_constraint(error: &sqlx::Error) -> bool {
    matches!(refusal(error), Some(StoreError::Missing | StoreError::Conflict))
}

fn refusal(error: &sqlx::Error) -> Option<StoreError> {
    let error = error.as_database_error()?;
    if error.is_unique_violation() {
        Some(StoreError::Conflict)
    } else if error.is_foreign_key_violation() {
        // The owner of the row is not there.
        Some(StoreError::Missing)
    } else {
        None
    }
}

fn refused(error: sqlx::Error) -> StoreError {
    refusal(&error).unwrap_or_else(|| away(error))
}
