"""What outlives a process, in SQL. The only package that knows SQLAlchemy."""
