"""Reports: tables, findings, pages."""
