"""The report's page: its markup, looks and script as files, what it holds of a trace, and how they become one file."""
