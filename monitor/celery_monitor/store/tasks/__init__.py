"""Tasks in the database: rows, conditions, plans, pages, counts."""
