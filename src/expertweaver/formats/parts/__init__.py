"""What several formats share: the fit of a model, slices under their names on disk, routers, configuration."""
