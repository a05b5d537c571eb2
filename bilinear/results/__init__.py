"""What is kept: results folders, their writers and readers."""
