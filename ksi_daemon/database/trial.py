"""Try in memory what is to be done on disk later."""

import sqlite3
from contextlib import closing

from ksi_common.errors import InvalidArgument


def check_table(columns: str) -> None:
    """Raise InvalidArgument where ``columns`` make no table, or one without a primary key."""
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute(f"CREATE TABLE tried ({columns})")
            keys = connection.execute("SELECT 1 FROM pragma_table_info('tried') WHERE pk").fetchone()
        except sqlite3.Error as error:
            raise InvalidArgument(f"its columns make no table: {error}") from error
    if keys is None:
        raise InvalidArgument("its table has no primary key; write one, such as sku TEXT PRIMARY KEY")
