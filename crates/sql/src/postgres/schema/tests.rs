use super::*;

#[test]
fn a_program_runs_over_its_own_schema_and_over_one_that_only_expanded() {
    assert_eq!(judge(Some(3), Some(1), 3), Ok(()));
    assert_eq!(judge(Some(3), Some(2), 2), Ok(()));
    assert_eq!(judge(Some(7), Some(2), 2), Ok(()));
    assert_eq!(judge(None, None, 3), Err(SchemaError::Missing));
    assert_eq!(
        judge(Some(2), Some(1), 3),
        Err(SchemaError::Old { has: 2, needs: 3 })
    );
    let new = SchemaError::New {
        has: 4,
        oldest: 3,
        is: 2,
    };
    assert_eq!(judge(Some(4), Some(3), 2), Err(new));
}

#[test]
fn every_refusal_names_what_to_do() {
    for refusal in [
        SchemaError::Missing,
        SchemaError::Old { has: 1, needs: 2 },
        SchemaError::New {
            has: 3,
            oldest: 2,
            is: 1,
        },
    ] {
        assert!(refusal.to_string().contains("atoll migrate"), "{refusal}");
    }
}

/// What may not stand in a migration that leaves programs of the release before as they are.
const CONTRACTS: &[&str] = &[
    "DROP ",
    " RENAME ",
    "SET NOT NULL",
    " TYPE ",
    "TRUNCATE",
    "DELETE FROM",
];

/// What is wrong with a migration: `before` is the `oldest` of the one before it.
fn wrong(migration: &Migration, before: Option<i64>) -> Vec<&'static str> {
    let mut wrong = Vec::new();
    let Some(oldest) = oldest(migration) else {
        return vec!["its first line does not say `-- oldest: N`"];
    };
    let Some(before) = before else {
        return wrong;
    };
    if oldest < before {
        wrong.push("programs that were excluded are let in again");
    }
    if oldest >= migration.version {
        wrong.push("programs of the generation before are excluded, which run beside it");
    }
    let text = migration.sql.as_str();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("--"));
    let text: String = lines.flat_map(|line| [line, " "]).collect();
    let statements: Vec<String> = text.split(';').map(str::to_uppercase).collect();
    for statement in &statements {
        let words: Vec<&str> = statement.split_whitespace().collect();
        let said = format!("{} ", words.join(" "));
        if oldest == before && CONTRACTS.iter().any(|contract| said.contains(contract)) {
            wrong.push("it takes something away from programs that it does not exclude");
        }
        if said.contains("ADD COLUMN") && said.contains("NOT NULL") && !said.contains("DEFAULT") {
            wrong.push("a column that older programs do not fill must have a default or be NULL");
        }
        let made: Vec<&str> = statements
            .iter()
            .filter_map(|other| other.trim_start().strip_prefix("CREATE TABLE "))
            .filter_map(|rest| rest.split_whitespace().next())
            .collect();
        let is_new = made
            .iter()
            .any(|table| said.contains(&format!(" ON {table} ")) || said.contains(&format!(" ON {table}(")));
        if said.contains("CREATE ") && said.contains(" INDEX ") && !said.contains("CONCURRENTLY") && !is_new {
            wrong.push("an index over a table that is in use is made CONCURRENTLY");
        }
        if (said.contains(" ADD CONSTRAINT ") || said.contains(" ADD CHECK ")) && !said.contains("NOT VALID")
        {
            wrong.push("a constraint of a table that is in use is added NOT VALID");
        }
    }
    if text.to_uppercase().contains("CONCURRENTLY") && !migration.no_tx {
        wrong.push("CONCURRENTLY needs `-- no-transaction`");
    }
    wrong
}

#[test]
fn the_migrations_keep_the_rule_and_are_numbered_without_gaps() {
    crate::migrate::tests::check("migrations/postgres", &MIGRATIONS);
    let mut before = None;
    for (number, migration) in (1..).zip(MIGRATIONS.iter()) {
        assert_eq!(migration.version, number);
        assert_eq!(wrong(migration, before), Vec::<&str>::new(), "migration {number}");
        before = oldest(migration);
    }
    assert!(before.is_some());
}

#[test]
fn what_breaks_the_rule_is_seen() {
    let migration = |sql: &'static str| {
        let sql = sqlx::SqlSafeStr::into_sql_str(sql);
        let no_tx = sql.as_str().contains("-- no-transaction");
        Migration::new(3, "".into(), sqlx::migrate::MigrationType::Simple, sql, no_tx)
    };
    for good in [
        "-- oldest: 1\nALTER TABLE sandboxes ADD COLUMN zone TEXT;",
        "-- oldest: 1\nALTER TABLE sandboxes ADD COLUMN zone TEXT NOT NULL DEFAULT '';",
        "-- oldest: 1\n-- no-transaction\nCREATE INDEX CONCURRENTLY zones ON sandboxes (zone);",
        "-- oldest: 1\n-- DROP is only talked of\nCREATE TABLE zones (id TEXT NOT NULL);\nCREATE INDEX z ON zones (id);",
        "-- oldest: 2\nALTER TABLE sandboxes DROP COLUMN zone;",
    ] {
        assert_eq!(wrong(&migration(good), Some(1)), Vec::<&str>::new(), "{good}");
    }
    for bad in [
        "CREATE TABLE zones (id TEXT);",
        "-- oldest: 1\nALTER TABLE sandboxes DROP COLUMN zone;",
        "-- oldest: 1\nALTER TABLE sandboxes RENAME COLUMN zone TO place;",
        "-- oldest: 1\nALTER TABLE sandboxes ALTER COLUMN zone\n    SET NOT NULL;",
        "-- oldest: 1\nALTER TABLE sandboxes ADD COLUMN zone TEXT NOT NULL;",
        "-- oldest: 1\nCREATE INDEX zones ON sandboxes (zone);",
        "-- oldest: 1\nCREATE INDEX CONCURRENTLY zones ON sandboxes (zone);",
        "-- oldest: 1\nALTER TABLE sandboxes ADD CONSTRAINT c CHECK (version > 0);",
        "-- oldest: 3\nALTER TABLE sandboxes DROP COLUMN zone;",
        "-- oldest: 0\nCREATE TABLE zones (id TEXT);",
    ] {
        assert_ne!(wrong(&migration(bad), Some(1)), Vec::<&str>::new(), "{bad}");
    }
}
