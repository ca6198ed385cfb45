//! Helpers for statements: text that needs no second check, and a loop over rows.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, ToSql};

/// Bytes that are known to be UTF-8, bound as text without another check.
pub struct Text<'b>(pub Option<&'b [u8]>);

impl ToSql for Text<'_> {
    #[inline]
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0.map_or(ValueRef::Null, ValueRef::Text)))
    }
}

/// Calls `visit` with each row of a statement without parameters.
pub fn each(
    connection: &Connection,
    sql: &str,
    mut visit: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        visit(row)?;
    }
    Ok(())
}
