"""From files to batches: plain functions over Arrow tables and numpy arrays that know neither Ray nor Lightning."""
