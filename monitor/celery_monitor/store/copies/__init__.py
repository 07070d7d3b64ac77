"""Copies of a record: backups as SQLite files, and moving between SQLite and PostgreSQL."""
