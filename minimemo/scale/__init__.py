"""Many documents: collections that are kept in step with a folder."""
