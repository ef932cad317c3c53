"""The request: schema, loading, presets."""
