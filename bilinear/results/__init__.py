"""Results folders: their writers and readers."""
