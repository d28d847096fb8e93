"""Data: clip records, shards, patches, packing, plans, loading and the sources that make clips."""
