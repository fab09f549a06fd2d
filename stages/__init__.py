"""The machinery of a run: settings, files, stages, work shards, launch, lock, progress."""
