"""What an episode looks like afterwards: records, tables, curves and videos."""
