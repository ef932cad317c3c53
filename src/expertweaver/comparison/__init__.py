"""Several methods on one model at equal budgets, calibration tokens and text: cells, their table, intervals."""
