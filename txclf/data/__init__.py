"""Files to batches, as plain functions over Arrow tables and numpy arrays."""
